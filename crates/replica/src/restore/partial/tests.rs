use std::path::PathBuf;

use super::*;
use crate::ltx::{Encoder, Header, WalPos};
use crate::restore::apply::{Start, apply};
use crate::sys::{OsFs, Publisher};
use crate::types::{Checksum, Level, PageSize, Pgno, Timestamp, Txid, TxidRange};

const SIZE: usize = 512;

/// Content that does not compress.
fn page(pgno: u32, txid: u64) -> Vec<u8> {
    let mut state = (u64::from(pgno) << 32) | txid | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..SIZE).map(|_| next()).collect()
}

fn file(min: u64, max: u64, commit: u32, pages: impl IntoIterator<Item = u32>) -> (FileInfo, Vec<u8>) {
    let txids = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
    let header = Header {
        no_checksum: true,
        page_size: PageSize::new(SIZE as u32).unwrap(),
        commit,
        txids,
        timestamp: Timestamp::from_millis(max as i64),
        pre_apply: Checksum::NONE,
        wal: WalPos::default(),
        node_id: 0,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in pages {
        encoder.page(Pgno::new(pgno).unwrap(), &page(pgno, max)).unwrap();
    }
    let bytes = encoder.finish(Checksum::NONE).unwrap().0;
    let info = FileInfo { level: Level::L0, txids, size: bytes.len() as u64, created: Timestamp::from_millis(1) };
    (info, bytes)
}

/// A plan, newest first: small files and large ones, superseded pages, a shrink and growth again.
struct Scene {
    dir: tempfile::TempDir,
    world: World,
    files: Vec<(FileInfo, Vec<u8>)>,
    listed: u64,
}

impl Scene {
    fn new() -> Self {
        let mut files = vec![
            file(1, 9, 60, 1..=60),
            file(10, 10, 60, [2, 30, 31, 60]),
            file(11, 14, 40, (1..=40).filter(|n| n % 3 == 0)),
            file(15, 15, 52, [7, 9].into_iter().chain(41..=52)),
            file(16, 16, 52, [7]),
        ];
        files.reverse();
        let listed = files.iter().map(|(file, _)| file.size).sum();
        Self { dir: tempfile::tempdir().unwrap(), world: World::system(), files, listed }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn temp(&self) -> PathBuf {
        self.dir.path().join("db.0123456789abcdef.tmp")
    }

    fn record(&self) -> PathBuf {
        with_suffix(&self.temp(), SUFFIX)
    }

    fn infos(&self) -> Vec<FileInfo> {
        self.files.iter().map(|(file, _)| *file).collect()
    }

    fn want(&self) -> Vec<u8> {
        (1..=52_u32)
            .flat_map(|n| {
                let txid = match n {
                    7 => 16,
                    9 | 41.. => 15,
                    n if n % 3 == 0 => 14,
                    2 | 31 => 10,
                    _ => 9,
                };
                page(n, txid)
            })
            .collect()
    }

    /// Restores from the start and stops before publishing. What the record says.
    fn interrupted(&self) -> String {
        let mut record = Record::create(&OsFs, &self.temp(), &self.infos(), self.listed).unwrap().unwrap();
        let publisher = Publisher::create_as(&OsFs, self.temp(), &self.output(), OwnerMode::DEFAULT_FILE).unwrap();
        let sources = self.files.iter().map(|(file, bytes)| Ok((*file, bytes.as_slice())));
        apply(sources, self.listed, Start::Empty, Some(&mut record), publisher.file()).unwrap();
        assert!(record.is_of_use());
        publisher.leave();
        assert!(std::fs::read(self.temp()).unwrap() == self.want());
        std::fs::read_to_string(self.record()).unwrap()
    }

    fn look(&self) -> Option<Left> {
        look(&self.world, &self.output(), None, &self.infos(), self.listed)
    }

    fn nothing_is_left(&self) -> bool {
        std::fs::read_dir(self.dir.path()).unwrap().count() == 0
    }
}

/// Overwrites what the lines do not claim, as if it had never been written.
fn forget_the_rest(temp: &Path, lines: &[&str]) {
    let mut bytes = std::fs::read(temp).unwrap();
    let mut kept = vec![false; bytes.len()];
    for line in &lines[1..] {
        let entry: Entry = serde_json::from_str(line.rsplit_once(' ').unwrap().0).unwrap();
        for (offset, len) in entry.pieces.into_iter().flat_map(|piece| piece.runs) {
            kept[offset as usize..offset as usize + len].fill(true);
        }
    }
    bytes.iter_mut().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(byte, _)| *byte = 0xaa);
    bytes.extend([0xbb; 3 * SIZE]);
    std::fs::write(temp, bytes).unwrap();
}

#[test]
fn a_restore_goes_on_from_every_entry_and_gives_the_same_bytes() {
    let scene = Scene::new();
    let text = scene.interrupted();
    let whole = std::fs::read(scene.temp()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 3, "{text}");
    let (mut inside, mut between) = (0, 0);
    for count in 2..=lines.len() {
        // With half a line behind, as a crash would leave it.
        let torn = lines.get(count).map_or("", |line| &line[..line.len() / 2]);
        std::fs::write(scene.record(), format!("{}\n{torn}", lines[..count].join("\n"))).unwrap();
        std::fs::write(scene.temp(), &whole).unwrap();
        forget_the_rest(&scene.temp(), &lines[..count]);
        let Left { temp, file, mut record, resumed, bytes } = scene.look().unwrap();
        let (done, midway) = (resumed.mark.done, resumed.mark.midway.clone());
        let offset = midway.as_ref().map_or(0, Midway::offset);
        if midway.is_some() {
            inside += 1
        } else {
            between += 1
        }
        let before: u64 = scene.files[..done].iter().map(|(file, _)| file.size).sum();
        assert_eq!(bytes, before + offset);
        let rest = scene.files[done..].iter().enumerate().map(|(n, (file, bytes))| {
            let from = if n == 0 { offset as usize } else { 0 };
            Ok((*file, &bytes[from..]))
        });
        let done = apply(rest, scene.listed, Start::Resumed(resumed), Some(&mut record), file.as_ref()).unwrap();
        assert_eq!((done.0.txid.get(), done.0.pages), (16, 52));
        assert!(std::fs::read(&temp).unwrap() == scene.want(), "from entry {count}");
        // And once more from where the second one was.
        drop((file, record));
        assert!(scene.look().is_some());
    }
    assert!(inside > 0 && between + inside == lines.len() - 1);
}

#[test]
fn what_does_not_fit_is_removed() {
    let change = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Scene));
    let damages: [Damage<'_>; 8] = [
        ("a byte of the file", &|scene| change(&scene.temp(), &|bytes| bytes[3 * SIZE] ^= 1)),
        ("a shorter file", &|scene| change(&scene.temp(), &|bytes| bytes.truncate(SIZE))),
        ("no file", &|scene| std::fs::remove_file(scene.temp()).unwrap()),
        ("an empty record", &|scene| change(&scene.record(), &Vec::clear)),
        ("a record without entries", &|scene| {
            change(&scene.record(), &|bytes| {
                let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
                bytes.truncate(end + 1);
            });
        }),
        ("another first line", &|scene| change(&scene.record(), &|bytes| bytes[12] ^= 1)),
        ("another plan", &|scene| scene.files[2].0.created = Timestamp::from_millis(2)),
        ("another mode", &|scene| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(scene.temp(), std::fs::Permissions::from_mode(0o777)).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let mut scene = Scene::new();
        scene.interrupted();
        damage(&mut scene);
        assert!(scene.look().is_none(), "{what}");
        assert!(scene.nothing_is_left(), "{what}");
    }
}

#[test]
fn a_restore_that_lives_is_left_alone_and_a_second_partial_goes() {
    let scene = Scene::new();
    scene.interrupted();
    let alive = Record::take_over(&OsFs, scene.record()).unwrap().unwrap();
    assert!(scene.look().is_none());
    assert!(scene.temp().exists() && scene.record().exists());
    drop(alive);

    let other = scene.dir.path().join("db.fedcba9876543210.tmp");
    std::fs::copy(scene.temp(), &other).unwrap();
    std::fs::copy(scene.record(), with_suffix(&other, SUFFIX)).unwrap();
    // Of another database.
    let foreign = scene.dir.path().join("other.fedcba9876543210.tmp-progress");
    std::fs::write(&foreign, "").unwrap();
    let left = scene.look().unwrap();
    assert_eq!(std::fs::read_dir(scene.dir.path()).unwrap().count(), 3);
    assert!(left.temp.exists() && foreign.exists());
}
