//! Credentials are never printed: not by any command, not in any error, not at the lowest log level.

use std::process::Output;

use super::place::Bench;

/// A text nothing else contains, one per place a credential can be written.
fn sentinel(n: usize) -> String {
    format!("s3cr3t{n:02}zq")
}

const SETTINGS: [&str; 13] = [
    "access-key-id",
    "secret-access-key",
    "sse-customer-key",
    "account-key",
    "sas-token",
    "password",
    "webdav-password",
    "token",
    "jwt",
    "seed",
    "secret-acess-key",
    "acount-key",
    "passwort",
];

/// Every credential field of a replica, the last three misspelt, on replicas of every type.
fn configs() -> Vec<String> {
    let keys: String = SETTINGS.iter().enumerate().map(|(i, key)| format!("      {key}: {}\n", sentinel(i))).collect();
    let types = ["file", "s3", "gs", "abs", "oss", "sftp", "webdav", "nats", "ftp"];
    let typed = types.iter().map(|kind| {
        format!(
            "dbs:\n  - path: app.db\n    replica:\n      type: {kind}\n      path: rep\n      host: h\n      user: u\n      \
             webdav-url: http://127.0.0.1:9\n      endpoint: http://127.0.0.1:9\n      account-name: a\n      bucket: b\n      username: u\n{keys}"
        )
    });
    let urls = [
        "s3://u:%@b/x?sseCustomerKey=%&endpoint=http://127.0.0.1:9&secretKey=%",
        "sftp://u:%@h:bad/x",
        "sftp://u:%@127.0.0.1:9/x",
        "webdav://u:%@127.0.0.1:9/x",
        "nats://u:%@127.0.0.1:9/b",
        "ftp://u:%@h/x",
    ];
    let with_url = urls.iter().enumerate().map(|(i, url)| {
        format!("dbs:\n  - path: app.db\n    replica:\n      url: \"{}\"\n", url.replace('%', &sentinel(20 + i)))
    });
    let elsewhere = [
        format!("dbs:\n  - path: app.db\n    replica:\n      path: s3://u:{}@b/x\n", sentinel(40)),
        format!("secret-access-key: {}\ndbs:\n  - path: app.db\n    replica: {{type: s3, bucket: b}}\n", sentinel(41)),
        format!("secret-access-key:\n  - {}\n", sentinel(42)),
        "access-key-id: ${CREDENTIAL}\ndbs:\n  - path: app.db\n    replica: {path: rep}\n".to_owned(),
    ];
    typed.chain(with_url).chain(elsewhere).collect()
}

fn clean(out: &Output, what: &str) {
    for (stream, bytes) in [("stdout", &out.stdout), ("stderr", &out.stderr)] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("s3cr3t"), "{what}: on {stream}:\n{text}");
    }
}

#[test]
fn no_command_prints_a_credential_at_any_level() {
    for yaml in configs() {
        let bench = Bench::new(&yaml);
        bench.database("app.db");
        let commands: [&[&str]; 6] = [
            &["databases"],
            &["databases", "-json"],
            &["check"],
            &["check", "-json"],
            &["replicate", "-once", "-log-level", "trace"],
            &["ltx", "-config", "c.yml", "app.db"],
        ];
        for args in commands {
            let mut command = bench.command(args);
            if args[0] != "ltx" {
                command.args(["-config", "c.yml"]);
            }
            // A service that is not there is tried for a while; what is printed until then counts.
            command.env("LOG_LEVEL", "trace").env("CREDENTIAL", "s3cr3tenv").env("AWS_SECRET_ACCESS_KEY", "s3cr3taws");
            let mut limited = std::process::Command::new("timeout");
            limited.args(["-s", "KILL", "2"]).arg(command.get_program()).args(command.get_args());
            limited.current_dir(bench.path("")).env_clear();
            limited.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?)))).env("PATH", "/usr/bin:/bin");
            clean(&limited.stdin(std::process::Stdio::null()).output().unwrap(), &format!("{args:?} on\n{yaml}"));
        }
    }
}

#[test]
fn urls_on_the_command_line_are_masked_in_errors() {
    let bench = Bench::new("");
    for url in ["sftp://u:s3cr3tcli@h:bad/x", "ftp://u:s3cr3tcli@h/x", "webdav://u:s3cr3tcli@127.0.0.1:9/x"] {
        for args in [&["ltx", url][..], &["replicate", "-once", "app.db", url], &["restore", "-o", "out.db", url]] {
            let out = bench.command(args).env("LOG_LEVEL", "trace").output().unwrap();
            clean(&out, &format!("{args:?}"));
        }
    }
}
