//! SFTP version 3 as bytes (draft-ietf-secsh-filexfer-02, and OpenSSH's extensions): what we ask, what comes back.
//!
//! | request | type | body after the request id |
//! |---|---|---|
//! | open | 3 | path, flags u32, attributes |
//! | close | 4 | handle |
//! | read | 5 | handle, offset u64, length u32 |
//! | write | 6 | handle, offset u64, data |
//! | fstat | 8 | handle |
//! | fsetstat | 10 | handle, attributes |
//! | opendir, readdir | 11, 12 | path; handle |
//! | remove, mkdir, stat | 13, 14, 17 | path (mkdir: attributes follow) |
//! | rename | 18 | old path, new path |
//! | extended | 200 | name, fields of that name |
//!
//! Handles and names are byte strings: servers put binary numbers into handles. Decoding is total: what does not
//! fit is an error, and nothing is allocated beyond the packet itself.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{Error, Result};

/// Longest packet accepted. OpenSSH's own limit; a server that sends more is not one we asked.
pub(super) const MAX_PACKET: usize = 256 * 1024;

/// For reading.
pub(super) const READ: u32 = 0x01;
/// For writing, as a new file.
pub(super) const WRITE_NEW: u32 = 0x02 | 0x08 | 0x20;

const VERSION: u32 = 3;
const HAS_SIZE: u32 = 0x01;
const HAS_OWNER: u32 = 0x02;
const HAS_MODE: u32 = 0x04;
const HAS_TIMES: u32 = 0x08;
const HAS_MORE: u32 = 0x8000_0000;

/// Replace the target of a rename; both paths.
pub(super) const POSIX_RENAME: &str = "posix-rename@openssh.com";
/// A second name for a file, which must be new; both paths.
pub(super) const HARDLINK: &str = "hardlink@openssh.com";
/// Make a file durable; its handle.
pub(super) const FSYNC: &str = "fsync@openssh.com";

/// What is asked.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Open {
        path: &'a str,
        flags: u32,
    },
    Close {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        len: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        data: &'a [u8],
    },
    Fstat {
        handle: &'a [u8],
    },
    /// Access and modification time, in seconds.
    SetTimes {
        handle: &'a [u8],
        seconds: u32,
    },
    OpenDir {
        path: &'a str,
    },
    ReadDir {
        handle: &'a [u8],
    },
    Remove {
        path: &'a str,
    },
    MakeDir {
        path: &'a str,
    },
    Stat {
        path: &'a str,
    },
    Rename {
        from: &'a str,
        to: &'a str,
    },
    Extended {
        name: &'a str,
        fields: &'a [&'a [u8]],
    },
}

/// What came back.
#[derive(Debug)]
pub(super) enum Reply {
    Status(Status),
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<Entry>),
    Attributes(Attributes),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const NO_CONNECTION: u32 = 6;
    pub(super) const CONNECTION_LOST: u32 = 7;
    pub(super) const UNSUPPORTED: u32 = 8;
}

/// One line of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Bytes,
    pub(super) attributes: Attributes,
}

/// Facts about a file, as far as the server tells them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    mode: Option<u32>,
    /// Seconds since 1970.
    pub(super) modified: Option<u32>,
}

impl Attributes {
    const KIND: u32 = 0o170_000;

    /// `None` if the server does not tell.
    pub(super) fn is_file(&self) -> Option<bool> {
        self.mode.filter(|mode| mode & Self::KIND != 0).map(|mode| mode & Self::KIND == 0o100_000)
    }

    /// `None` if the server does not tell.
    pub(super) fn is_dir(&self) -> Option<bool> {
        self.mode.filter(|mode| mode & Self::KIND != 0).map(|mode| mode & Self::KIND == 0o040_000)
    }
}

/// The first packet of a session.
pub(super) fn encode_init() -> Bytes {
    let mut out = BytesMut::new();
    out.put_u32(5);
    out.put_u8(1);
    out.put_u32(VERSION);
    out.freeze()
}

