#!/usr/bin/env python3
"""Replicas made to harm whoever restores them: refused, by name, and in bounded memory and time?

One LTX object of every size from 100 bytes to `--largest`, spaced evenly in the logarithm, in each of the ways below, and a few
replicas whose names are the trap. The program restores each under a limit on its address space. It must fail, name the object, leave
nothing at the destination, and never take more than 64 MiB of memory.

zeros     a header, then a hole
commit    a database of 2^32 - 1 pages, one page in it
block     one page that says it takes all of the object
giant     one page that says it takes 4 GiB
pgno      page 2^32 - 1 of a database of 2^31 pages
pages     pages that are right, as many as fit, and no end
index     a page, the end of the pages, and an index of all the rest
trailer   pages that are right, and an end that says other lengths
v3        a snapshot of 0.3.x: a frame of LZ4 that announces 2^62 bytes, then a hole
segment   a log of 0.3.x after a snapshot: a hole
"""

import os
import shutil
import struct
import sys
import time

import common

LIMIT_MB = 64
ADDRESS_SPACE = 2 << 30
PAGE = 65536
NAME = "0000000000000001-0000000000000001.ltx"


def header(commit, page_size=PAGE):
    return b"LTX1" + struct.pack(">IIIQQqQqqIIQ", 2, page_size, commit, 1, 1, 1_700_000_000_000, 0, 0, 0, 0, 0, 0) + bytes(20)


