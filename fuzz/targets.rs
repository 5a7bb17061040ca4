//! What is fuzzed: one function per parser, each for any bytes. They return nothing and must not panic,
//! overflow, hang or take memory beyond what the format allows; where a parser has an inverse, both must agree.
//!
//! `cargo +nightly fuzz run <name>` drives them; `tests/format` plays the kept inputs with every test run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use litestream::config::{self, Environment, Surroundings};
use litestream::error::{Error, Result};
use litestream::ltx::{self, Decoder, PageIndex};
use litestream::replica::{FileInfo, Key};
use litestream::restore;
use litestream::server::FromBody;
use litestream::server::api::{PathRequest, RegisterRequest, SyncRequest};
use litestream::sys::{DirEntry, File, FileId, FileKind, FileStat, Fs, Lock, OpenMode, OwnerMode, World};
use litestream::types::{
    Level, PageSize, Timestamp, Txid, TxidRange, format_duration, format_timestamp, parse_duration, parse_timestamp,
};
use litestream::v3::{self, Piece, Segment, Snapshot};
use litestream::wal::{FrameReader, PageMap, WalChecksum, WalHeader};

/// A parser, by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 13] = [
    ("config", config),
    ("control", control),
    ("leftovers", leftovers),
    ("listings", listings),
    ("ltx_decode", ltx_decode),
    ("ltx_header", ltx_header),
    ("ltx_index", ltx_index),
    ("ltx_merge", ltx_merge),
    ("replica_url", replica_url),
    ("sftp", sftp),
    ("texts", texts),
    ("v3", v3),
    ("wal", wal),
];

/// A whole LTX file, page by page. One that is accepted must be accepted by the verifier as well.
pub fn ltx_decode(data: &[u8]) {
    let read = || -> Result<u64> {
        let mut decoder = Decoder::new(data)?;
        let mut page = vec![0; decoder.header().page_size.len()];
        while decoder.next_page(&mut page)?.is_some() {}
        Ok(decoder.pages())
    };
    let pages = read().ok();
    assert_eq!(pages, ltx::verify(data).ok().map(|(_, _, summary)| summary.pages));
}

/// The first 100 bytes. What is accepted encodes to what it was made of.
pub fn ltx_header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<{ ltx::Header::SIZE }>() else { return };
    if let Ok(header) = ltx::Header::decode(bytes) {
        let again = ltx::Header::decode(&header.encode()).expect("a header that was accepted");
        assert_eq!(header, again);
    }
}

/// The index at the end of a file, and every page it names.
pub fn ltx_index(data: &[u8]) {
    let file = Bytes(data.to_vec());
    let _ = ltx::is_full_image(&file);
    let Ok(index) = PageIndex::open(&file) else { return };
    let page_size = index.header().page_size;
    let mut page = vec![0; page_size.len()];
    for (pgno, at) in index.iter().take(64) {
        assert_eq!(index.find(pgno), Some(at));
        let _ = ltx::read_page(&file, at, pgno, page_size, &mut page);
    }
}

/// Up to four files, one behind the other, each preceded by its length in two bytes.
pub fn ltx_merge(mut data: &[u8]) {
    let mut inputs = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let (one, others) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        data = others;
        match Decoder::new(one) {
            Ok(decoder) if inputs.len() < 4 => inputs.push(decoder),
            _ => return,
        }
    }
    if let Ok((out, header, _)) = ltx::merge(inputs, Vec::new()) {
        let (again, ..) = ltx::verify(out.as_slice()).expect("what was merged without an error");
        assert_eq!(header, again);
    }
}

/// A write-ahead log, as it is and with the salts and checksums that it should have: no fuzzer guesses those.
pub fn wal(data: &[u8]) {
    wal_as_it_is(data);
    if let Some(repaired) = with_right_checksums(data.to_vec()) {
        wal_as_it_is(&repaired);
    }
}

fn with_right_checksums(mut data: Vec<u8>) -> Option<Vec<u8>> {
    let (head, frames) = data.split_first_chunk_mut::<32>()?;
    let page_size = u32::from_be_bytes(head[8..12].try_into().ok()?);
    PageSize::new(page_size).ok()?;
    let big_endian = head[3] & 1 == 1;
    let store = |sum: WalChecksum, out: &mut [u8]| {
        out[..4].copy_from_slice(&sum.s0.to_be_bytes());
        out[4..8].copy_from_slice(&sum.s1.to_be_bytes());
    };
    let mut sum = WalChecksum::default().update(big_endian, &head[..24]);
    store(sum, &mut head[24..]);
    for frame in frames.chunks_exact_mut(24 + page_size as usize) {
        frame[8..16].copy_from_slice(&head[16..24]);
        let (frame_head, page) = frame.split_at_mut(24);
        sum = sum.update(big_endian, &frame_head[..8]).update(big_endian, page);
        store(sum, &mut frame_head[16..]);
    }
    Some(data)
}

