"""An independent reader of LTX files: header, page index, pages, checksum.

It shares no code with the program under test and none with the reference, so that the rigs can assert on what was
written without trusting either. Only what the rigs need; errors are `LtxError`.
"""

import os
import struct
from dataclasses import dataclass

HEADER_SIZE = 100
TRAILER_SIZE = 16
NO_CHECKSUM = 0x2


class LtxError(Exception):
    """The file is not a well-formed LTX file."""


@dataclass(frozen=True)
class Header:
    flags: int
    page_size: int
    commit: int
    min_txid: int
    max_txid: int
    timestamp_ms: int
    pre_apply: int
    wal_offset: int
    wal_size: int
    salt1: int
    salt2: int
    node_id: int

    @property
    def lock_page(self):
        return 0x40000000 // self.page_size + 1

    @property
    def wal_end(self):
        return self.wal_offset + self.wal_size


def decode_header(data):
    if len(data) < HEADER_SIZE:
        raise LtxError(f"header is {len(data)} bytes")
    if data[:4] != b"LTX1":
        raise LtxError("bad magic")
    fields = struct.unpack(">IIIQQqQqqIIQ", data[4:80])
    header = Header(*fields)
    if header.flags & ~NO_CHECKSUM:
        raise LtxError(f"unknown flags {header.flags:#x}")
    size = header.page_size
    if not 512 <= size <= 65536 or size & (size - 1):
        raise LtxError(f"page size {size}")
    if not 1 <= header.min_txid <= header.max_txid:
        raise LtxError(f"TXIDs {header.min_txid}-{header.max_txid}")
    return header


def read_header(path):
    with open(path, "rb") as f:
        return decode_header(f.read(HEADER_SIZE))


