//! Settings the reference takes without a word and does nothing with, or something unexpected
//! (`spec: config` §3, §6, §7.5): found in the tree as written, before inheritance mixes the levels.

use super::decode::{Odd, Oddity};
use super::finding::{Finding, Severity, nearest};
use super::raw::{RawConfig, RawDb, known_keys};
use super::yaml::{Node, NodeKind};
use crate::settings::url::Url;
use crate::settings::{Environment, ReplicaKeys, S3_PARAMETERS, references};

const UNKNOWN: &str = "unknown setting, ignored";

/// Smallest part of a multipart upload that S3 takes.
const MIN_PART_BYTES: u64 = 5 << 20;

/// Accepted at the top level, but replicas do not take them from there.
const NOT_INHERITED: [&str; 6] =
    ["part-size", "concurrency", "host-key", "webdav-url", "webdav-username", "webdav-password"];

/// Keys of replicas that one backend or a few use; all others are for every backend.
const USED_BY: [(&[&str], &[&str]); 9] = [
    (&["access-key-id", "secret-access-key", "region", "part-size", "concurrency"], &["s3", "oss"]),
    (
        &[
            "force-path-style",
            "sign-payload",
            "sign-accept-encoding",
            "require-content-md5",
            "skip-verify",
            "storage-class",
            "sse-customer-algorithm",
            "sse-customer-key",
            "sse-customer-key-path",
            "sse-kms-key-id",
        ],
        &["s3"],
    ),
    (&["bucket"], &["s3", "gs", "abs", "oss", "nats"]),
    (&["endpoint"], &["s3", "abs", "oss"]),
    (&["account-name", "account-key", "sas-token"], &["abs"]),
    (&["host", "user", "key-path", "concurrent-writes", "host-key"], &["sftp"]),
    (&["password"], &["sftp", "nats"]),
    (&["webdav-url", "webdav-username", "webdav-password"], &["webdav"]),
    (
        &[
            "username",
            "token",
            "jwt",
            "seed",
            "creds",
            "nkey",
            "tls",
            "root-cas",
            "client-cert",
            "client-key",
            "max-reconnects",
            "reconnect-wait",
            "timeout",
        ],
        &["nats"],
    ),
];

/// Everything there is to say, in the order of lines.
pub(super) fn review(raw: &RawConfig, root: &Node, oddities: Vec<Oddity>) -> Vec<Finding> {
    let mut found: Vec<Finding> = oddities.iter().map(of_oddity).collect();
    let mut note = |setting: &str, message: &str, hint: &str| {
        found.push(Finding::warning(setting, message).on_line(root.line_of(setting)).hint(hint));
    };
    for (key, _) in keys_at(root, "") {
        if NOT_INHERITED.contains(&key.as_str()) {
            note(&key, "replicas do not take this from the top level", "write it in each replica");
        }
    }
    if let Some(mode) = root.text_at("socket.permissions")
        && raw.socket.permissions > 0o777
    {
        note(
            "socket.permissions",
            &format!("{mode} is a decimal number"),
            "write octal permissions with a leading zero: 0600",
        );
    }
    for (i, db) in raw.dbs.iter().enumerate() {
        let Some(db) = db else { continue };
        of_database(db, &format!("dbs[{i}]"), root, &mut note);
    }
    found.sort_by_key(|f| f.line);
    found
}

type Note<'a> = dyn FnMut(&str, &str, &str) + 'a;

fn of_database(db: &RawDb, at: &str, root: &Node, note: &mut Note<'_>) {
    let (dir, file) = (!db.dir.is_empty(), !db.path.is_empty());
    for (key, _) in keys_at(root, at) {
        let setting = format!("{at}.{key}");
        match key.as_str() {
            "restore-if-db-not-exists" if dir => {
                note(&setting, "has no effect on a directory of databases", "restore the databases before the start");
            }
            "pattern" | "recursive" if file && !dir => {
                note(&setting, "has no effect on a single database", "use 'dir' instead of 'path' for a directory");
            }
            _ => {}
        }
    }
    if db.path.starts_with("file:") || db.path.contains("?_") {
        note(
            &format!("{at}.path"),
            "this looks like the URI that an application opens",
            "write the plain path, without file: and parameters",
        );
    }
    let replica = db.replica.iter().map(|r| (r, format!("{at}.replica")));
    let listed = db.replicas.iter().enumerate().filter_map(|(i, r)| Some((r.as_ref()?, format!("{at}.replicas[{i}]"))));
    for (replica, at) in replica.chain(listed) {
        of_replica(replica, &at, root, note);
    }
}