impl Request<'_> {
    /// The packet, with its length in front.
    pub(super) fn encode(&self, id: u32) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u32(0);
        let start = |out: &mut BytesMut, kind: u8| {
            out.put_u8(kind);
            out.put_u32(id);
        };
        match self {
            Self::Open { path, flags } => {
                start(&mut out, 3);
                put_string(&mut out, path.as_bytes());
                out.put_u32(*flags);
                out.put_u32(0);
            }
            Self::Close { handle } => {
                start(&mut out, 4);
                put_string(&mut out, handle);
            }
            Self::Read { handle, offset, len } => {
                start(&mut out, 5);
                put_string(&mut out, handle);
                out.put_u64(*offset);
                out.put_u32(*len);
            }
            Self::Write { handle, offset, data } => {
                out.reserve(data.len() + handle.len() + 32);
                start(&mut out, 6);
                put_string(&mut out, handle);
                out.put_u64(*offset);
                put_string(&mut out, data);
            }
            Self::Fstat { handle } => {
                start(&mut out, 8);
                put_string(&mut out, handle);
            }
            Self::SetTimes { handle, seconds } => {
                start(&mut out, 10);
                put_string(&mut out, handle);
                out.put_u32(HAS_TIMES);
                out.put_u32(*seconds);
                out.put_u32(*seconds);
            }
            Self::OpenDir { path } => {
                start(&mut out, 11);
                put_string(&mut out, path.as_bytes());
            }
            Self::ReadDir { handle } => {
                start(&mut out, 12);
                put_string(&mut out, handle);
            }
            Self::Remove { path } => {
                start(&mut out, 13);
                put_string(&mut out, path.as_bytes());
            }
            Self::MakeDir { path } => {
                start(&mut out, 14);
                put_string(&mut out, path.as_bytes());
                out.put_u32(0);
            }
            Self::Stat { path } => {
                start(&mut out, 17);
                put_string(&mut out, path.as_bytes());
            }
            Self::Rename { from, to } => {
                start(&mut out, 18);
                put_string(&mut out, from.as_bytes());
                put_string(&mut out, to.as_bytes());
            }
            Self::Extended { name, fields } => {
                start(&mut out, 200);
                put_string(&mut out, name.as_bytes());
                for field in *fields {
                    put_string(&mut out, field);
                }
            }
        }
        let len = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&len.to_be_bytes());
        out.freeze()
    }
}

