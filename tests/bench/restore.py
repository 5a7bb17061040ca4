#!/usr/bin/env python3
"""Restores beside the reference in one run: a large database, many small files, and a store that is far away.

Each case is restored `--rounds` times by both programs in turn; the median counts. `cp` of the same database, synced,
is the floor. Peak RSS is that of the process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rigs"))
import common


def build_large(rig, megabytes):
    """A replica with one snapshot of a database of about so many bytes, half of it incompressible."""
    db, replica = rig / "large.db", rig / "large"
    conn = common.Db(db)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB, b TEXT)")
    rows = megabytes * 1_000_000 // 1060
    for start in range(0, rows, 20_000):
        conn.execute("BEGIN")
        conn.execute("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000) "
                     "INSERT INTO t (a, b) SELECT randomblob(500), printf('%0500d', random()) FROM c")
        conn.execute("COMMIT")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    return db, replica


def build_many(rig, files):
    db, replica = rig / "many.db", rig / "many"
    conn = common.Db(db)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    conn.close()
    return db, replica, files


def once(program, db, replica):
    result = program.once(db, replica, timeout=600)
    if result.code != 0:
        sys.exit(f"replicate -once: {result.message}")


def timed(label, program, replica, out, options):
    return timed_command(label, [program.path, "restore", *options, "-o", str(out), common.url(replica)])


def timed_command(label, argv):
    """(seconds, peak RSS in KB), without the cost of forking this interpreter or of polling."""
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if status != 0:
        sys.exit(f"{label}: {argv} ended with {status}")
    return seconds, usage.ru_maxrss


def measure(label, programs, replica, out, rounds, options=()):
    figures = {}
    digests = set()
    for _ in range(rounds):
        for name, program in programs.items():
            for suffix in ("", "-wal", "-shm"):
                Path(f"{out}{suffix}").unlink(missing_ok=True)
            figures.setdefault(name, []).append(timed(label, program, replica, out, options))
            digests.add(common.sha256_file(out))
    if len(digests) != 1:
        sys.exit(f"{label}: the results differ")
    summary = {name: {"seconds": round(statistics.median(s for s, _ in runs), 3), "rss_mb": round(max(r for _, r in runs) / 1024, 1)}
               for name, runs in figures.items()}
    if len(summary) == 2:
        ours, theirs = summary["ours"]["seconds"], summary["reference"]["seconds"]
        summary["times_faster"] = round(theirs / ours, 2)
    return summary


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--reference", default=common.default_reference())
    p.add_argument("--megabytes", type=int, default=700)
    p.add_argument("--files", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tmp", default=None)
    args = p.parse_args()
    programs = {"ours": common.Litestream(args.bin)}
    if args.reference:
        programs["reference"] = common.Litestream(args.reference)
    work = Path(tempfile.mkdtemp(prefix="bench-restore-", dir=args.tmp))
    report = {}
    try:
        out = work / "out.db"
        db, replica = build_large(work, args.megabytes)
        once(programs["ours"], db, replica)
        report["large"] = measure("large", programs, replica, out, args.rounds)
        report["large"]["bytes"] = out.stat().st_size
        began = time.monotonic()
        subprocess.run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "cp", str(db), str(work / "copy")], check=True, timeout=600)
        report["large"]["cp_seconds"] = round(time.monotonic() - began, 3)
        (work / "copy").unlink()
        shutil.rmtree(replica)
        db.unlink()

        db, replica, files = build_many(work, args.files)
        config = common.write_config(work / "many.yml", [{
            "path": str(db), "monitor-interval": "10ms", "replica": {"url": common.url(replica), "sync-interval": "10ms"}}],
            levels=[{"interval": "10h"}], snapshot={"interval": "100h", "retention": "200h"}, **{"l0-retention": "10h"})
        daemon = programs["ours"].replicate_config(config, work / "many.log")
        conn = common.Db(db)
        for n in range(files):
            conn.execute("INSERT INTO t (v) VALUES (printf('%0200d', ?))", (n,))
            common.wait_for(lambda n=n: len(common.ltx_files(replica)) > n, 10, 0.002)
        conn.close()
        daemon.terminate()
        report["many"] = measure("many", programs, replica, out, args.rounds)
        report["many"]["files"] = len(common.ltx_files(replica))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
