//! The grammar of replica URLs: the only place that takes them apart. What a host or a query means
//! is said by each backend (`s3`, `objects`, `servers`).

use crate::error::{Error, Result};

/// Whether a text is a replica URL rather than a path: `^\w+://`.
#[must_use]
pub fn is_replica_url(text: &str) -> bool {
    match text.find("://") {
        Some(0) | None => false,
        Some(at) => text[..at].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
    }
}

/// The scheme of a replica URL in lower case, with spellings of one backend made one.
pub(super) fn backend_of(url: &str) -> Option<String> {
    if !is_replica_url(url) {
        return None;
    }
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    Some(if scheme == "webdavs" { "webdav".to_owned() } else { scheme })
}

/// A URL, taken apart and checked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Url {
    /// In lower case.
    pub(super) scheme: String,
    /// User, decoded.
    pub user: String,
    /// Password, decoded. Never printed.
    pub(super) password: String,
    /// With the port, decoded. Empty for `scheme:opaque`.
    pub(super) host: String,
    /// As written.
    raw_path: String,
    /// Decoded.
    pub(super) path: String,
    /// As written, without the question mark.
    raw_query: Option<String>,
    fragment: Option<String>,
    /// What follows the scheme of `scheme:opaque`, as written.
    opaque: String,
    /// What stood before the path, as written, for putting the URL together again.
    prefix: String,
}

/// User, password and query stay out of it.
impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, host, path) = (&self.scheme, &self.host, &self.path);
        f.debug_struct("Url").field("scheme", scheme).field("host", host).field("path", path).finish_non_exhaustive()
    }
}

impl Url {
    /// Takes `scheme://user:password@host:port/path?query#fragment` apart.
    ///
    /// # Errors
    /// No scheme, control characters, a host, port or escape that cannot be one. The text shows the
    /// URL without its password.
    pub fn parse(url: &str) -> Result<Self> {
        let bad = |what: String| Error::invalid(format!("parse {:?}: {what}", without_password(url)));
        if url.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(bad("net/url: invalid control character in URL".to_owned()));
        }
        let scheme_end =
            url.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(url.len());
        let has_scheme = url.starts_with(|c: char| c.is_ascii_alphabetic()) && url[scheme_end..].starts_with(':');
        if !has_scheme {
            return Err(Error::invalid(format!("replica url scheme required: {url}")));
        }
        let scheme = url[..scheme_end].to_ascii_lowercase();
        let rest = &url[scheme_end + 1..];
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (rest, None),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let Some(hierarchy) = rest.strip_prefix("//") else {
            let (path, opaque) = if rest.starts_with('/') { (rest, "") } else { ("", rest) };
            return Ok(Self {
                scheme,
                raw_path: path.to_owned(),
                path: unescape_text(path).map_err(&bad)?,
                opaque: opaque.to_owned(),
                fragment: fragment.map(|f| escape_path(f).map_err(&bad)).transpose()?,
                ..Self::default()
            });
        };
        let (authority, path) = hierarchy.split_at(hierarchy.find('/').unwrap_or(hierarchy.len()));
        let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        if let Some(wrong) = host.chars().find(|c| c.is_ascii() && !valid_in_host(*c)) {
            return Err(bad(format!("invalid character {:?} in host name", wrong.to_string())));
        }
        check_port(host).map_err(&bad)?;
        if !userinfo.chars().all(valid_in_userinfo) {
            return Err(bad("net/url: invalid userinfo".to_owned()));
        }
        Ok(Self {
            scheme,
            user: unescape_text(user).map_err(&bad)?,
            password: unescape_text(password).map_err(&bad)?,
            host: unescape_text(host).map_err(&bad)?,
            raw_path: path.to_owned(),
            path: unescape_text(path).map_err(&bad)?,
            raw_query: query.map(str::to_owned),
            fragment: fragment.map(|f| escape_path(f).map_err(&bad)).transpose()?,
            prefix: url[..scheme_end + 3 + authority.len()].to_owned(),
            opaque: String::new(),
        })
    }

    /// The path, cleaned, without its leading slash. **An empty path is `.`**, a lone slash is empty:
    /// that is where objects of existing replicas are.
    pub(super) fn object_path(&self) -> String {
        let clean = clean_slashes(&self.path);
        clean.strip_prefix('/').unwrap_or(&clean).to_owned()
    }

    /// The first value of a query parameter, decoded; `None` if absent or empty.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let pairs = self.raw_query.as_deref()?.split('&').filter(|pair| !pair.contains(';'));
        let decode = |text: &str| unescape_text(&text.replace('+', " ")).ok();
        pairs
            .filter_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(key)?, decode(value)?))
            })
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    }

    /// Names of all query parameters, decoded where they can be.
    #[must_use]
    pub fn query_names(&self) -> Vec<String> {
        let pairs = self.raw_query.as_deref().unwrap_or_default().split('&').filter(|p| !p.is_empty());
        pairs
            .map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name))
            .map(|name| unescape_text(name).unwrap_or_else(|_| name.to_owned()))
            .collect()
    }

    /// The directory a `file:` URL names. It is re-encoded, not decoded: a blank becomes `%20` in the
    /// directory name. A host is the first directory; the query is dropped, the fragment kept. What
    /// follows `file:` without a slash is taken as it is, and relative to the working directory.
    pub(super) fn file_path(&self) -> String {
        let mut path = self.opaque.clone();
        if !self.host.is_empty() {
            path.push('/');
            path.push_str(&self.host);
        }
        path.push_str(&encoded_path(&self.raw_path, self.path.as_bytes()));
        if let Some(fragment) = self.fragment.as_deref().filter(|f| !f.is_empty()) {
            path.push('#');
            path.push_str(fragment);
        }
        path
    }

    /// The same URL with a relative path joined to its path; the query stays.
    #[must_use]
    pub fn with_appended(&self, relative: &str) -> String {
        let joined = clean_slashes(&format!("{}/{relative}", self.path));
        let mut out = self.prefix.clone();
        if !joined.starts_with('/') {
            out.push('/');
        }
        out.push_str(&encode(joined.as_bytes()));
        if let Some(query) = &self.raw_query {
            out.push('?');
            out.push_str(query);
        }
        if let Some(fragment) = &self.fragment {
            out.push('#');
            out.push_str(fragment);
        }
        out
    }
}

