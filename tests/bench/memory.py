#!/usr/bin/env python3
"""Peak memory of a daemon that compacts and snapshots a large database, beside the reference.

A database of `--gigabytes` is replicated to a directory with short levels and snapshots, while random rows change. After
`--seconds` the daemon's peak RSS and the files it made are read. Needs about eight times the database in free disk space.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rigs"))
import common  # noqa: E402

ROW = 64 * 1024


def fill(path, size):
    db = common.Db(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
    for _ in range(size // ROW // 1024):
        db.execute("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1024) INSERT INTO t(v) SELECT randomblob(?) FROM n", (ROW - 200,))
    db.close()


def peak_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def measure(rig, program, name, source, args):
    where = rig.dir / name
    where.mkdir()
    db, replica = where / "app.db", where / "replica"
    common.run(["cp", str(source), str(db)], 600)
    config = common.write_config(where / "litestream.yml", [{"path": str(db), "replica": {"url": common.url(replica)}}],
                                 levels=[{"interval": "2s"}, {"interval": "8s"}], snapshot={"interval": "20s", "retention": "40s"},
                                 **{"l0-retention": "5s", "l0-retention-check-interval": "2s"})
    daemon = program.replicate_config(config, where / "log")
    app = common.Db(db)
    rows, started = app.value("SELECT max(id) FROM t"), time.monotonic()
    while time.monotonic() - started < args.seconds:
        app.execute("UPDATE t SET v = randomblob(?) WHERE id = ?", (ROW - 200, rig.rng.randrange(1, rows + 1)))
        time.sleep(0.05)
    peak, alive = peak_kb(daemon.pid), daemon.alive()
    app.close()
    code = daemon.terminate(300)
    log = daemon.log_text()
    made = {"compactions": log.count('msg="compaction complete"'), "snapshots": log.count('msg="snapshot complete"')}
    levels = {level: len(common.ltx_files(replica, level)) for level in (0, 1, 2, 9)}
    common.run(["rm", "-rf", str(where)], 600)
    return peak, alive and code == 0, made, levels


def main():
    p = common.parser(__doc__, seconds=90)
    p.add_argument("--gigabytes", type=float, default=2)
    p.add_argument("--without-reference", action="store_true")
    rig = common.Rig("memory", args := p.parse_args())
    source = rig.dir / "source.db"
    fill(source, int(args.gigabytes * 2**30))
    size = source.stat().st_size
    programs = [("ours", rig.bin)] + ([("reference", rig.reference)] if rig.reference and not args.without_reference else [])
    for name, program in programs:
        peak, ok, made, levels = measure(rig, program, name, source, args)
        rig.figures[f"{name}_peak_rss_kb"] = peak
        rig.case(name, ok, f"database {size / 2**30:.2f} GiB: peak RSS {peak / 1024:.1f} MiB, {made}, files at the end {levels}")
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
