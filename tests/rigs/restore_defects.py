#!/usr/bin/env python3
"""The known defects of restore in Litestream 0.5.17, each as a case: the program must not have it, and the reference must.

The second half matters as much: a case that the reference passes too proves nothing. X and V numbers are those of
docs/differences.md. X8 (memory grows with the page index) is a figure of ../bench/restore.py.
"""

import json
import os
import shutil
import sys
import time

import common

FIXTURES = common.ROOT / "tests/fixtures/replicas"


class Scene:
    """A copy of a fixture with the times its objects had."""

    def __init__(self, rig, program, fixture):
        self.program = program
        self.dir = rig.dir / "scene"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.replica, self.out = self.dir / "replica", self.dir / "out.db"
        shutil.copytree(FIXTURES / fixture / "replica", self.replica)
        self.expected = json.loads((FIXTURES / fixture / "expected.json").read_text())
        for file in self.expected["files"]:
            ns = file.get("mtime_ns") or file["timestamp_ms"] * 1_000_000
            os.utime(self.replica / file["path"], ns=(ns, ns))

    def path(self, level, low, high):
        return self.replica / "ltx" / str(level) / f"{low:016x}-{high:016x}.ltx"

    def restore(self, *options):
        return common.run([self.program.path, "restore", *options, "-o", self.out, common.url(self.replica)], 60)

    def sum(self):
        return common.sha256_file(self.out) if self.out.exists() else None

    def state(self, txid):
        return next(state["sha256"] for state in self.expected["by_txid"] if int(state["txid"], 16) == txid)

    def hide(self, low):
        """Takes level-0 files from a TXID on, and everything above level 0, out of the replica."""
        away = self.dir / "away"
        away.mkdir()
        for path in sorted((self.replica / "ltx").glob("*/*.ltx")):
            if path.parent.name != "0" or int(path.name[:16], 16) >= low:
                shutil.move(path, away / f"{path.parent.name}-{path.name}")
        self.away = away

    def bring(self, low, high, level=0):
        target = self.path(level, low, high)
        shutil.copy2(self.away / f"{level}-{target.name}", target)
        return target

    def follow(self):
        return common.Daemon([self.program.path, "restore", "-f", "-follow-interval", "50ms", "-o", self.out, common.url(self.replica)], self.dir / "follow.log")

    def at(self, txid):
        saved = self.dir / "out.db-txid"
        return saved.exists() and saved.read_text().strip() == f"{txid:016x}"


def x1(rig, program):
    """a restore to a time ends before a gap and calls it success"""
    scene = Scene(rig, program, "gap-l0")
    return scene.restore("-timestamp", "2026-11-21T00:41:49.483Z").code != 0


def x2(rig, program):
    """a follower that is ahead of the newest snapshot cannot be started again"""
    scene = Scene(rig, program, "basic-4096")
    for _ in range(2):
        (scene.dir / "follow.log").unlink(missing_ok=True)
        follower = scene.follow()
        there = common.wait_for(lambda: "entering follow mode" in follower.log_text() or not follower.alive(), 10)
        came = there and follower.alive()
        code = follower.terminate(10)
        if not came or code != 0:
            return False
    return True


def x3(rig, program):
    """a follower for which nothing leads on any more says nothing"""
    scene = Scene(rig, program, "wal-restarts")
    scene.hide(3)
    follower = scene.follow()
    if not common.wait_for(lambda: scene.at(2), 10):
        return sys.exit("X3: the follower does not begin")
    scene.path(0, 1, 1).unlink()
    scene.path(0, 2, 2).unlink()
    scene.bring(5, 5)
    said = common.wait_for(lambda: "error applying updates" in follower.log_text(), 5)
    follower.kill()
    return bool(said)


def x4(rig, program):
    """a follower writes a file's pages before it has verified it"""
    scene = Scene(rig, program, "wal-restarts")
    scene.hide(3)
    follower = scene.follow()
    if not common.wait_for(lambda: scene.at(2), 10):
        return sys.exit("X4: the follower does not begin")
    before = scene.sum()
    damaged = bytearray((scene.away / "0-0000000000000003-0000000000000003.ltx").read_bytes())
    damaged[-1] ^= 1
    temp = scene.dir / "incoming"
    temp.write_bytes(damaged)
    os.replace(temp, scene.path(0, 3, 3))
    common.wait_for(lambda: "checksum mismatch" in follower.log_text(), 5)
    follower.kill()
    return scene.sum() == before