fn of_replica(replica: &ReplicaKeys, at: &str, root: &Node, note: &mut Note<'_>) {
    let backend = replica.backend();
    for (key, value) in keys_at(root, at) {
        let setting = format!("{at}.{key}");
        match key.as_str() {
            "name" => note(&setting, "has no effect since 0.5", "remove it"),
            "validation-interval" => {
                let instead = instead_of("validation: {interval: ", value.as_deref(), "}");
                note(&setting, "has no effect since 0.5", &instead);
            }
            key => {
                let users = USED_BY.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, users)| *users);
                if users.is_some_and(|users| !users.contains(&backend.as_str())) {
                    let message = format!("has no effect on a replica of type {backend}");
                    note(&setting, &message, "remove it, or check 'type' and 'url'");
                }
            }
        }
    }
    let settings = &replica.settings;
    if matches!(backend.as_str(), "s3" | "oss")
        && settings.access_key_id.is_empty() != settings.secret_access_key.is_empty()
    {
        let setting = format!("{at}.access-key-id");
        note(&setting, "one half of the credentials is ignored", "give both access-key-id and secret-access-key");
    }
    if backend == "s3" && settings.part_size.is_some_and(|size| size.0 > 0 && size.0 < MIN_PART_BYTES) {
        note(&format!("{at}.part-size"), "smaller than S3 takes: uploads will fail", "at least 5MiB (5MB is less)");
    }
    if backend == "nats" && !settings.username.is_empty() && settings.password.is_empty() {
        note(&format!("{at}.username"), "a user name without password is ignored", "give both");
    }
    if let Ok(url) = Url::parse(&replica.url) {
        of_url(&url, &backend, &format!("{at}.url"), note);
    }
}

fn of_url(url: &Url, backend: &str, setting: &str, note: &mut Note<'_>) {
    if matches!(backend, "s3" | "gs" | "oss" | "nats") && !url.user.is_empty() {
        note(setting, "user and password in the URL are ignored", "write credentials as settings of the replica");
    }
    for name in url.query_names() {
        let known: &[&str] = match backend {
            "s3" => &S3_PARAMETERS,
            "gs" => &["endpoint"],
            _ => &[],
        };
        if !known.contains(&name.as_str()) {
            let message = format!("query parameter {name:?} is ignored");
            let hint = match nearest(&name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "write it as a setting of the replica, or remove it".to_owned(),
            };
            note(setting, &message, &hint);
        }
    }
}

fn of_oddity(oddity: &Oddity) -> Finding {
    let warning = |message: String| Finding::warning(&oddity.setting, message).on_line(oddity.line);
    match &oddity.what {
        Odd::Repeated => warning("given twice: only the last one counts".to_owned()).hint("remove one of them"),
        Odd::Nanoseconds(n) => {
            warning(format!("{n} without a unit means {n} nanoseconds")).hint(format!("write {n}s for seconds"))
        }
        Odd::Unknown { key, value, known } => match retired(&oddity.setting, key, value.as_deref()) {
            Some((message, hint)) => warning(message.to_owned()).hint(hint),
            None => {
                let unknown = warning(UNKNOWN.to_owned());
                match suggestion(key, known, &oddity.setting) {
                    Some(hint) => unknown.hint(hint),
                    None => unknown,
                }
            }
        },
    }
}

/// For those who want to hear of it: an unknown setting is an error.
pub(super) fn stricter(finding: Finding) -> Finding {
    let unknown = finding.message == UNKNOWN;
    Finding { severity: if unknown { Severity::Error } else { finding.severity }, ..finding }
}

