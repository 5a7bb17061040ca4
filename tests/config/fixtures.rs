//! `databases` and `replicate` on every recorded file: exit codes, output, error texts.

use super::place::{Case, cases};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where we answer better than the reference on purpose (docs/differences.md).
const DIRECTORIES: &str = "`databases` shows the directory and its pattern, not the working directory";

fn shows_directories(case: &Case) -> bool {
    case.name.starts_with("dir-")
}

#[test]
fn valid_files_list_the_same_databases() {
    let cases = cases("valid");
    assert_eq!(cases.len(), 158);
    for case in cases {
        let want = &case.expect["databases"];
        let json = case.run(&["databases", "-json"]);
        if shows_directories(&case) {
            assert_eq!(json.status.code(), Some(0), "{}: {DIRECTORIES}", case.name);
            assert!(text(&json.stdout).contains("/tenants/"), "{}: {}", case.name, text(&json.stdout));
            continue;
        }
        assert_eq!((json.status.code(), text(&json.stderr).as_str()), (Some(0), ""), "{}", case.name);
        let got: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        let filled: serde_json::Value = serde_json::from_str(&case.filled(&want["json"].to_string())).unwrap();
        // The process id is another each time.
        if case.name != "env-pid" {
            assert_eq!(got, filled, "{}", case.name);
        }
        if let Some(table) = want["stdout"].as_str() {
            let plain = case.run(&["databases"]);
            assert_eq!(text(&plain.stdout), table, "{}", case.name);
        }
    }
}

#[test]
fn invalid_files_are_refused_in_the_same_words() {
    let cases = cases("invalid");
    assert_eq!(cases.len(), 160);
    for case in cases {
        let want = &case.expect["databases"];
        let got = case.run(&["databases"]);
        let stderr = text(&got.stderr);
        if case.expect["reference_crashes"] == true && !case.name.starts_with("run-") {
            // The reference panics; an ordinary error it is.
            assert_eq!(got.status.code(), Some(1), "{}: {stderr}", case.name);
            assert!(stderr.starts_with("Error: ") && !stderr.contains("panicked"), "{}: {stderr}", case.name);
            continue;
        }
        if case.name == "run-restore-if-not-exists-no-replica" || !case.name.starts_with("run-") {
            assert_eq!(stderr, case.filled(want["stderr"].as_str().unwrap()), "{}", case.name);
        }
        let code = want["exit"].as_i64().and_then(|c| i32::try_from(c).ok());
        assert_eq!(got.status.code(), code, "{}: {stderr}", case.name);
    }
}

/// Refused only when a backend that this build may not have is first used; what of it the settings can
/// tell is checked in `replicating.rs`.
fn needs_a_backend(name: &str) -> bool {
    let backends = ["run-abs-", "run-gs-", "run-nats-", "run-sftp-", "run-sse-", "run-aws-"];
    backends.iter().any(|prefix| name.starts_with(prefix))
}

/// Refused by a part that is not here yet.
const NOT_YET: [&str; 1] = ["run-addr-no-port"];

#[test]
fn files_that_only_replicate_refuses_are_refused_in_the_same_words() {
    let mut seen = 0;
    for case in cases("invalid") {
        let want = &case.expect["replicate"];
        if want.is_null() || needs_a_backend(&case.name) || NOT_YET.contains(&case.name.as_str()) {
            continue;
        }
        seen += 1;
        let got = case.run(&["replicate"]);
        let stderr = text(&got.stderr);
        assert_eq!(got.status.code(), Some(1), "{}: {stderr}", case.name);
        if case.expect["reference_crashes"] == true {
            assert!(stderr.starts_with("Error: ") && !stderr.contains("panicked"), "{}: {stderr}", case.name);
            continue;
        }
        let line = stderr.lines().next().unwrap_or_default();
        assert_eq!(line, case.filled(want["stderr"].as_str().unwrap()).trim_end(), "{}", case.name);
    }
    assert!(seen >= 8, "only {seen} cases");
}
