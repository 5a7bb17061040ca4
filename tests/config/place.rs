//! One recorded case and the directory it runs in (`tests/fixtures/config/README.md`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use litestream::config::{Config, Environment, ExpandEnv, Surroundings};
use litestream::sys::OsFs;
use serde_json::Value;

/// One `.yml` with its `.expect.json`.
pub(crate) struct Case {
    pub(crate) name: String,
    file: PathBuf,
    pub(crate) expect: Value,
    dir: tempfile::TempDir,
}

/// Every case of a group, in order.
pub(crate) fn cases(group: &str) -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(group);
    let mut files: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yml"));
    files.sort();
    files.into_iter().map(Case::open).collect()
}

impl Case {
    fn open(file: PathBuf) -> Self {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let expect = std::fs::read_to_string(file.with_extension("expect.json")).unwrap();
        let case =
            Self { name, file, expect: serde_json::from_str(&expect).unwrap(), dir: tempfile::tempdir().unwrap() };
        case.set_up();
        case
    }

    fn set_up(&self) {
        let setup = &self.expect["setup"];
        let below = |name: &str| {
            let path = self.tmp().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for name in setup["dbs"].as_array().into_iter().flatten() {
            let conn = rusqlite::Connection::open(below(name.as_str().unwrap())).unwrap();
            conn.execute_batch("pragma journal_mode = wal; create table t(v)").unwrap();
        }
        for (name, text) in setup["files"].as_object().into_iter().flatten() {
            std::fs::write(below(name), text.as_str().unwrap()).unwrap();
        }
        for (name, target) in setup["links"].as_object().into_iter().flatten() {
            std::os::unix::fs::symlink(target.as_str().unwrap(), below(name)).unwrap();
        }
    }

    /// The working directory of the run, as the program sees it.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn variables(&self) -> Vec<(String, String)> {
        let tmp = self.tmp().display().to_string();
        let mut vars = vec![("TMP".to_owned(), tmp.clone()), ("HOME".to_owned(), format!("{tmp}/envhome"))];
        vars.push(("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()));
        for (name, value) in self.expect["env"].as_object().into_iter().flatten() {
            vars.push((name.clone(), self.filled(value.as_str().unwrap())));
        }
        vars
    }

    /// An expectation with its placeholders replaced.
    pub(crate) fn filled(&self, text: &str) -> String {
        let home = std::fs::read_to_string("/etc/passwd").unwrap();
        let uid = std::fs::metadata(self.dir.path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        let home =
            home.lines().find(|l| l.split(':').nth(2) == Some(&uid.to_string())).and_then(|l| l.split(':').nth(5));
        text.replace("{tmp}", &self.tmp().display().to_string()).replace("{home}", home.unwrap_or("/"))
    }

    fn extra_args(&self) -> Vec<String> {
        self.expect["args"].as_array().into_iter().flatten().map(|a| a.as_str().unwrap().to_owned()).collect()
    }

    /// Runs a command with `-config` and what else the case says.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_litestream"))
            .args(command)
            .arg("-config")
            .arg(&self.file)
            .args(self.extra_args())
            .current_dir(self.dir.path())
            .env_clear()
            .envs(self.variables())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Loads the file in this process and hands it to `look`.
    pub(crate) fn load<T>(&self, look: impl FnOnce(&Config, Surroundings<'_>) -> T) -> litestream::error::Result<T> {
        let env = Environment::new(self.variables(), self.tmp());
        let around = Surroundings { env: &env, fs: &OsFs };
        let expand =
            if self.extra_args().iter().any(|a| a == "-no-expand-env") { ExpandEnv::No } else { ExpandEnv::Yes };
        let config = litestream::config::load(self.file.to_str().unwrap(), expand, around)?;
        Ok(look(&config, around))
    }
}

/// An empty directory with a configuration of one's own.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// With `c.yml`.
    pub(crate) fn new(yaml: &str) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(bench.path("c.yml"), yaml).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// A database in WAL mode.
    pub(crate) fn database(&self, name: &str) -> &Self {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        let conn = rusqlite::Connection::open(self.path(name)).unwrap();
        conn.execute_batch("pragma journal_mode = wal; create table t(v)").unwrap();
        self
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
        command.args(args).current_dir(self.dir.path()).env_clear().env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    /// Runs a command on `c.yml`: exit code, stdout, stderr.
    pub(crate) fn run(&self, args: &[&str]) -> (i32, String, String) {
        let ran = self.command(args).args(["-config", "c.yml"]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.code().unwrap_or(-1), text(&ran.stdout), text(&ran.stderr))
    }
}
