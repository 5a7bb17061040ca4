#!/usr/bin/env python3
"""Checkpoints of another process that wait for readers (FULL, RESTART, TRUNCATE): does the daemon give way, and is nothing lost?

One process commits, another calls a checkpoint once a second, the daemon runs beside both. Each call must come back within
0.2 s with everything copied. One case is known to be slower: after a quiet while a commit is noticed within
`monitor-interval` (1 s) only, so a checkpoint right behind it may have to wait that long.
"""

import subprocess
import sys
import time

import common

LIMIT = 0.2
# monitor-interval, and what a busy machine adds.
QUIET_LIMIT = 1.3

CALL = """
import sys, time
sys.path.insert(0, sys.argv[3])
import common
db = common.Db(sys.argv[1], busy_ms=20000)
began = time.monotonic()
while True:
    row = db.execute("PRAGMA wal_checkpoint(%s)" % sys.argv[2])[0]
    # Only one checkpoint can run at a time, and SQLite does not wait for another one, also of the application itself.
    if row[1] != -1 or time.monotonic() > began + 5:
        break
    time.sleep(0.005)
print("%.4f %d %d %d" % (time.monotonic() - began, *row))
"""

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
import common
db = common.Db(sys.argv[1])
until, n = time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < until:
    db.execute("INSERT INTO t VALUES (randomblob(500))")
    n += 1
    time.sleep(0.002)
print(n)
"""


def checkpoint(path, mode):
    """Seconds that one call of another process took; raises Mismatch where it could not copy everything."""
    done = common.run([sys.executable, "-c", CALL, str(path), mode, str(common.HERE)], 60)
    if done.code != 0:
        raise common.Mismatch(f"{mode}: {done.message}")
    seconds, busy, log, copied = done.out.split()
    if int(busy) or log != copied:
        raise common.Mismatch(f"{mode}: busy {busy}, {copied} of {log} frames after {seconds} s")
    return float(seconds)


class Scene:
    def __init__(self, rig, name):
        self.rig, self.dir = rig, rig.dir / name.replace(" ", "-").replace(",", "")
        self.dir.mkdir()
        self.path, self.replica = self.dir / "app.db", self.dir / "replica"
        self.app = common.Db(self.path)
        self.app.execute("PRAGMA journal_mode = wal")
        self.app.execute("CREATE TABLE t(v)")
        self.daemon = rig.bin.replicate(self.path, self.replica, self.dir / "log")
        if not common.wait_for(lambda: common.ltx_files(self.replica), 20):
            raise common.Mismatch("nothing was replicated")

    def end(self, times, limit):
        worst = max(times)
        if worst > limit:
            raise common.Mismatch(f"slowest of {len(times)} calls {worst:.3f} s, allowed {limit} s: {times}")
        rows = self.app.value("SELECT count(*) FROM t")
        if (code := self.daemon.terminate()) != 0:
            raise common.Mismatch(f"SIGTERM: exit {code}")
        out = self.dir / "restored.db"
        result = common.restore_fresh(self.rig.bin, self.replica, out)
        if result.code != 0:
            raise common.Mismatch(f"restore: {result.message}")
        restored = common.open_restored(out)
        common.check_integrity(restored)
        have = restored.value("SELECT count(*) FROM t")
        if have != rows:
            raise common.Mismatch(f"{have} of {rows} rows restored")
        return f"{len(times)} calls, slowest {worst:.3f} s, {rows} rows, all restored"


def beside_a_writer(rig, mode, seconds):
    scene = Scene(rig, f"{mode} beside a writer")
    argv = [sys.executable, "-c", WRITER, str(scene.path), str(common.HERE), str(seconds + 1)]
    writer = common.spawn(argv, stdout=subprocess.PIPE, text=True)
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(1)
        times.append(checkpoint(scene.path, mode))
    out, _ = writer.communicate(timeout=60)
    if int(out) < 10 * seconds:
        raise common.Mismatch(f"the writer got {out.strip()} commits in {seconds} s")
    return scene.end(times, LIMIT)


def after_a_pause(rig, mode):
    """The writer is between two bursts: the daemon has seen everything and waits for the next commit."""
    scene = Scene(rig, f"{mode} after commits")
    times = []
    for _ in range(4):
        for _ in range(30):
            scene.app.execute("INSERT INTO t VALUES (randomblob(2000))")
        time.sleep(0.5)
        times.append(checkpoint(scene.path, mode))
    return scene.end(times, LIMIT)


def behind_a_quiet_while(rig):
    scene = Scene(rig, "behind a quiet while")
    times = []
    for _ in range(2):
        time.sleep(5)
        scene.app.execute("INSERT INTO t VALUES (randomblob(2000))")
        times.append(checkpoint(scene.path, "TRUNCATE"))
    return scene.end(times, QUIET_LIMIT)


def main():
    p = common.parser(__doc__, seconds=6)
    args = p.parse_args()
    rig = common.Rig("checkpoints", args)
    cases = [(f"{mode} once a second beside a writer", lambda mode=mode: beside_a_writer(rig, mode, args.seconds))
             for mode in ("TRUNCATE", "RESTART", "FULL")]
    cases += [(f"{mode} after commits", lambda mode=mode: after_a_pause(rig, mode)) for mode in ("TRUNCATE", "RESTART")]
    cases.append(("TRUNCATE behind a commit after 5 s of quiet", lambda: behind_a_quiet_while(rig)))
    for name, case in cases:
        try:
            rig.case(name, True, case())
        except common.Mismatch as e:
            rig.case(name, False, str(e))
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
