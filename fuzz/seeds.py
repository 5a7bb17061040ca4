#!/usr/bin/env python3
"""Writes the first inputs of each fuzz target into fuzz/corpus, from the fixtures of the tests.

What the fuzzer finds on top of them is kept with `cargo +nightly fuzz cmin <target>`.
"""

import hashlib
import json
import sqlite3
import struct
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FIXTURES = ROOT.parent / "tests" / "fixtures"
SMALL = 6000


def put(target: str, data: bytes) -> None:
    folder = ROOT / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def counted(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(part)) + part for part in parts)


def logs() -> list[bytes]:
    """Write-ahead logs of a small database: whole, restarted, cut off."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        conn = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA page_size = 512", "PRAGMA journal_mode = wal", "CREATE TABLE t(x)"):
            conn.execute(statement)
        wal = Path(f"{path}-wal")
        whole = wal.read_bytes()
        for n in range(6):
            conn.execute("INSERT INTO t VALUES (?)", (n,))
        longer = wal.read_bytes()
        conn.execute("PRAGMA wal_checkpoint(RESTART)")
        conn.execute("INSERT INTO t VALUES (7)")
        restarted = wal.read_bytes()
        conn.close()
    return [whole, longer, restarted, longer[:-100]]


def crc64(data: bytes) -> int:
    """CRC-64/GO-ISO."""
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFFFFFFFFFF


def leftovers() -> list[str]:
    """What lies beside a restore of `3-3` and `1-2` (the target has eight pages of 512 bytes, filled with 0 to 7)."""
    newest = struct.pack(">4sIIIQQ", b"LTX1", 2, 512, 8, 3, 3).hex().ljust(200, "0")
    older = struct.pack(">4sIIIQQ", b"LTX1", 2, 512, 8, 1, 2).hex().ljust(200, "0")

    def piece(*pages: int) -> dict[str, object]:
        content = b"".join(bytes([page - 1]) * 512 for page in pages)
        return {"crc": crc64(content), "runs": [[(page - 1) * 512, 512] for page in pages]}

    def entry(done: int, midway: dict[str, object] | None, *pieces: dict[str, object]) -> str:
        mark = {"done": done, "midway": midway, "newest": newest, "floor": 8}
        return json.dumps({"mark": mark, "pieces": list(pieces)}, separators=(",", ":"))

    begun = {"header": older, "offset": 700, "last": 3, "pages": 2, "crc": 5, "index": [6, 7], "rolling": None}
    three = f"{3:016x}"
    return [
        f"{three}\n{three} {5:016x}",
        f"{5:016x}\n{three} {5:016x}",
        "\n\n" + entry(1, None, piece(1, 2)),
        "\n\n" + entry(1, None, piece(1), piece(4)) + "\n" + entry(1, begun, piece(2, 3), piece(8)),
        f"{three}\n\n" + entry(2, None, piece(1, 2, 3, 4, 5, 6, 7, 8)),
        "\n\n" + entry(0, begun | {"rolling": 1 << 63}, piece(8, 1)),
        "\n\n" + entry(1, None, {"crc": 0, "runs": [[0, 0], [1 << 40, 512], [3, 7]]}),
    ]


def listings() -> list[str]:
    """Answers of WebDAV servers and of OSS."""
    dav = """<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:"><D:response><D:href>/dav/ltx/0/</D:href>
<D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status>
</D:propstat></D:response><D:response><D:href>http://host/dav/ltx/0/a%20b&amp;&#49;.ltx</D:href><D:propstat><D:prop>
<D:getcontentlength>17</D:getcontentlength><D:getlastmodified>Sat, 21 Nov 2026 00:40:06 GMT</D:getlastmodified></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat><D:propstat><D:prop><x/></D:prop><D:status>HTTP/1.1 404 Not Found
</D:status></D:propstat></D:response></D:multistatus>"""
    bare = "<multistatus><response><href><![CDATA[/x/]]></href></response><response><href>/x/y</href></response></multistatus>"
    oss = """<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>
