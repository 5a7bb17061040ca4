//! Buffered input that knows its byte offset, and files as `std::io::Read`/`Write`.

use std::io::{self, Read, Write};
use std::ops::Deref;

use crate::error::{Error, Result};
use crate::sys::File;

/// Buffer of a large input. Small files never grow that far: merges open many at once.
const MAX_BUFFER: usize = 256 * 1024;
const MIN_BUFFER: usize = 16 * 1024;

/// Hands out contiguous bytes of a reader.
#[derive(Debug)]
pub(super) struct Source<R> {
    reader: R,
    buf: Vec<u8>,
    /// Unread bytes are `buf[pos..end]`.
    pos: usize,
    end: usize,
    /// Offset of `buf[pos]` in the input.
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buf: vec![0; MIN_BUFFER], pos: 0, end: 0, offset: 0 }
    }

    /// Like `new`, for input whose first byte is at `offset` of the whole.
    pub(super) fn at_offset(reader: R, offset: u64) -> Self {
        Self { offset, ..Self::new(reader) }
    }

    /// Offset of the next unread byte.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// A violated rule at the next unread byte.
    pub(super) fn corrupt(&self, message: impl Into<String>) -> Error {
        corrupt_at(message, self.offset)
    }

    /// The next `len` bytes, still unread.
    ///
    /// # Errors
    /// `EOF` when there is none left, `unexpected EOF` when there are fewer; I/O errors.
    pub(super) fn require(&mut self, len: usize) -> Result<&[u8]> {
        if self.available() < len {
            self.fill(len)?;
            match self.available() {
                0 if len > 0 => return Err(self.corrupt("EOF")),
                n if n < len => return Err(corrupt_at("unexpected EOF", self.offset + n as u64)),
                _ => {}
            }
        }
        Ok(&self.buf[self.pos..self.pos + len])
    }

    /// The next `N` bytes, read.
    ///
    /// # Errors
    /// As [`Source::require`].
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.require(N)?);
        self.consume(N);
        Ok(out)
    }

    /// At least one and at most `max` of the next bytes, still unread.
    ///
    /// # Errors
    /// `EOF`; I/O errors.
    pub(super) fn require_some(&mut self, max: u64) -> Result<&[u8]> {
        self.require(1)?;
        let len = usize::try_from(max).map_or(self.available(), |max| max.min(self.available()));
        Ok(&self.buf[self.pos..self.pos + len])
    }

    /// Marks bytes that `require` returned as read. They stay in place until the next `require`.
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.available());
        self.pos += len;
        self.offset += len as u64;
    }

    /// The last `len` bytes read, as long as nothing was required since.
    pub(super) fn consumed(&self, len: usize) -> &[u8] {
        &self.buf[self.pos.saturating_sub(len)..self.pos]
    }

    /// Whether nothing is left.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        if self.available() == 0 {
            self.fill(1)?;
        }
        Ok(self.available() == 0)
    }

    fn available(&self) -> usize {
        self.end - self.pos
    }

    fn fill(&mut self, len: usize) -> Result<()> {
        self.buf.copy_within(self.pos..self.end, 0);
        self.end -= self.pos;
        self.pos = 0;
        let long = self.offset >= self.buf.len() as u64 && self.buf.len() < MAX_BUFFER;
        let wanted = len.max(if long { self.buf.len() * 4 } else { 0 });
        if self.buf.len() < wanted {
            self.buf.resize(wanted, 0);
        }
        while self.end < len {
            match self.reader.read(&mut self.buf[self.end..]) {
                Ok(0) => break,
                // A reader that claims more than it was given room for is not worth a panic.
                Ok(n) => self.end = (self.end + n).min(self.buf.len()),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(Error::io("read ltx file", err)),
            }
        }
        Ok(())
    }
}

/// A violated rule at a byte offset of the file.
pub(super) fn corrupt_at(message: impl Into<String>, offset: u64) -> Error {
    Error::corrupt(message).at(format_args!("at offset {offset}"))
}

/// A file as a buffered [`Read`]: `FileReader::new(&*file)` or `FileReader::new(boxed)`.
#[derive(Debug)]
pub struct FileReader<F> {
    file: F,
    /// Offset in the file of the byte after the buffer.
    offset: u64,
    buf: Vec<u8>,
    pos: usize,
    end: usize,
}