def frame(pgno, content):
    """A page that does not compress, as one LZ4 block of literals."""
    left = len(content) - 15
    block = b"\xf0" + b"\xff" * (left // 255) + bytes([left % 255]) + content
    return struct.pack(">IHI", pgno, 1, len(block)) + block


def frames(room, content):
    pgno = 1
    while room > 0:
        data = frame(pgno, content)[:room]
        room -= len(data)
        pgno += 1
        yield data


def write(path, pieces, size):
    """`pieces`, cut or extended by a hole to `size` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        for piece in pieces:
            f.write(piece[:size - f.tell()])
        f.truncate(size)


def ltx(kind, content):
    def pieces(size):
        many = min(0xFFFFFFFF, size // 12)
        yield header({"commit": 0xFFFFFFFF, "pgno": 1 << 31, "zeros": many, "index": 1, "trailer": max(1, (size - 200) // (PAGE + 300))}.get(kind, max(1, many)))
        if kind == "commit":
            yield frame(1, content)
        elif kind == "block":
            yield struct.pack(">IHI", 1, 1, min(0xFFFFFFFF, size - 110 if size > 110 else 1))
        elif kind == "giant":
            yield struct.pack(">IHI", 1, 1, 0xFFFFFFFF)
        elif kind == "pgno":
            yield frame(0xFFFFFFFF, content)
        elif kind == "pages":
            yield from frames(size - 100, content)
        elif kind == "trailer":
            whole = len(frame(1, content))
            count = max(1, (size - 200) // (PAGE + 300))
            yield from (frame(n + 1, content) for n in range(count if size > whole else 0))
            yield bytes(6) + b"\xff" * 40
        elif kind == "index":
            yield frame(1, content)
            yield bytes(6)
            yield b"\x01\x64" * 50
    return pieces


def lz4_head():
    """Frame header: version 1, independent blocks of 4 MiB, content size 2^62. Its checksum is wrong, and so is all behind."""
    return bytes.fromhex("04224d18") + bytes([0x68, 0x70]) + struct.pack("<Q", 1 << 62) + b"\x00" + struct.pack("<I", 4 << 20)


class Hostile:
    def __init__(self, rig, args):
        self.rig, self.args = rig, args
        self.content = bytes(rig.rng.randbytes(PAGE))
        self.worst = {"peak_rss_mb": 0, "slowest_seconds": 0}
        self.runs = 0

    def sizes(self):
        """100 bytes to the largest, `--per-decade` a decade, and the neighbours of what headers and pages need."""
        found, size = {100, 101, 105, 106, 110, 116, 117, 133, 134, 200}, 100.0
        while size < self.args.largest:
            found.add(int(size))
            size *= 10 ** (1 / self.args.per_decade)
        return sorted(found | {self.args.largest})

    def restore(self, replica, name, label):
        """None, or what is wrong."""
        out = self.rig.dir / "out" / "db"
        out.parent.mkdir(exist_ok=True)
        began = time.monotonic()
        result = common.run(["prlimit", f"--as={ADDRESS_SPACE}", "--", self.rig.bin.path, "restore", "-o", out, common.url(replica)], self.args.seconds)
        seconds, rss = time.monotonic() - began, result.max_rss_kb / 1024
        self.runs += 1
        self.worst["peak_rss_mb"] = max(self.worst["peak_rss_mb"], round(rss, 1))
        self.worst["slowest_seconds"] = max(self.worst["slowest_seconds"], round(seconds, 1))
        said = (result.err + result.out)[-500:]
        left = sorted(p.name for p in out.parent.iterdir())
        wrong = []
        if result.code != 1:
            wrong.append(f"exit {result.code}")
        if rss > LIMIT_MB:
            wrong.append(f"{rss:.0f} MiB of memory")
        if left:
            wrong.append(f"left {left}")
            shutil.rmtree(out.parent)
        if name is not None and name not in said:
            wrong.append(f"{name} is not named")
        if "panicked" in said:
            wrong.append("panic")
        return f"{label}: {', '.join(wrong)}: {said}" if wrong else None

    def objects(self, kind):
        wrong, count = [], 0
        for size in self.sizes():
            if kind in ("pages", "trailer") and size > self.args.largest_written:
                continue
            replica = self.rig.dir / "replica"
            if kind == "v3":
                name = "00000000.snapshot.lz4"
                write(replica / "generations/0123456789abcdef/snapshots" / name, [lz4_head()], size)
            elif kind == "segment":
                generation = replica / "generations/2718c9f14ac70deb"
                snapshot = "generations/2718c9f14ac70deb/snapshots/00000000.snapshot.lz4"
                (replica / snapshot).parent.mkdir(parents=True)
                shutil.copy(common.ROOT / "tests/fixtures/replicas/v3-basic/replica" / snapshot, replica / snapshot)
                name = "00000000_00000000.wal.lz4"
                write(generation / "wal" / name, [lz4_head()], size)
            else:
                name = NAME
                write(replica / "ltx/0" / name, ltx(kind, self.content)(size), size)
            if said := self.restore(replica, name, f"{kind} of {size} bytes"):
                wrong.append(said)
            count += 1
            shutil.rmtree(replica)
        self.rig.case(kind, not wrong, wrong[:3] or f"{count} sizes")

    def names(self):
        """Names that lead elsewhere are not objects at all."""
        target = self.rig.dir / "elsewhere.ltx"
        write(target, [header(1), frame(1, self.content)], 70000)
        traps = {
            "link to a file": lambda d: os.symlink("/etc/passwd", d / NAME),
            "link to a device": lambda d: os.symlink("/dev/zero", d / NAME),
            "link to an LTX file": lambda d: os.symlink(target, d / NAME),
            "pipe": lambda d: os.mkfifo(d / NAME),
            "directory": lambda d: (d / NAME).mkdir(),
            "dots": lambda d: (d / "..ltx").write_bytes(b"x"),
            "encoded slashes": lambda d: (d / "%2e%2e%2f0000000000000001-0000000000000001.ltx").write_bytes(b"x"),
            "line break": lambda d: (d / (NAME + "\n")).write_bytes(b"x"),
            "not UTF-8": lambda d: open(os.fsencode(d) + b"/\xff" + NAME.encode(), "wb").close(),
            "upper case": lambda d: (d / "000000000000000A-000000000000000A.ltx").write_bytes(b"x"),
            "backwards": lambda d: (d / "0000000000000002-0000000000000001.ltx").write_bytes(b"x"),
            "largest TXID": lambda d: (d / "0000000000000001-ffffffffffffffff.ltx").write_bytes(b"x" * 200),
        }
        for kind, trap in traps.items():
            replica = self.rig.dir / "replica"
            level = replica / "ltx" / "0"
            level.mkdir(parents=True)
            trap(level)
            said = self.restore(replica, None, kind)
            self.rig.case(f"name: {kind}", not said, said or "")
            shutil.rmtree(replica)


def main():
    p = common.parser(__doc__)
    p.add_argument("--largest", type=int, default=2_000_000_000, help="bytes of the largest object; most are holes")
    p.add_argument("--largest-written", type=int, default=500_000_000, help="the same for objects without holes")
    p.add_argument("--per-decade", type=int, default=6)
    p.add_argument("--only", action="append", help="a kind, or `names`")
    p.add_argument("--limit", dest="seconds", type=float, default=60, help="seconds one restore may take")
    rig = common.Rig("hostile", args := p.parse_args())
    hostile = Hostile(rig, args)
    for kind in ("zeros", "commit", "block", "giant", "pgno", "pages", "index", "trailer", "v3", "segment"):
        if not args.only or kind in args.only:
            hostile.objects(kind)
    if not args.only or "names" in args.only:
        hostile.names()
    rig.figures.update(restores=hostile.runs, **hostile.worst)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