def _uvarint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise LtxError("page index: bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def read_index(path):
    """[(pgno, offset, size)] in page order, checked for order and for staying inside the page block."""
    with open(path, "rb") as f:
        length = f.seek(0, os.SEEK_END)
        if length < HEADER_SIZE + 6 + 1 + 8 + TRAILER_SIZE:
            raise LtxError(f"file is only {length} bytes")
        f.seek(length - TRAILER_SIZE - 8)
        size = struct.unpack(">Q", f.read(8))[0]
        start = length - TRAILER_SIZE - 8 - size
        if size < 1 or start < HEADER_SIZE + 6:
            raise LtxError(f"page index size {size}")
        f.seek(start)
        data = f.read(size)
    entries, at, expected = [], 0, HEADER_SIZE
    while True:
        pgno, at = _uvarint(data, at)
        if pgno == 0:
            break
        offset, at = _uvarint(data, at)
        frame, at = _uvarint(data, at)
        if entries and pgno <= entries[-1][0]:
            raise LtxError(f"page index: page {pgno} after {entries[-1][0]}")
        if offset != expected:
            raise LtxError(f"page index: page {pgno} at {offset}, expected {expected}")
        expected = offset + frame
        entries.append((pgno, offset, frame))
    if at != len(data):
        raise LtxError("page index: bytes after its end")
    if expected + 6 != start:
        raise LtxError("page index does not follow the page block")
    return entries


def is_full_image(path):
    """Does the file hold every page of the database (lock page aside)?"""
    header = read_header(path)
    lock = 1 if header.commit >= header.lock_page else 0
    return len(read_index(path)) == header.commit - lock


def lz4_block(data, size):
    """Decompresses one raw LZ4 block that must yield exactly `size` bytes."""
    out, at, end = bytearray(), 0, len(data)
    try:
        while at < end:
            token = data[at]
            at += 1
            literals = token >> 4
            if literals == 15:
                while True:
                    more = data[at]
                    at += 1
                    literals += more
                    if more != 255:
                        break
            if at + literals > end:
                raise LtxError("LZ4: literals past the end")
            out += data[at:at + literals]
            at += literals
            if at == end:
                break
            distance = data[at] | data[at + 1] << 8
            at += 2
            length = (token & 15) + 4
            if token & 15 == 15:
                while True:
                    more = data[at]
                    at += 1
                    length += more
                    if more != 255:
                        break
            if not 0 < distance <= len(out):
                raise LtxError("LZ4: bad match offset")
            if len(out) + length > size:
                raise LtxError("LZ4: output too long")
            if distance >= length:
                out += out[-distance:len(out) - distance + length]
            else:
                piece = bytes(out[-distance:])
                out += (piece * (length // distance + 1))[:length]
    except IndexError:
        raise LtxError("LZ4: block ends early") from None
    if len(out) != size:
        raise LtxError(f"LZ4: {len(out)} bytes instead of {size}")
    return bytes(out)


def _lz4_frame(data, size):
    """One page written by Litestream up to 0.5.15: an LZ4 frame with a single block."""
    if data[:4] != b"\x04\x22\x4d\x18":
        raise LtxError("LZ4 frame: bad magic")
    word = struct.unpack("<I", data[7:11])[0]
    body = data[11:11 + (word & 0x7FFFFFFF)]
    return body if word >> 31 else lz4_block(body, size)


def _crc_tables():
    """Eight tables: slicing-by-8 makes the pure Python CRC about three times faster."""
    first = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
        first.append(crc)
    tables = [first]
    for _ in range(7):
        tables.append([first[value & 0xFF] ^ value >> 8 for value in tables[-1]])
    return tables


_TABLES = None


def crc64(data, crc=0):
    """CRC-64/GO-ISO of `data`, continuing from `crc`."""
    global _TABLES
    _TABLES = _TABLES or _crc_tables()
    t0, t1, t2, t3, t4, t5, t6, t7 = _TABLES
    crc ^= 0xFFFFFFFFFFFFFFFF
    whole = len(data) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        crc ^= word
        crc = (t7[crc & 255] ^ t6[crc >> 8 & 255] ^ t5[crc >> 16 & 255] ^ t4[crc >> 24 & 255]
               ^ t3[crc >> 32 & 255] ^ t2[crc >> 40 & 255] ^ t1[crc >> 48 & 255] ^ t0[crc >> 56])
    for byte in data[whole:]:
        crc = t0[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFFFFFFFFFF


def read_pages(path, verify=True):
    """(header, {pgno: bytes}); with `verify` the file checksum is recomputed as well."""
    with open(path, "rb") as f:
        data = f.read()
    header = decode_header(data)
    index = read_index(path)
    pages = {}
    crc = crc64(data[:HEADER_SIZE]) if verify else 0
    at = HEADER_SIZE
    for pgno, offset, size in index:
        stored, flags = struct.unpack(">IH", data[offset:offset + 6])
        if stored != pgno:
            raise LtxError(f"index says page {pgno}, the frame says {stored}")
        if pgno > header.commit or pgno == header.lock_page:
            raise LtxError(f"page {pgno} must not be here (commit {header.commit})")
        if flags == 1:
            prefix = 10
            length = struct.unpack(">I", data[offset + 6:offset + 10])[0]
            if prefix + length != size:
                raise LtxError(f"page {pgno}: frame size")
            page = lz4_block(data[offset + 10:offset + 10 + length], header.page_size)
        elif flags == 0:
            prefix = 6
            page = _lz4_frame(data[offset + 6:offset + size], header.page_size)
        else:
            raise LtxError(f"page {pgno}: flags {flags:#x}")
        if verify:
            crc = crc64(page, crc64(data[offset:offset + prefix], crc))
        pages[pgno] = page
        at = offset + size
    if data[at:at + 6] != bytes(6):
        raise LtxError("end of page block is missing")
    if verify:
        crc = crc64(data[at:-8], crc) | 1 << 63
        if crc != struct.unpack(">Q", data[-8:])[0]:
            raise LtxError("file checksum mismatch")
    return header, pages


if __name__ == "__main__":
    import sys
    for name in sys.argv[1:]:
        head, content = read_pages(name)
        print(f"{name}: {head} pages={len(content)}")
