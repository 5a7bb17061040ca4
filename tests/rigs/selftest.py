#!/usr/bin/env python3
"""Do the rigs notice what they must notice? Needs no Litestream.

Each check of the rigs gets a case that must pass and cases that must fail: a check that cannot fail proves nothing.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import chain
import common
import ltxfile

FAILURES = []


def expect(name, ok):
    print(f"  {'ok' if ok else 'FAILED':8} {name}", flush=True)
    if not ok:
        FAILURES.append(name)


def rejects(action, kind):
    try:
        action()
    except kind:
        return True
    return False


def settled(path):
    db = common.Db(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def history(path, commits):
    chain.create(path)
    db = common.Db(path)
    db.execute("PRAGMA synchronous = OFF")
    for i in range(commits):
        chain.step(db, i % 3)
    db.close()
    settled(path)


def chain_checks(where):
    good, older = where / "good.db", where / "older.db"
    history(good, 500)
    expect("an exact state is accepted", chain.Model().verify(good) == 500)

    def damaged(name, *statements):
        copy = where / f"{name}.db"
        shutil.copy(good, copy)
        db = common.Db(copy)
        for sql in statements:
            db.execute(sql)
        db.close()
        settled(copy)
        return rejects(lambda: chain.Model().verify(copy), common.Mismatch)

    expect("a missing commit is noticed", damaged("gap", "DELETE FROM chain WHERE n = 250"))
    expect("a shortened chain with newer tables is noticed", damaged("short", "DELETE FROM chain WHERE n = 500"))
    expect("another value is noticed", damaged("value", "UPDATE kv SET v = x'00' WHERE k = (SELECT max(k) FROM kv)"))
    expect("a missing key is noticed", damaged("key", "DELETE FROM kv WHERE k = (SELECT max(k) FROM kv)"))
    expect("an older tally is noticed", damaged("tally", "UPDATE tally SET n = 499, total = 499 * 250"))
    expect("a missing log row is noticed", damaged("log", "DELETE FROM log WHERE n = 450"))
    expect("an index that lacks an entry is noticed", damaged(
        "index", "PRAGMA writable_schema = 1", "UPDATE sqlite_schema SET sql = 'CREATE INDEX kv_n ON kv (n, v)' WHERE name = 'kv_n'"))

    # Two states mixed page by page: one page of the state 40 commits earlier in the later file.
    history(older, 460)
    old, new = older.read_bytes(), good.read_bytes()
    caught = tried = 0
    for page in range(1, min(len(old), len(new)) // 4096):
        at = page * 4096
        if old[at:at + 4096] == new[at:at + 4096]:
            continue
        mixed = where / "mixed.db"
        mixed.write_bytes(new[:at] + old[at:at + 4096] + new[at + 4096:])
        tried += 1
        caught += rejects(lambda: chain.Model().verify(mixed), (common.Mismatch))
    expect(f"every stale page is noticed ({caught} of {tried})", tried > 3 and caught == tried)

    model = chain.Model()
    model.verify(good)
    expect("an earlier state is accepted after a later one", model.verify(older) == 460)
    (where / "good.db-wal").write_bytes(b"x")
    expect("a foreign -wal beside the output is noticed", rejects(lambda: chain.Model().verify(good), common.Mismatch))
    (where / "good.db-wal").unlink()
    flipped = bytearray(new)
    flipped[5 * 4096 + 77] ^= 1
    (where / "flipped.db").write_bytes(flipped)
    expect("page comparison names the page", common.differing_pages(good, where / "flipped.db") == [6])
    (where / "longer.db").write_bytes(new + bytes(4096))
    expect("page comparison sees the size", bool(common.differing_pages(good, where / "longer.db")))


def hash_checks(where):
    path = where / "rows.db"
    db = common.Db(path)
    db.execute("CREATE TABLE b (x, y)")
    db.execute("CREATE TABLE a (z)")
    db.execute("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
    db.execute("INSERT INTO b VALUES (1, 'é'), (NULL, x'ff')")
    before = common.rows_sha256_of(db)
    text = "TABLE a\nTABLE b\n1|'é'\nNULL|X'FF'\n"
    expect("rows_sha256 is the documented text", before == common.hashlib.sha256(text.encode()).hexdigest())
    db.execute("INSERT INTO _litestream_seq VALUES (1, 1)")
    expect("bookkeeping tables do not count", common.rows_sha256_of(db) == before)
    db.execute("INSERT INTO a VALUES (1)")
    expect("a row does count", common.rows_sha256_of(db) != before)
    db.close()


def ltx_checks(where):
    expect("CRC-64 check value", ltxfile.crc64(b"123456789") == 0xB90956C775A41001)
    fixtures = common.ROOT / "tests" / "fixtures"
    files = sorted(p for p in (fixtures / "takeover").rglob("*.ltx") if "last-local-ltx-corrupt/data" not in str(p))
    files += sorted((fixtures / "ltx").glob("*.ltx")) if (fixtures / "ltx").exists() else []
    bad = []
    for path in files:
        if path.stat().st_size > 2_000_000:
            continue
        try:
            ltxfile.read_pages(path)
        except ltxfile.LtxError as e:
            bad.append(f"{path.name}: {e}")
    expect(f"{len(files)} valid LTX files are read {bad[:2]}", files and not bad)
    small = min(files, key=lambda p: p.stat().st_size)
    data, missed = small.read_bytes(), []
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        copy = where / "changed.ltx"
        copy.write_bytes(changed)
        if not rejects(lambda: ltxfile.read_pages(copy), ltxfile.LtxError):
            missed.append(at)
    # LZ4 may encode the same page in two ways; the page is then the same.
    _, pages = ltxfile.read_pages(small)
    same = []
    for at in missed:
        changed = bytearray(data)
        changed[at] ^= 0x10
        (where / "changed.ltx").write_bytes(changed)
        same.append(ltxfile.read_pages(where / "changed.ltx")[1] == pages)
    expect(f"every flipped bit is rejected or harmless ({len(data) - len(missed)} of {len(data)} rejected)", all(same))
    corrupt = fixtures / "takeover" / "last-local-ltx-corrupt" / "data"
    if corrupt.exists():
        found = sorted(corrupt.rglob("*.ltx"))
        expect("the corrupt fixture is rejected", any(rejects(lambda p=p: ltxfile.read_pages(p), ltxfile.LtxError) for p in found))


def killer_checks(where):
    killer = where / "killat"
    built = common.run(["cc", "-O2", "-Wall", "-o", killer, common.HERE / "killat.c"], 60)
    expect("killat compiles", built.code == 0)
    script = f"import os\nfor i in range(4):\n open('{where}/f%d' % i, 'wb').close()"
    python = [sys.executable, "-S", "-I", "-c", script]
    done = common.run([killer, 0, f"{where}/f", where / "log", *python], 30)
    opened = [x for x in (where / "log").read_text().splitlines() if x.startswith("open")]
    expect("killat counts what touches the directory", done.code == 0 and len(opened) == 4)
    for i in range(4):
        (where / f"f{i}").unlink()
    third = [n for n, x in enumerate((where / "log").read_text().splitlines(), 1) if x.startswith("open")][2]
    killed = common.run([killer, third, f"{where}/f", where / "log", *python], 30)
    expect("killat kills before the call takes effect", killed.code == 137 and (where / "f1").exists() and not (where / "f2").exists())


def process_checks(where):
    child = common.spawn(["sh", "-c", "sleep 300 & sleep 300"])

    def members():
        """Living processes of the group (a zombie waits only for its parent)."""
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += int(group) == child.pid and state != "Z"
        return found

    before = common.wait_for(lambda: members() >= 2, 5)
    common.kill_group(child)
    expect("a whole process group ends with its leader", before and common.wait_for(lambda: members() == 0, 5))
    late = common.run(["sleep", "30"], timeout=0.3)
    expect("a time limit ends a program", late.code == -999)
    config = common.write_config(where / "c.yml", [{"path": "/x"}])
    expect("the config file is JSON", json.loads(Path(config).read_text())["dbs"][0]["path"] == "/x")


def main():
    where = Path(tempfile.mkdtemp(prefix="rig-selftest-"))
    print(f"selftest: application SQLite {common.SQLITE_VERSION}")
    try:
        for check in (chain_checks, hash_checks, ltx_checks, killer_checks, process_checks):
            (sub := where / check.__name__).mkdir()
            check(sub)
    finally:
        shutil.rmtree(where, ignore_errors=True)
    print(json.dumps({"rig": "selftest", "failed": len(FAILURES)}))
    sys.exit(1 if FAILURES else 0)


if __name__ == "__main__":
    os.umask(0o022)
    main()
