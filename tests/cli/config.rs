//! Finding and reading the configuration, through `databases` and `ltx`.

use super::support::Scratch;

const TWO: &str = "dbs:\n - path: rel/a.db\n   replica: {path: rep}\n - path: 'sqlite:///b.db'\n   \
                   replicas: [{url: 's3://bkt/path'}]\n";

#[test]
fn databases_prints_a_table_or_json() {
    let scratch = Scratch::new();
    scratch.write("c.yml", TWO);
    let a = scratch.path("rel/a.db").display().to_string();
    let width = a.len() + 2;
    scratch
        .run(&["databases", "-config", "c.yml"])
        .printed(&format!("{:<width$}replica\n{a}  file\n{:<width$}s3\n", "path", "/b.db"));
    scratch.run(&["databases", "-json", "-config", "c.yml"]).printed(&format!(
        "[\n  {{\n    \"path\": \"{a}\",\n    \"replica\": \"file\"\n  }},\n  \
         {{\n    \"path\": \"/b.db\",\n    \"replica\": \"s3\"\n  }}\n]\n"
    ));
    scratch.run(&["databases", "x"]).refused("Error: too many arguments\n");
}

#[test]
fn the_flag_beats_the_environment_and_both_beat_the_default() {
    let scratch = Scratch::new();
    scratch.write("c.yml", "");
    let missing = scratch.path("none.yml").display().to_string();
    let env = [("LITESTREAM_CONFIG", missing.as_str())];
    scratch.run_with_env(&["databases"], &env).refused(&format!("Error: config file not found: {missing}\n"));
    scratch.run_with_env(&["databases", "-config", "c.yml"], &env).printed("path  replica\n");
    let dir = scratch.path("").display().to_string();
    let dir = dir.trim_end_matches('/');
    scratch.run(&["databases", "-config", dir]).refused(&format!("Error: read {dir}: is a directory\n"));
}

#[test]
fn variables_are_expanded_unless_told_not_to() {
    let scratch = Scratch::new();
    scratch.write("c.yml", "dbs:\n - path: /$FOO/${BAR}.db\n   replica: {path: /r}\n");
    let env = [("FOO", "foo"), ("BAR", "bar")];
    let path = |ran: super::support::Ran| ran.stdout.lines().nth(1).unwrap_or_default().to_owned();
    let expanded = scratch.run_with_env(&["databases", "-config", "c.yml"], &env);
    assert_eq!(path(expanded), "/foo/bar.db  file");
    let verbatim = scratch.run_with_env(&["databases", "-no-expand-env", "-config", "c.yml"], &env);
    assert_eq!(path(verbatim), "/$FOO/${BAR}.db  file");
}

#[test]
fn a_broken_file_names_its_line() {
    let scratch = Scratch::new();
    scratch.write("c.yml", "dbs:\n  - path: [1\n");
    let ran = scratch.run(&["databases", "-config", "c.yml"]);
    assert!(ran.stderr.starts_with("Error: yaml: line 2: "), "{}", ran.stderr);
}

#[test]
fn an_unknown_backend_is_refused() {
    let scratch = Scratch::new();
    scratch.run(&["ltx", "foo://x"]).refused("Error: unknown replica type in config: \"foo\"\n");
}

#[test]
fn ltx_lists_a_level_or_all_of_them() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    let levels = |args: &[&str]| -> Vec<String> {
        let ran = scratch.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        ran.stdout.lines().skip(1).map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let l0 = ["0 0000000000000001", "0 0000000000000002", "0 0000000000000003"];
    assert_eq!(levels(&["ltx", &url]), l0);
    assert_eq!(levels(&["ltx", "-level", "9", &url]), ["9 0000000000000001"]);
    assert_eq!(levels(&["ltx", "-level", "all", &url]), [&l0[..], &["9 0000000000000001"]].concat());
    let json = scratch.run(&["ltx", "-json", "-level", "9", &url]).stdout;
    assert!(json.contains("\"timestamp\": \"2026-01-01T00:00:01Z\""), "{json}");
    scratch.run(&["ltx", "-json", &format!("file://{}", scratch.path("none").display())]).printed("[]\n");
}

#[test]
fn ltx_takes_a_database_of_the_configuration_or_a_url_never_both() {
    let scratch = Scratch::new();
    let url = scratch.replica("rep");
    scratch.write("c.yml", "dbs: [{path: a.db, replica: {path: rep}}, {path: b.db}]");
    let ran = scratch.run(&["ltx", "-config", "c.yml", "a.db"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 4), "an error in b.db is not in the way");
    scratch.run(&["ltx", "-config", "c.yml", "b.db"]).refused("Error: must specify replica for database\n");
    let nope = scratch.path("nope.db").display().to_string();
    scratch
        .run(&["ltx", "-config", "c.yml", "nope.db"])
        .refused(&format!("Error: database not found in config: {nope}\n"));
    scratch
        .run(&["ltx", "-config", "c.yml", &url])
        .refused("Error: cannot specify a replica URL and the -config flag\n");
}
