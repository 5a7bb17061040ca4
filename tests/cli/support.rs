//! A scratch directory with a binary to run in it, and a small replica to run it on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use litestream::ltx::{Encoder, Header, WalPos};
use litestream::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};

/// An empty directory to run in. The environment holds nothing but what a case adds.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

/// What a run printed and returned.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        // The binary shows the real path of its working directory.
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litestream"));
        command.args(args).current_dir(self.dir.path()).env_clear().env("TZ", "UTC").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ran(&self.command(args).output().unwrap())
    }

    pub(crate) fn run_with_env(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        ran(&self.command(args).envs(env.iter().copied()).output().unwrap())
    }

    /// A replica below `name`: TXID 1 at level 0 and as snapshot, 2 and 3 at level 0; the database of
    /// TXID n holds the rows 1…n.
    pub(crate) fn replica(&self, name: &str) -> String {
        let source = self.path("source-of-replica.db");
        let conn = rusqlite::Connection::open(&source).unwrap();
        conn.execute_batch("create table t(v)").unwrap();
        for n in 1..=3_u64 {
            conn.execute("insert into t values (?1)", [n as i64]).unwrap();
            let bytes = std::fs::read(&source).unwrap();
            let root = self.path(name);
            write_ltx(&root, 0, n, n, &bytes);
            if n == 1 {
                write_ltx(&root, 9, n, n, &bytes);
            }
        }
        drop(conn);
        std::fs::remove_file(source).unwrap();
        format!("file://{}", self.path(name).display())
    }
}

/// Writes the whole database as one LTX file; every page may be part of any file.
fn write_ltx(root: &Path, level: u8, min: u64, max: u64, db: &[u8]) {
    let page_size = PageSize::new(4096).unwrap();
    let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
    let timestamp = Timestamp::from_millis(1_767_225_600_000 + max as i64 * 1000);
    let header = Header {
        no_checksum: true,
        page_size,
        commit: (db.len() / 4096) as u32,
        txids,
        timestamp,
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    };
    let dir = root.join(format!("ltx/{level}"));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(litestream::ltx::file_name(txids));
    let file = std::fs::File::create(&path).unwrap();
    let mut encoder = Encoder::new(file, header).unwrap();
    for (i, page) in db.chunks(4096).enumerate() {
        encoder.page(Pgno::new(i as u32 + 1).unwrap(), page).unwrap();
    }
    let (file, _) = encoder.finish(Checksum::NONE).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(timestamp.to_system())).unwrap();
}

fn ran(output: &Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout.clone()).unwrap(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

impl Ran {
    /// Exit 1, nothing on stdout, exactly this on stderr.
    #[track_caller]
    pub(crate) fn refused(&self, stderr: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(1), "", stderr));
    }

    /// Exit 0, nothing on stderr, exactly this on stdout.
    #[track_caller]
    pub(crate) fn printed(&self, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(0), stdout, ""));
    }
}
