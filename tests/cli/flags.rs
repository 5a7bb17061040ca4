//! Dispatch, help and flags (`spec: cli` §1, §2).

use super::support::Scratch;

#[test]
fn help_lists_the_commands_and_its_exit_code_depends_on_the_spelling() {
    let scratch = Scratch::new();
    for (args, code) in [
        (&["help"][..], 0),
        (&["-h"], 0),
        (&["--help"], 0),
        (&["-x", "-h"], 0),
        (&[], 1),
        (&[""], 1),
        (&["-x"], 1),
        (&["--version"], 1),
    ] {
        let ran = scratch.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(code), ""), "{args:?}");
        assert!(ran.stdout.contains("\n\tlitestream <command> [arguments]\n"), "{args:?}");
        assert!(ran.stdout.contains("\n\tdatabases    "), "{args:?}");
    }
}

#[test]
fn an_unknown_command_is_an_error() {
    Scratch::new().run(&["mcp"]).refused("Error: litestream mcp: unknown command\n");
}

#[test]
fn help_of_a_command_shows_its_forms_and_flags_in_order() {
    let ran = Scratch::new().run_with_env(&["restore", "-help"], &[("LITESTREAM_CONFIG", "/opt/x.yml")]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let flags: Vec<&str> =
        ran.stdout.lines().filter_map(|l| l.strip_prefix("\t-")).map(|l| l.split(' ').next().unwrap()).collect();
    let want = "config no-expand-env txid timestamp o if-db-not-exists if-replica-exists dry-run force json f \
                follow-interval parallelism integrity-check salvage all output-dir";
    assert_eq!(flags, want.split(' ').collect::<Vec<_>>());
    assert!(ran.stdout.contains("\tlitestream restore [arguments] DB_PATH\n"));
    assert!(ran.stdout.contains("Defaults to /opt/x.yml"));
}

#[test]
fn help_in_other_spellings_exits_with_1() {
    let scratch = Scratch::new();
    for arg in ["--h", "-h=1"] {
        let ran = scratch.run(&["databases", arg]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""), "{arg}");
        assert!(ran.stdout.contains("\tlitestream databases [arguments]\n"));
    }
}

#[test]
fn a_flag_error_is_said_twice_around_the_help() {
    let ran = Scratch::new().run(&["databases", "-badflag", "-h"]);
    let line = "flag provided but not defined: -badflag\n";
    assert_eq!((ran.code, ran.stderr), (Some(1), format!("{line}Error: {line}")));
    assert!(ran.stdout.contains("\tlitestream databases [arguments]\n"));
}

#[test]
fn version_prints_the_bare_version() {
    let scratch = Scratch::new();
    scratch.run(&["version", "ignored"]).printed(&format!("{}\n", env!("CARGO_PKG_VERSION")));
    let verbose = scratch.run(&["version", "-verbose"]).stdout;
    assert!(verbose.starts_with(&format!("Version:     {}\n", env!("CARGO_PKG_VERSION"))), "{verbose}");
}

#[test]
fn wal_is_the_old_name_of_ltx() {
    let ran = Scratch::new().run(&["wal"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(
        ran.stderr,
        "Warning: 'wal' command is deprecated, please use 'ltx' instead\n\
         Error: database path or replica URL required\nTry: litestream ltx /path/to/db\n"
    );
}

#[test]
fn a_reader_who_goes_away_is_not_a_crash() {
    let scratch = Scratch::new();
    let mut child = scratch.command(&["help"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    // Whether the write was before or after the pipe closed is a race; a panic (101) is never right.
    assert!(matches!(child.wait().unwrap().code(), Some(0 | 1)));
}