/// A URL for messages: `scheme://user:***@host/path`, and values of query parameters that are keys hidden.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority);
    let authority = match authority.rsplit_once('@') {
        Some((userinfo, host)) => match userinfo.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let (path, query) = match tail.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (tail, None),
    };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if is_secret_parameter(name) => format!("{name}=***"),
        _ => pair.to_owned(),
    };
    let query =
        query.map_or_else(String::new, |q| format!("?{}", q.split('&').map(hide).collect::<Vec<_>>().join("&")));
    format!("{scheme}://{authority}{path}{query}")
}

fn is_secret_parameter(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "secret", "token", "password", "sig", "credential"].iter().any(|word| name.contains(word))
}

fn valid_in_host(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c)
}

fn valid_in_userinfo(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c)
}

/// A colon in a host must be followed by digits, or nothing.
fn check_port(host: &str) -> std::result::Result<(), String> {
    let after = match host.strip_prefix('[') {
        Some(rest) => match rest.rsplit_once(']') {
            Some((_, after)) => after,
            None => return Err("missing ']' in host".to_owned()),
        },
        None => &host[host.rfind(':').unwrap_or(host.len())..],
    };
    match after.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        None if after.is_empty() => Ok(()),
        _ => Err(format!("invalid port {after:?} after host")),
    }
}

/// Removes `.`, `..` and doubled slashes; the empty path is `.`.
#[must_use]
pub fn clean_slashes(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Keeps a path that is already validly encoded; encodes it whole otherwise.
fn encoded_path(raw: &str, decoded: &[u8]) -> String {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&b);
    if raw.bytes().all(valid) { raw.to_owned() } else { encode(decoded) }
}

fn escape_path(raw: &str) -> std::result::Result<String, String> {
    Ok(encoded_path(raw, &unescape(raw)?))
}

