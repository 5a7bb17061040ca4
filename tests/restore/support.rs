//! Copies of the fixture replicas, and restores from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use litestream::error::Result;
use litestream::ltx::{Encoder, Header, WalPos};
use litestream::replica::file::FileClient;
use litestream::replica::{Layout, Replica};
use litestream::restore::{Check, Report, Request, run};
use litestream::sys::{Fs, OsFs, World};
use litestream::types::{Checksum, PageSize, Pgno, Timestamp, Txid, TxidRange};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/replicas")
}

/// A replica in a directory of its own, and room for outputs beside it.
pub(crate) struct Scene {
    dir: TempDir,
    pub(crate) replica: Replica,
    pub(crate) world: World,
}

impl Scene {
    pub(crate) fn of(fixture: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("replica");
        copy(&fixtures().join(fixture).join("replica"), &root);
        if fixture.starts_with("v3-") {
            stamp_as_listed(&fixtures().join(fixture).join("expected.json"), &root);
        }
        let world = World::system();
        let replica = Replica::new(Arc::new(FileClient::new(world.clone(), root)), Layout::Decimal);
        fs::create_dir(dir.path().join("out")).unwrap();
        Self { dir, replica, world }
    }

    /// An empty replica, and room for outputs beside it.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::system();
        let client = FileClient::new(world.clone(), dir.path().join("replica"));
        let replica = Replica::new(Arc::new(client), Layout::Decimal);
        fs::create_dir(dir.path().join("out")).unwrap();
        Self { dir, replica, world }
    }

    /// Puts `database` into the replica as level-0 file `txid`: the pages that differ from `before`, or all.
    pub(crate) fn put(&self, txid: u64, database: &[u8], before: Option<&[u8]>) {
        let page_size = match u16::from_be_bytes([database[16], database[17]]) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let page_size = PageSize::new(page_size).unwrap();
        let pages: Vec<&[u8]> = database.chunks(page_size.len()).collect();
        let txid = Txid::new(txid).unwrap();
        let header = Header {
            no_checksum: true,
            page_size,
            commit: u32::try_from(pages.len()).unwrap(),
            txids: TxidRange::new(txid, txid).unwrap(),
            timestamp: Timestamp::from_millis(i64::try_from(txid.get()).unwrap()),
            pre_apply: Checksum::NONE,
            wal: WalPos::default(),
            node_id: 0,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (page, pgno) in pages.into_iter().zip(1..) {
            let old = before.and_then(|before| before.chunks(page_size.len()).nth(pgno as usize - 1));
            if old != Some(page) {
                encoder.page(Pgno::new(pgno).unwrap(), page).unwrap();
            }
        }
        let path = self.ltx(0, txid.get(), txid.get());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let incoming = self.dir.path().join("incoming");
        fs::write(&incoming, encoder.finish(Checksum::NONE).unwrap().0).unwrap();
        OsFs.rename(&incoming, &path).unwrap();
    }

    /// A file of the replica.
    pub(crate) fn ltx(&self, level: u8, min: u64, max: u64) -> PathBuf {
        self.dir.path().join(format!("replica/ltx/{level}/{min:016x}-{max:016x}.ltx"))
    }

    /// Any object of the replica.
    pub(crate) fn object(&self, path: &str) -> PathBuf {
        self.dir.path().join("replica").join(path)
    }

    /// Where outputs go; empty at first.
    pub(crate) fn out_dir(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.out_dir().join("db")
    }

    /// Names and contents of the output directory.
    pub(crate) fn outputs(&self) -> Vec<(String, Vec<u8>)> {
        let mut entries: Vec<_> = fs::read_dir(self.out_dir())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect();
        entries.sort();
        entries
    }

    pub(crate) async fn restore(&self, request: &Request) -> Result<Report> {
        run(&self.world, &self.replica, request, no_check()).await
    }
}

pub(crate) fn no_check() -> Check {
    Arc::new(|_, _| panic!("no check was asked for"))
}

/// Copies a tree; LTX files get the time of their header, which git does not keep.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
            continue;
        }
        fs::copy(entry.path(), &target).unwrap();
        if target.extension().is_some_and(|ext| ext == "ltx") {
            stamp(&target);
        }
    }
}

/// Objects of 0.3.x hold no time of their own.
fn stamp_as_listed(expected: &Path, root: &Path) {
    let expected: serde_json::Value = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
    for file in expected["files"].as_array().unwrap() {
        let time = UNIX_EPOCH + Duration::from_nanos(file["mtime_ns"].as_u64().unwrap());
        let file = fs::File::options().write(true).open(root.join(file["path"].as_str().unwrap())).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    }
}

pub(crate) fn stamp(path: &Path) {
    let head: [u8; Header::SIZE] = fs::read(path).unwrap()[..Header::SIZE].try_into().unwrap();
    let millis = Header::decode(&head).unwrap().timestamp.millis();
    let time = UNIX_EPOCH + Duration::from_millis(millis.try_into().unwrap());
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

pub(crate) fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}