def x5(rig, program):
    """a log beside a missing database is replayed into the restored one"""
    scene = Scene(rig, program, "basic-4096")
    (scene.dir / "out.db-wal").write_bytes(b"the log of another database")
    result = scene.restore()
    return result.code != 0 or not (scene.dir / "out.db-wal").exists()


def x6(rig, program):
    """a level 0 that was begun anew is invisible behind a snapshot"""
    scene = Scene(rig, program, "basic-4096")
    low = sorted(common.ltx_files(scene.replica, 0))[0]
    later = time.time() + 86400 * 3650
    os.utime(low[2], (later, later))
    # The file that counts from 1 again is younger than everything.
    for _, _, path in common.ltx_files(scene.replica, 0)[1:]:
        os.unlink(path)
    if not common.ltx_files(scene.replica, 9):
        return sys.exit("X6: no snapshot in the fixture")
    result = scene.restore()
    return result.code != 0 or "begun anew" in result.out + result.err


def x7(rig, program):
    """a file under another's name is found late, and not named"""
    scene = Scene(rig, program, "basic-4096")
    low, high, path = common.ltx_files(scene.replica, 0)[-1]
    os.rename(path, scene.path(0, low, high + 1))
    result = scene.restore()
    return result.code != 0 and scene.path(0, low, high + 1).name in result.err + result.out


def x9(rig, program):
    """a file called <output>.tmp is overwritten"""
    scene = Scene(rig, program, "basic-4096")
    other = scene.dir / "out.db.tmp"
    other.write_text("somebody else's")
    scene.restore()
    return other.exists() and other.read_text() == "somebody else's"


def x10(rig, program):
    """between the first LTX file and the first snapshot the older 0.3.x backup is taken"""
    scene = Scene(rig, program, "v3-and-ltx")
    result = scene.restore("-timestamp", "2026-11-21T00:42:44.110Z")
    if result.code != 0:
        return sys.exit(f"X10: {result.message}")
    took = scene.sum()
    scene.out.unlink()
    scene.restore("-txid", "0000000000000002")
    return took == scene.sum()


def v1(rig, program):
    """a damaged frame of a 0.3.x log is taken for its end"""
    scene = Scene(rig, program, "v3-basic")
    log = sorted(scene.replica.glob("generations/*/wal/*.wal.lz4"))[-1]
    data = common.run(["lz4", "-dc", log], 10)
    if data.code != 0:
        return None
    plain, packed = scene.dir / "plain", scene.dir / "packed"
    common.run(["lz4", "-dqf", log, plain], 10)
    content = bytearray(plain.read_bytes())
    content[-100] ^= 1
    plain.write_bytes(content)
    common.run(["lz4", "-zqf", plain, packed], 10)
    stat = log.stat()
    shutil.copyfile(packed, log)
    os.utime(log, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return scene.restore().code != 0


def v2(rig, program):
    """<output>.tmp-wal stays after a failure"""
    scene = Scene(rig, program, "v3-basic")
    log = sorted(scene.replica.glob("generations/*/wal/*.wal.lz4"))[-1]
    data = bytearray(log.read_bytes())
    data[-6] ^= 1
    stat = log.stat()
    log.write_bytes(data)
    os.utime(log, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    scene.restore()
    return not [name for name in os.listdir(scene.dir) if name.startswith("out.db")]


def main():
    p = common.parser(__doc__)
    rig = common.Rig("restore_defects", p.parse_args())
    for case in (x1, x2, x3, x4, x5, x6, x7, x9, x10, v1, v2):
        ours = case(rig, rig.bin)
        if ours is None:
            rig.case(case.__name__.upper(), None, "needs lz4")
            continue
        theirs = case(rig, rig.reference) if rig.reference else False
        name = f"{case.__name__.upper()}: {case.__doc__}"
        rig.case(name, ours and not theirs, f"ours {'right' if ours else 'WRONG'}, reference {'right, so this proves nothing' if theirs else 'wrong'}")
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
