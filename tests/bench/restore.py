#!/usr/bin/env python3
"""Restores beside the reference in one run: a large database, many small files, and a store that is far away.

Each case is restored `--rounds` times by both programs in turn; the median counts. `cp` of the same database, synced,
is the floor, once per round too. Peak RSS is that of the process; CPU seconds matter where the machine is busy with other
work. With `--large-at-least` and `--many-at-least` too small a factor is a failure.
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
    """(seconds, peak RSS in KB, CPU seconds), without the cost of forking this interpreter or of polling."""
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if status != 0:
        sys.exit(f"{label}: {argv} ended with {status}")
    return seconds, usage.ru_maxrss, usage.ru_utime + usage.ru_stime


def copied(db, work):
    """Seconds of `cp`, synced: it reads the database and writes it, which is what a restore cannot do without."""
    copy = work / "copy"
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "cp", str(db), str(copy)], check=True, timeout=600)
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds


def measure(label, programs, replica, work, rounds, options=()):
    out, figures, digests, copies = work / "out.db", {}, set(), []
    for _ in range(rounds):
        for name, program in programs.items():
            for suffix in ("", "-wal", "-shm"):
                Path(f"{out}{suffix}").unlink(missing_ok=True)
            figures.setdefault(name, []).append(timed(label, program, replica, out, options))
            digests.add(common.sha256_file(out))
        copies.append(copied(out, work))
    if len(digests) != 1:
        sys.exit(f"{label}: the results differ")
    summary = {name: {"seconds": round(statistics.median(run[0] for run in runs), 4), "fastest": round(min(run[0] for run in runs), 4),
                      "cpu_seconds": round(statistics.median(run[2] for run in runs), 4), "rss_mb": round(max(run[1] for run in runs) / 1024, 1)}
               for name, runs in figures.items()}
    summary["bytes"] = out.stat().st_size
    summary["cp_seconds"] = round(statistics.median(copies), 4)
    ours = summary["ours"]["seconds"]
    summary["times_of_cp"] = round(ours / summary["cp_seconds"], 2)
    if "reference" in summary:
        summary["times_faster"] = round(summary["reference"]["seconds"] / ours, 2)
        summary["times_less_cpu"] = round(summary["reference"]["cpu_seconds"] / summary["ours"]["cpu_seconds"], 2)
    return summary


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--reference", default=common.default_reference())
    p.add_argument("--megabytes", type=int, default=700)
    p.add_argument("--files", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--large-at-least", type=float, default=0)
    p.add_argument("--many-at-least", type=float, default=0)
    p.add_argument("--tmp", default=None)
    args = p.parse_args()
    programs = {"ours": common.Litestream(args.bin)}
    if args.reference:
        programs["reference"] = common.Litestream(args.reference)
    work = Path(tempfile.mkdtemp(prefix="bench-restore-", dir=args.tmp))
    report = {}
    try:
        db, replica = build_large(work, args.megabytes)
        once(programs["ours"], db, replica)
        report["large"] = measure("large", programs, replica, work, args.rounds)
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
        # Short ones vary more.
        report["many"] = measure("many", programs, replica, work, 3 * args.rounds)
        report["many"]["files"] = len(common.ltx_files(replica))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report, indent=1))
    wanted = {"large": args.large_at_least, "many": args.many_at_least}
    slow = [f"{name}: {report[name].get('times_faster', 0)} times faster, wanted {factor}" for name, factor in wanted.items()
            if report[name].get("times_faster", 0) < factor]
    return "\n".join(slow) or 0


if __name__ == "__main__":
    sys.exit(main())