/// Header, then frames for as long as they continue its chain.
fn wal_as_it_is(data: &[u8]) {
    let Some((head, _)) = data.split_first_chunk::<32>() else { return };
    let Ok(header) = WalHeader::decode(head) else { return };
    let file = Bytes(data.to_vec());
    let start = WalHeader::SIZE;
    let reader = || FrameReader::new(&file, header.page_size, header.big_endian, header.salts, start, header.checksum);
    let mut page = vec![0; header.page_size.len()];
    // With frames kept in memory and without: both must give the same pages.
    let (mut kept, mut read_again) = (PageMap::default(), PageMap::caching(0));
    let segments = (kept.read(reader(), None), read_again.read(reader(), None));
    let (Ok(one), Ok(other)) = segments else { panic!("memory cannot fail") };
    assert_eq!(one, other);
    assert!(one.end <= data.len() as u64);
    let mut same = page.clone();
    for pgno in kept.pages().into_iter().take(64) {
        assert!(matches!(kept.copy_page(pgno, &file, header.page_size, &mut page), Ok(true)));
        assert!(matches!(read_again.copy_page(pgno, &file, header.page_size, &mut same), Ok(true)));
        assert_eq!(page, same);
    }
    let _ = PageMap::default().read(reader(), Some(1));
}

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let env = environment();
    let _ = config::parse(text, Surroundings { env: &env, fs: &Shelf::default() });
}

/// Replica URLs on the command line, one a line.
pub fn replica_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let urls: Vec<String> = text.lines().take(4).map(str::to_owned).collect();
    let env = environment();
    let _ = config::ad_hoc("/data/db", &urls, Surroundings { env: &env, fs: &Shelf::default() });
    for url in &urls {
        let _ = config::is_replica_url(url);
    }
}

/// Snapshot and segments of the old format: as [`ltx_merge`], the first file being the snapshot. The others
/// begin with a byte that says where in the log they belong.
pub fn v3(mut data: &[u8]) {
    let mut pieces = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let (one, others) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        data = others;
        let (place, one) = match one.split_first() {
            Some((place, one)) if !pieces.is_empty() => (*place, one),
            _ => (0, one),
        };
        let key = Key::new("piece").expect("a plain name");
        let (size, created) = (one.len() as u64, Timestamp::from_millis(0));
        let piece = match pieces.is_empty() {
            true => Piece::Snapshot(Snapshot { index: 0, key, size, created }),
            false => {
                let offset = if place == 0 { 0 } else { 32 + u64::from(place) * (4096 + 24) };
                Piece::Segment(Segment { index: 0, offset, key, size, created })
            }
        };
        pieces.push(Ok((piece, one)));
        if pieces.len() == 4 {
            break;
        }
    }
    let _ = v3::apply(pieces.into_iter(), &Sink);
}

/// Bodies of requests on the control socket.
pub fn control(data: &[u8]) {
    let _ = PathRequest::from_body("StopRequest", data);
    let _ = SyncRequest::from_body("SyncRequest", data);
    let _ = RegisterRequest::from_body("RegisterDatabaseRequest", data);
}

/// What lies beside a database that is being restored: a line for each of a follower's two files, then the record of
/// a restore that was killed, but for its first line and for the checksums, which no fuzzer guesses.
pub fn leftovers(data: &[u8]) {
    let _ = gone_on_from(data);
}

/// Files that need not be read again after [`leftovers`]; `None` if all is to begin anew.
pub fn gone_on_from(data: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(data).ok()?;
    let txids = |min, max| TxidRange::new(min, max).expect("in order");
    let (one, two, three) = (Txid::FIRST, Txid::FIRST.next(), Txid::FIRST.next().next());
    let of = |level, txids| FileInfo { level, txids, size: 2048, created: Timestamp::from_millis(0) };
    let files = [of(Level::L0, txids(three, three)), of(Level::SNAPSHOT, txids(one, two))];
    let listed: u64 = files.iter().map(|file| file.size).sum();
    let plan: String = files.iter().map(|file| format!("{file} {} {}\n", file.size, file.created.millis())).collect();
    let digest = ltx::crc64(plan.as_bytes());
    let plan = format!(r#"{{"version":1,"digest":{digest},"files":{},"bytes":{listed}}}"#, files.len());
    let mut lines = text.split('\n');
    let mut shelf = Shelf::default();
    for suffix in ["-txid", "-txid-next"] {
        shelf.put(suffix, lines.next().unwrap_or_default().into());
    }
    let (mut record, mut sum) = (String::new(), 0);
    for line in std::iter::once(plan.as_str()).chain(lines.take(8)) {
        sum = ltx::crc64(format!("{sum:016x} {line}").as_bytes());
        record.push_str(&format!("{line} {sum:016x}\n"));
    }
    shelf.put(".0123456789abcdef.tmp-progress", record.into_bytes());
    shelf.put(".0123456789abcdef.tmp", (0_u8..8).flat_map(|page| [page; 512]).collect());
    let world = World { fs: Arc::new(shelf), ..World::system() };
    let done = restore::read_leftovers(&world, Path::new(OUTPUT), &files, listed);
    assert!(done.is_none_or(|done| done <= files.len()));
    done
}

/// What servers answer when they are asked for a list: XML of WebDAV and OSS. For the others their own libraries,
/// or a derived JSON decoder, are between the server and us.
pub fn listings(data: &[u8]) {
    #[cfg(feature = "oss")]
    let _ = litestream::replica::oss::read_listing(data);
    #[cfg(feature = "webdav")]
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = litestream::replica::webdav::read_listing(text, "/dav/ltx/0/");
    }
    let _ = data;
}