/// The part of a database entry that the reference's message is about, for naming a line. A wrong guess
/// names a line nearby.
pub(super) fn key_in(message: &str) -> String {
    let keys = [
        ("replica path", "path"),
        ("age encryption", "age"),
        ("unknown replica type", "type"),
        ("replicas on a database", ""),
        ("multiple replicas", ""),
        ("sse-customer-key-path", "sse-customer-key-path"),
        ("client-cert", "client-cert"),
        ("url & ", "url"),
        ("url scheme", "url"),
        ("query parameter", "url"),
        ("parse \"", "url"),
        ("access point arn", "url"),
        ("NATS", "url"),
    ];
    match keys.iter().find(|(text, _)| message.contains(text)) {
        Some((_, "")) => "replicas".to_owned(),
        Some((_, key)) => format!("replica.{key}"),
        None => "replica".to_owned(),
    }
}

/// What older versions knew, and what to write now.
fn retired(setting: &str, key: &str, value: Option<&str>) -> Option<(&'static str, String)> {
    const GONE: &str = "no longer acts since 0.5";
    let in_replica = setting.contains(".replica");
    let snapshot = |field: &str| instead_of(&format!("snapshot: {{{field}: "), value, "}");
    Some(match key {
        "retention" if in_replica => (GONE, snapshot("retention")),
        "snapshot-interval" => (GONE, snapshot("interval")),
        "retention-check-interval" => {
            (GONE, "remove it: what is too old goes whenever a snapshot was taken".to_owned())
        }
        "max-checkpoint-page-count" => (GONE, "remove it; truncate-page-n is the nearest thing there is".to_owned()),
        "retention" if setting.starts_with("levels") => {
            ("levels have no retention of their own", snapshot("retention"))
        }
        "path" | "url" | "type" | "name" if setting == key => {
            ("has no effect at the top level", "write it in the replica of a database".to_owned())
        }
        _ => return None,
    })
}

fn instead_of(before: &str, value: Option<&str>, after: &str) -> String {
    format!("write '{before}{}{after}' at the top level", value.unwrap_or("…"))
}

/// The nearest key here, or the place where this very key belongs.
fn suggestion(key: &str, known: &[&str], setting: &str) -> Option<String> {
    if let Some(near) = nearest(key, known) {
        return Some(format!("did you mean {near:?}?"));
    }
    let elsewhere = known_keys().into_iter().find(|(_, keys)| keys.contains(&key));
    elsewhere.map(|(place, _)| match place {
        "" => format!("{key:?} belongs to the top level, not below {:?}", parent(setting)),
        place => format!("{key:?} belongs below {place:?}"),
    })
}

fn parent(setting: &str) -> &str {
    setting.rsplit_once('.').map_or(setting, |(parent, _)| parent)
}

/// Keys and scalar values of the mapping at a setting, as written there (not merged in).
fn keys_at(root: &Node, setting: &str) -> Vec<(String, Option<String>)> {
    let Some(Node { kind: NodeKind::Mapping(entries), .. }) = root.at(setting) else { return Vec::new() };
    entries.iter().filter_map(|(key, value)| Some((key.text()?.to_owned(), value.text().map(str::to_owned)))).collect()
}

/// Variables the text refers to that are not set, and shell forms that are none here. Comments do not count.
pub(super) fn review_variables(text: &str, env: &Environment) -> Vec<Finding> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        for name in references(without_comment(line)) {
            let warning = |message: String| Finding::warning("", message).on_line(i as u64 + 1);
            if name.contains(":-") || name.contains(":?") || name.contains(":=") {
                let bare = name.split(':').next().unwrap_or_default();
                found.push(
                    warning(format!("${{{bare}:…}} is a shell form that means nothing here: it becomes empty"))
                        .hint(format!("write ${{{bare}}} and set the variable")),
                );
            } else if env.get(name).is_none() && name != "PID" {
                let named = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.len() > 1;
                found.push(if named {
                    warning(format!("variable {name} is not set: ${name} becomes empty"))
                } else {
                    warning(format!("${name} is taken for a variable and becomes empty"))
                        .hint("there is no escape for a dollar sign; -no-expand-env leaves all of them alone")
                });
            }
        }
    }
    found
}

/// A `#` at the start or after a blank begins a comment. (Inside quotes it does not; then a little less is
/// looked at.)
fn without_comment(line: &str) -> &str {
    let at =
        line.char_indices().find(|(i, c)| *c == '#' && line[..*i].chars().next_back().is_none_or(char::is_whitespace));
    at.map_or(line, |(i, _)| &line[..i])
}