fn encode(bytes: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    let mut out = String::with_capacity(bytes.len() + 16);
    for byte in bytes {
        if plain(*byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn unescape_text(text: &str) -> std::result::Result<String, String> {
    String::from_utf8(unescape(text)?).map_err(|_| "not UTF-8 after decoding".to_owned())
}

fn unescape(text: &str) -> std::result::Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit));
            match hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(byte) => out.push(byte),
                None => {
                    let wrong = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]).into_owned();
                    return Err(format!("invalid URL escape {wrong:?}"));
                }
            }
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_and_two_slashes_make_a_replica_url() {
        for url in ["file:///x", "s3://b", "sqlite:///x.db", "a_1://"] {
            assert!(is_replica_url(url), "{url}");
        }
        for path in ["foo:x", "/a/b", "://x", "a-b://x", "./s3://x", ""] {
            assert!(!is_replica_url(path), "{path}");
        }
        assert_eq!(backend_of("WebDAVs://h/x").as_deref(), Some("webdav"));
    }

    #[test]
    fn file_urls_are_re_encoded_with_all_quirks_of_the_reference() {
        for (url, want) in [
            ("file:///backup/a b", "/backup/a%20b"),
            ("file:///backup/a%20b", "/backup/a%20b"),
            ("file:///backup/é", "/backup/%C3%A9"),
            ("file:///backup/x?retain=1", "/backup/x"),
            ("file:///backup/x#frag", "/backup/x#frag"),
            ("file://host/x/", "/host/x/"),
            ("FILE:///backup//g/../h", "/backup//g/../h"),
            ("file://", ""),
            ("file://~/x", "/~/x"),
            ("file:///a!b", "/a!b"),
            ("file:///a!b c", "/a%21b%20c"),
            ("file:rep", "rep"),
            ("FILE:./a//b", "./a//b"),
            ("file:../a b%20c%zz", "../a b%20c%zz"),
            ("file:a:b?x=1#f g", "a:b#f%20g"),
            ("file:/a b", "/a%20b"),
            ("file:", ""),
        ] {
            assert_eq!(Url::parse(url).unwrap().file_path(), want, "{url}");
        }
    }

    #[test]
    fn unusable_urls_say_why() {
        for (url, want) in [
            ("/backup/x", "replica url scheme required: /backup/x"),
            ("rep", "replica url scheme required: rep"),
            ("file:///%zz", "parse \"file:///%zz\": invalid URL escape \"%zz\""),
            ("file:///%+1", "parse \"file:///%+1\": invalid URL escape \"%+1\""),
            ("file://a b/x", "parse \"file://a b/x\": invalid character \" \" in host name"),
            ("s3://bkt:port/x", "parse \"s3://bkt:port/x\": invalid port \":port\" after host"),
            ("s3://[::1/x", "parse \"s3://[::1/x\": missing ']' in host"),
            ("sftp://u:hunter2@h:x/y", "parse \"sftp://u:***@h:x/y\": invalid port \":x\" after host"),
        ] {
            assert_eq!(Url::parse(url).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn the_parts_are_decoded_where_they_are_used_decoded() {
        let url = Url::parse("sftp://user:pa%40ss@host.example.com:2222/back%20up/app?x=1").unwrap();
        assert_eq!((url.user.as_str(), url.password.as_str()), ("user", "pa@ss"));
        assert_eq!((url.host.as_str(), url.path.as_str()), ("host.example.com:2222", "/back up/app"));
        assert_eq!(Url::parse("rook:8080").unwrap().host, "");
    }

    #[test]
    fn an_empty_path_is_a_dot_and_a_slash_is_empty() {
        for (url, want) in [("s3://b", "."), ("s3://b/", ""), ("s3://b/a//b/../c/", "a/c"), ("s3://b/a%20b c", "a b c")]
        {
            assert_eq!(Url::parse(url).unwrap().object_path(), want, "{url}");
        }
    }

    #[test]
    fn the_first_value_of_a_parameter_counts_and_broken_pairs_are_skipped() {
        let url = Url::parse("s3://b/p?a=1&a=2&bad=%zz&c=x+y%2F&d&e=").unwrap();
        assert_eq!(url.query("a").as_deref(), Some("1"));
        assert_eq!(url.query("c").as_deref(), Some("x y/"));
        for name in ["bad", "d", "e", "A"] {
            assert_eq!(url.query(name), None, "{name}");
        }
    }

    #[test]
    fn a_relative_path_is_appended_before_the_query() {
        for (url, want) in [
            ("s3://bkt/base?region=x", "s3://bkt/base/sub/a%20b.db?region=x"),
            ("s3://bkt", "s3://bkt/sub/a%20b.db"),
            ("file:///x/", "file:///x/sub/a%20b.db"),
        ] {
            assert_eq!(Url::parse(url).unwrap().with_appended("sub/a b.db"), want);
        }
    }

    #[test]
    fn passwords_and_keys_are_masked() {
        assert_eq!(without_password("webdav://u:p@h/x"), "webdav://u:***@h/x");
        assert_eq!(without_password("s3://b/x?sseCustomerKey=abc&region=y"), "s3://b/x?sseCustomerKey=***&region=y");
        assert_eq!(without_password("/plain/path"), "/plain/path");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(url in "([a-z0-9]{1,4}://)?[a-z@:\\[\\]%?#&=/ é]{0,30}") {
            if let Ok(url) = Url::parse(&url) {
                let _ = (url.object_path(), url.file_path(), url.query("a"), url.with_appended("x/y"));
            }
            let _ = without_password(&url);
        }
    }
}