fn put_string(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

/// The answer to the first packet: names of the extensions the server offers.
pub(super) fn decode_version(packet: &mut Bytes) -> Result<Vec<String>> {
    if take_u8(packet)? != 2 {
        return Err(Error::corrupt("sftp: the server's first packet is not a version"));
    }
    let version = take_u32(packet)?;
    if version != VERSION {
        return Err(Error::corrupt(format!("sftp: the server speaks version {version} of the protocol, not 3")));
    }
    let mut extensions = Vec::new();
    while !packet.is_empty() {
        let name = take_string(packet)?;
        take_string(packet)?;
        extensions.push(String::from_utf8_lossy(&name).into_owned());
    }
    Ok(extensions)
}

/// A packet without its length: the id of the request it answers, and the answer.
pub(super) fn decode_reply(packet: &mut Bytes) -> Result<(u32, Reply)> {
    let kind = take_u8(packet)?;
    let id = take_u32(packet)?;
    let reply = match kind {
        101 => {
            let code = take_u32(packet)?;
            // Old servers leave the text out.
            let message = if packet.is_empty() { Bytes::new() } else { take_string(packet)? };
            Reply::Status(Status { code, message: printable(&message) })
        }
        102 => Reply::Handle(take_string(packet)?),
        103 => Reply::Data(take_string(packet)?),
        104 => {
            let count = take_u32(packet)?;
            let mut entries = Vec::new();
            for _ in 0..count {
                let name = take_string(packet)?;
                // How `ls -l` would show it.
                take_string(packet)?;
                entries.push(Entry { name, attributes: take_attributes(packet)? });
            }
            Reply::Names(entries)
        }
        105 => Reply::Attributes(take_attributes(packet)?),
        other => return Err(Error::corrupt(format!("sftp: unknown packet of type {other}"))),
    };
    Ok((id, reply))
}

fn take_attributes(packet: &mut Bytes) -> Result<Attributes> {
    let has = take_u32(packet)?;
    let mut found = Attributes::default();
    if has & HAS_SIZE != 0 {
        found.size = Some(packet.try_get_u64().map_err(|_| short())?);
    }
    if has & HAS_OWNER != 0 {
        take_u32(packet)?;
        take_u32(packet)?;
    }
    if has & HAS_MODE != 0 {
        found.mode = Some(take_u32(packet)?);
    }
    if has & HAS_TIMES != 0 {
        take_u32(packet)?;
        found.modified = Some(take_u32(packet)?);
    }
    if has & HAS_MORE != 0 {
        for _ in 0..take_u32(packet)? {
            take_string(packet)?;
            take_string(packet)?;
        }
    }
    Ok(found)
}

fn take_u8(packet: &mut Bytes) -> Result<u8> {
    packet.try_get_u8().map_err(|_| short())
}

fn take_u32(packet: &mut Bytes) -> Result<u32> {
    packet.try_get_u32().map_err(|_| short())
}

fn take_string(packet: &mut Bytes) -> Result<Bytes> {
    let len = take_u32(packet)? as usize;
    if len > packet.len() {
        return Err(short());
    }
    Ok(packet.split_to(len))
}

fn short() -> Error {
    Error::corrupt("sftp: a packet ends too early")
}

/// What a server says is shown to people, and may not steer their terminal.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(parts: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        parts.iter().for_each(|part| put_string(&mut out, part));
        out.to_vec()
    }

    #[test]
    fn requests_are_laid_out_as_the_draft_says() {
        let sent = Request::Read { handle: b"\x00\xff", offset: 7, len: 9 }.encode(5);
        let want =
            [&[0, 0, 0, 23, 5, 0, 0, 0, 5, 0, 0, 0, 2, 0, 255][..], &7_u64.to_be_bytes(), &[0, 0, 0, 9]].concat();
        assert_eq!(sent, want);
        let sent = Request::Extended { name: POSIX_RENAME, fields: &[b"a", b"b"] }.encode(1);
        let body = strings(&[POSIX_RENAME.as_bytes(), b"a", b"b"]);
        assert_eq!(sent[4..], [&[200, 0, 0, 0, 1][..], &body].concat());
        assert_eq!(sent[..4], u32::try_from(body.len() + 5).unwrap().to_be_bytes());
    }

    #[test]
    fn handles_and_names_are_bytes() {
        let mut packet = Bytes::from([&[102, 0, 0, 0, 9][..], &strings(&[b"\x00\x00\x00\x80"])].concat());
        let (id, reply) = decode_reply(&mut packet).unwrap();
        assert!(matches!(reply, Reply::Handle(handle) if id == 9 && handle[..] == [0, 0, 0, 0x80]));
    }

    #[test]
    fn a_directory_is_read_with_what_the_server_tells() {
        let mut body = vec![104, 0, 0, 0, 1, 0, 0, 0, 1];
        body.extend(strings(&[b"x.ltx", b"-rw-r--r-- x.ltx"]));
        body.extend([0, 0, 0, 0x0d]);
        body.extend(12_u64.to_be_bytes());
        body.extend(0o100_644_u32.to_be_bytes());
        body.extend(1_u32.to_be_bytes());
        body.extend(2_u32.to_be_bytes());
        let (_, reply) = decode_reply(&mut Bytes::from(body)).unwrap();
        let Reply::Names(entries) = reply else { panic!() };
        assert_eq!(entries[0].name, "x.ltx");
        assert_eq!(entries[0].attributes.size, Some(12));
        assert_eq!(entries[0].attributes.modified, Some(2));
        assert_eq!(entries[0].attributes.is_file(), Some(true));
        assert_eq!(entries[0].attributes.is_dir(), Some(false));
    }

    #[test]
    fn a_count_that_lies_ends_with_the_packet() {
        let mut packet = Bytes::from_static(&[104, 0, 0, 0, 1, 255, 255, 255, 255]);
        assert!(decode_reply(&mut packet).is_err());
        assert!(decode_version(&mut Bytes::from_static(&[2, 0, 0, 0, 6])).is_err());
    }

    #[test]
    fn the_extensions_of_a_server_are_listed() {
        let mut packet = Bytes::from([&[2, 0, 0, 0, 3][..], &strings(&[FSYNC.as_bytes(), b"1"])].concat());
        assert_eq!(decode_version(&mut packet).unwrap(), [FSYNC]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_reply(&mut Bytes::from(bytes.clone()));
            let _ = decode_version(&mut Bytes::from(bytes));
        }
    }
}