impl<F> FileReader<F>
where
    F: Deref,
    F::Target: File,
{
    /// Reads from the start of the file.
    pub fn new(file: F) -> Self {
        Self::at(file, 0)
    }

    /// Reads from a byte offset.
    pub fn at(file: F, offset: u64) -> Self {
        Self { file, offset, buf: Vec::new(), pos: 0, end: 0 }
    }

    fn read_file(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.offset)?.min(buf.len());
        self.offset += n as u64;
        Ok(n)
    }
}

impl<F> Read for FileReader<F>
where
    F: Deref,
    F::Target: File,
{
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.pos == self.end {
            // Our own decoder asks for large pieces: those need no second copy.
            if out.len() >= MIN_BUFFER {
                return self.read_file(out);
            }
            let mut buf = std::mem::take(&mut self.buf);
            buf.resize(MAX_BUFFER, 0);
            let n = self.read_file(&mut buf);
            self.buf = buf;
            (self.pos, self.end) = (0, n?);
        }
        let n = out.len().min(self.end - self.pos);
        out[..n].copy_from_slice(&self.buf[self.pos..self.pos + n]);
        self.pos += n;
        Ok(n)
    }
}

/// A file as an unbuffered [`Write`], written from an offset on. The encoder does its own buffering.
#[derive(Debug)]
pub struct FileWriter<F> {
    file: F,
    offset: u64,
}

impl<F> FileWriter<F>
where
    F: Deref,
    F::Target: File,
{
    /// Writes from the start of the file.
    pub fn new(file: F) -> Self {
        Self { file, offset: 0 }
    }

    /// Byte offset of the next write.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl<F> Write for FileWriter<F>
where
    F: Deref,
    F::Target: File,
{
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(buf, self.offset)?;
        self.offset += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::sys::{Fs, OpenMode, OsFs, OwnerMode};

    /// Returns one byte per call, and an interruption before each.
    struct Trickle<'a>(&'a [u8], bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = self.0.len().min(buf.len()).min(1);
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn a_reader_may_return_as_little_as_it_likes() {
        let mut source = Source::new(Trickle(b"abcdef", false));
        assert_eq!(&source.take::<4>().unwrap(), b"abcd");
        assert_eq!(source.consumed(3), b"bcd");
        let err = source.require(3).unwrap_err();
        assert_eq!(err.to_string(), "unexpected EOF at offset 6");
        source.consume(2);
        assert!(source.at_end().unwrap());
        assert_eq!(source.require(1).unwrap_err().to_string(), "EOF at offset 6");
    }

    #[test]
    fn the_buffer_grows_with_the_input_up_to_its_bound() {
        let input = vec![7u8; 3 * MAX_BUFFER];
        let mut source = Source::new(input.as_slice());
        assert_eq!(source.buf.len(), MIN_BUFFER);
        while !source.at_end().unwrap() {
            let n = source.require_some(u64::MAX).unwrap().len();
            source.consume(n);
        }
        assert_eq!(source.buf.len(), MAX_BUFFER);
        assert_eq!(source.offset(), input.len() as u64);
    }

    #[test]
    fn an_error_of_the_reader_keeps_its_kind() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(Error::new(ErrorKind::Unavailable, "get object").into())
            }
        }
        assert_eq!(Source::new(Broken).require(1).unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn files_read_and_write_as_streams() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs.open(&dir.path().join("x"), OpenMode::CreateNew(OwnerMode::PRIVATE_FILE)).unwrap();
        let content: Vec<u8> = (0..MAX_BUFFER * 2 + 5).map(|n| (n % 251) as u8).collect();
        let mut writer = FileWriter::new(&*file);
        writer.write_all(&content[..10]).unwrap();
        writer.write_all(&content[10..]).unwrap();
        assert_eq!(writer.offset(), content.len() as u64);

        let mut reader = FileReader::new(file);
        let mut start = [0; 3];
        reader.read_exact(&mut start).unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(start, content[..3]);
        assert_eq!(rest, content[3..]);
    }
}