/// A packet of an SFTP server. What it holds is never more than the packet itself.
pub fn sftp(data: &[u8]) {
    #[cfg(feature = "sftp")]
    if let Ok((names, bytes)) = litestream::replica::sftp::read_packet(data) {
        // A status text may have been made readable: three bytes for one.
        assert!(names + bytes / 3 <= data.len());
    }
    let _ = data;
}

/// Times, durations, TXIDs and file names. What is accepted must survive being written out.
pub fn texts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(at) = parse_timestamp(text) {
        assert_eq!(parse_timestamp(&format_timestamp(at, 3)).ok(), Some(at));
    }
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration));
    }
    if let Ok(txid) = text.parse::<Txid>() {
        assert_eq!(txid.to_string().parse::<Txid>().ok(), Some(txid));
    }
    if let Some(txids) = ltx::parse_file_name(text) {
        assert_eq!(ltx::file_name(txids), text);
        assert!(TxidRange::new(txids.min(), txids.max()).is_ok());
    }
    let _ = text.parse::<u32>().map(PageSize::new);
    let _ = Key::new(text);
}

fn environment() -> Environment {
    let vars = [("HOME", "/root"), ("BUCKET", "b"), ("EMPTY", "")];
    Environment::new(vars.map(|(name, value)| (name.to_owned(), value.to_owned())), PathBuf::from("/work"))
}

/// A file that cannot be written to.
struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A file that takes everything and keeps nothing.
#[derive(Debug)]
struct Sink;

/// Where the database of [`leftovers`] is to be.
const OUTPUT: &str = "/data/db";

/// A disk that cannot be written to, with one directory on it.
#[derive(Debug, Default)]
struct Shelf(Vec<(String, Vec<u8>)>);

impl Shelf {
    /// Adds the file whose name is that of the database and `suffix`.
    fn put(&mut self, suffix: &str, content: Vec<u8>) {
        self.0.push((format!("{OUTPUT}{suffix}"), content));
    }

    fn get(&self, path: &Path) -> Result<Bytes> {
        let found = self.0.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, content)| Bytes(content.clone())).ok_or_else(not_there)
    }
}

fn not_there() -> Error {
    Error::io("open", std::io::Error::from_raw_os_error(2))
}

fn stat(len: u64) -> FileStat {
    let epoch = Timestamp::from_millis(0);
    FileStat {
        kind: FileKind::File,
        len,
        modified: epoch,
        changed: epoch,
        id: FileId { dev: 0, ino: 0 },
        owner_mode: OwnerMode { owner: Some((0, 0)), ..OwnerMode::DEFAULT_FILE },
    }
}

impl File for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(not_there())
    }
    fn set_len(&self, _: u64) -> Result<()> {
        Ok(())
    }
    fn claim(&self) -> Result<Option<bool>> {
        Ok(Some(true))
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn stat(&self) -> Result<FileStat> {
        Ok(stat(self.0.len() as u64))
    }
    fn set_modified(&self, _: Timestamp) -> Result<()> {
        Ok(())
    }
}

impl File for Sink {
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Ok(0)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, _: u64) -> Result<()> {
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn stat(&self) -> Result<FileStat> {
        Ok(stat(0))
    }
    fn set_modified(&self, _: Timestamp) -> Result<()> {
        Ok(())
    }
}

impl Fs for Shelf {
    fn open(&self, path: &Path, _: OpenMode) -> Result<Box<dyn File>> {
        Ok(Box::new(self.get(path)?))
    }
    fn stat(&self, path: &Path) -> Result<FileStat> {
        self.get(path)?.stat()
    }
    fn list(&self, _: &Path) -> Result<Vec<DirEntry>> {
        let names = self.0.iter().filter_map(|(path, _)| Path::new(path).file_name()?.to_str());
        Ok(names.map(|name| DirEntry { name: name.to_owned(), kind: FileKind::File }).collect())
    }
    fn create_dir_all(&self, _: &Path, _: OwnerMode) -> Result<()> {
        Err(not_there())
    }
    fn rename(&self, _: &Path, _: &Path) -> Result<()> {
        Err(not_there())
    }
    fn rename_new(&self, _: &Path, _: &Path) -> Result<()> {
        Err(not_there())
    }
    fn lock(&self, _: &Path, _: OwnerMode, _: &str) -> Result<Box<dyn Lock>> {
        Err(not_there())
    }
    fn remove_file(&self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn user(&self) -> Option<u32> {
        Some(0)
    }
    fn remove_dir_all(&self, _: &Path) -> Result<()> {
        Err(not_there())
    }
    fn sync_dir(&self, _: &Path) -> Result<()> {
        Err(not_there())
    }
}