<NextContinuationToken>t=</NextContinuationToken><Contents><Key>p%2Fa</Key><LastModified>2026-11-21T00:40:06.000Z
</LastModified><Size>7</Size></Contents><CommonPrefixes><Prefix>p%2Fc%2F</Prefix></CommonPrefixes></ListBucketResult>"""
    return [dav, bare, oss, "<Error><Code>NoSuchKey</Code><Message>m</Message></Error>"]


def packets() -> list[bytes]:
    """What an SFTP server sends, without the length in front."""
    def text(value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + value

    def attributes(more: bytes = b"") -> bytes:
        flags = 0x0F | (0x8000_0000 if more else 0)
        return struct.pack(">IQIIIII", flags, 17, 1000, 1000, 0o100644, 1_700_000_000, 1_700_000_001) + more

    head = struct.pack(">I", 7)
    entry = text(b"a.ltx") + text(b"-rw-r--r-- 1 u g 17 Nov 14 22:13 a.ltx")
    extension = text(b"posix-rename@openssh.com") + text(b"1")
    return [
        b"\x02" + struct.pack(">I", 3) + extension + text(b"fsync@openssh.com") + text(b"1"),
        b"\x65" + head + struct.pack(">I", 2) + text(b"No such file") + text(b"en"),
        b"\x65" + head + struct.pack(">I", 0),
        b"\x66" + head + text(b"\0\0\0\x01"),
        b"\x67" + head + text(b"LTX1" * 9),
        b"\x68" + head + struct.pack(">I", 2) + entry + attributes() + text(b"ltx") + text(b"") + struct.pack(">I", 0),
        b"\x69" + head + attributes(struct.pack(">I", 1) + extension),
    ]


def main() -> None:
    files = sorted(path for path in FIXTURES.rglob("*.ltx") if path.stat().st_size <= SMALL)
    seen: set[bytes] = set()
    small = [data for path in files if not ((data := path.read_bytes()) in seen or seen.add(data))]
    step = max(1, len(small) // 12)
    for data in small[::step]:
        put("ltx_decode", data)
        put("ltx_header", data[:100])
        put("ltx_index", data)
    for folder in sorted({path.parent for path in files}):
        some = [path.read_bytes() for path in sorted(folder.glob("*.ltx"))[:3]]
        if len(some) > 1 and sum(map(len, some)) < SMALL:
            put("ltx_merge", counted(some))
    for data in logs():
        put("wal", data)
    texts = [p for p in sorted((FIXTURES / "config").rglob("*.yml")) if p.stat().st_size < SMALL]
    for path in texts[:: max(1, len(texts) // 40)]:
        put("config", path.read_bytes())
    urls = {
        line.split("url:", 1)[1].strip().strip("\"'")
        for path in texts
        for line in path.read_text(errors="replace").splitlines()
        if "url:" in line
    }
    for url in sorted(urls)[:60]:
        put("replica_url", url.encode())
    for body in ('{"path":"/data/db"}', '{"PATH":"/a","wait":true,"timeout":30}', "null", '{"timeout":1e3} x',
                 '{"path":"/a","replica_url":"file:///b"}', '{"path":7}', "[", '{"path":"\\ud800"}'):
        put("control", body.encode())
    for text in leftovers():
        put("leftovers", text.encode())
    for text in listings():
        put("listings", text.encode())
    for packet in packets():
        put("sftp", packet)
    for text in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678+01:00", "1h30m", "-1.5s", "2562047h47m16.854775807s",
                 "100µs", "0", "00000000000000ff", "0000000000000001-000000000000000a.ltx", "ltx/0/1.ltx", "65536"):
        put("texts", text.encode())
    lz4 = sorted(FIXTURES.rglob("*.lz4"))
    snapshots = [p.read_bytes() for p in lz4 if "snapshot" in p.name and p.stat().st_size < 2 * SMALL]
    segments = [p.read_bytes() for p in lz4 if "wal" in p.name and p.stat().st_size < 2 * SMALL]
    for n, snapshot in enumerate(snapshots[:6]):
        put("v3", counted([snapshot]))
        put("v3", counted([snapshot] + [b"\0" + segment for segment in segments[n : n + 1]]))


if __name__ == "__main__":
    main()
