#!/usr/bin/env python3
"""A follower that is killed, fed damaged objects and read from all the time: do readers only ever see committed states?

A writer extends a chain (chain.py) and a replicator copies it. The follower does not read that replica but a mirror of
it, into which this rig copies every file with a delay, and often first a damaged version of it: bytes flipped, cut,
another commit size, a huge page number, a link that leads elsewhere. Readers in processes of their own open the
followed database read-only and judge what they see: it must be exactly the state after some n, and n must not go
back. The follower is killed (-9) every few seconds. At the end it must reach the newest state, byte for byte what a
restore gives but for the header fields that follow mode owns, and end on SIGTERM with 0.
"""

import json
import os
import signal
import sys
import time

import chain
import common

DAMAGES = ("flip", "cut", "commit", "pgno", "empty", "link", "name")


def reader(path, stats):
    """Judges the database again and again; one JSON line per look. Ends with its parent or on SIGTERM."""
    state = chain.stop_on_term()
    model = chain.Model()
    newest, looks, busy, wrong = 0, 0, 0, []
    db = None
    while not state["stop"]:
        try:
            if db is None:
                # Read-write, so that a journal which a killed follower left can be rolled back; nothing is written.
                db = common.Db(path, busy_ms=10000)
            db.execute("BEGIN")
            n = model.verify_open(db)
            db.execute("COMMIT")
            looks += 1
            if n < newest:
                wrong.append(f"went back from {newest} to {n}")
            newest = max(newest, n)
        except common.Mismatch as e:
            wrong.append(str(e))
        except common.BusyError:
            busy += 1
        except common.DbError as e:
            wrong.append(f"{type(e).__name__}: {e}")
        if db and (looks + len(wrong)) % 7 == 0:
            db.close()
            db = None
        elif db:
            try:
                db.execute("ROLLBACK")
            except common.DbError:
                pass
        if len(wrong) > 10:
            break
        time.sleep(0.03)
    with open(stats, "w") as f:
        json.dump({"looks": looks, "newest": newest, "busy": busy, "wrong": wrong[:5]}, f)


class Mirror:
    """Copies a file replica as somebody would who wants to harm its reader."""

    def __init__(self, source, target, rng, odds):
        self.source, self.target, self.rng, self.odds = source, target, rng, odds
        self.pending, self.counts = {}, {kind: 0 for kind in DAMAGES}

    def step(self, honest=False):
        there = set()
        for level in range(10):
            (self.target / "ltx" / str(level)).mkdir(parents=True, exist_ok=True)
            for low, high, path in common.ltx_files(self.source, level):
                name = f"ltx/{level}/{low:016x}-{high:016x}.ltx"
                there.add(name)
                self.copy(name, path, honest)
        for level in range(10):
            for low, high, path in common.ltx_files(self.target, level):
                name = f"ltx/{level}/{low:016x}-{high:016x}.ltx"
                if name not in there:
                    os.unlink(path)
                    self.pending.pop(name, None)

    def copy(self, name, path, honest):
        target = self.target / name
        due = self.pending.get(name)
        if due == "done" or (due is not None and not honest and time.monotonic() < due):
            return
        try:
            data = open(path, "rb").read()
        except FileNotFoundError:
            return
        if due is None and not honest and self.rng.random() < self.odds:
            kind = self.rng.choice(DAMAGES)
            self.counts[kind] += 1
            self.pending[name] = time.monotonic() + self.rng.random() * 1.5
            if kind == "link":
                if target.is_symlink() or target.exists():
                    target.unlink()
                target.symlink_to(self.rng.choice(["/etc/passwd", "/dev/zero", path + ".absent"]))
                return
            data = self.damage(kind, bytearray(data))
        else:
            self.pending[name] = "done"
        temp = self.target / "incoming"
        temp.write_bytes(data)
        if target.is_symlink():
            target.unlink()
        os.replace(temp, target)

    def damage(self, kind, data):
        if kind == "flip":
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        elif kind == "cut":
            del data[self.rng.randrange(len(data)):]
        elif kind == "commit":
            data[12:16] = self.rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x01", b"\x00\x00\x00\x00", b"\x7f\x00\x00\x00"])
        elif kind == "pgno":
            data[100:104] = self.rng.choice([b"\xff\xff\xff\xff", b"\x00\x04\x00\x01", b"\x7f\xff\xff\xff"])
        elif kind == "empty":
            data = bytearray()
        elif kind == "name":
            data[16:32] = (1).to_bytes(8, "big") + (99999).to_bytes(8, "big")
        return bytes(data)


class Follow:
    def __init__(self, rig, args):
        self.rig, self.args, self.rng = rig, args, rig.rng
        self.dir = rig.dir
        self.db, self.replica, self.mirror_dir = self.dir / "app.db", self.dir / "replica", self.dir / "mirror"
        self.out, self.log = self.dir / "out.db", self.dir / "follower.log"
        self.mirror = Mirror(self.replica, self.mirror_dir, self.rng, args.odds)
        self.wrong, self.kills, self.refusals, self.readers = [], 0, 0, []

    def start(self):
        self.follower = common.Daemon([self.rig.bin.path, "restore", "-f", "-follow-interval", "50ms", "-o", self.out, common.url(self.mirror_dir)], self.log)

    def begin(self):
        """The first restore may meet a damaged file and say so: then again."""
        def there():
            self.mirror.step()
            if not self.follower.alive():
                self.follower.kill()
                self.start()
            return self.out.exists() and "entering follow mode" in self.follower.log_text()
        self.start()
        if not common.wait_for(there, 30):
            self.wrong.append(f"no first restore: {self.follower.log_text()[-300:]}")

    def play(self):
        chain.create(self.db)
        config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.db), "monitor-interval": "50ms", "replica": {"url": common.url(self.replica), "sync-interval": "100ms"}}],
            levels=[{"interval": "2s"}, {"interval": "8s"}], snapshot={"interval": "10s", "retention": "1h"})
        daemon = self.rig.bin.replicate_config(config, self.dir / "daemon.log")
        crew = chain.Crew(self.db, self.dir, 1, self.args.rate, self.rig.seed, foreign=False)
        common.wait_for(lambda: common.ltx_files(self.replica), 20)
        self.begin()
        for i in range(self.args.readers):
            stats = self.dir / f"reader-{i}.json"
            self.readers.append((common.spawn([sys.executable, __file__, "reader", self.out, stats]), stats))
        ends = time.monotonic() + self.args.seconds
        next_kill = time.monotonic() + self.args.kill_every
        while time.monotonic() < ends and not self.wrong:
            self.mirror.step()
            if not self.follower.alive():
                # A file that is hidden just now looks like a pruned history: that is said, and a supervisor starts it again.
                if "replica history has been pruned" not in self.follower.log_text()[-400:]:
                    self.wrong.append(f"the follower has ended: {self.follower.log_text()[-400:]}")
                    break
                self.follower.kill()
                self.refusals += 1
                self.start()
            if time.monotonic() > next_kill:
                self.follower.kill()
                self.kills += 1
                time.sleep(self.rng.random() * 0.3)
                self.start()
                next_kill = time.monotonic() + self.args.kill_every * self.rng.uniform(0.3, 1.7)
            time.sleep(0.03)
        self.figures = crew.stop()
        if code := daemon.terminate():
            self.wrong.append(f"replicator: exit {code}")
        self.finish()

    def finish(self):
        newest = max(high for level in range(10) for _, high, _ in common.ltx_files(self.replica, level))
        saved = self.dir / "out.db-txid"

        def reached():
            self.mirror.step(honest=True)
            if not self.follower.alive():
                self.follower.kill()
                self.start()
            return saved.exists() and int(saved.read_text() or "0", 16) == newest
        if not common.wait_for(reached, 40):
            self.wrong.append(f"not at TXID {newest:x} in the end: {self.follower.log_text()[-400:]}")
        for child, stats in self.readers:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
            common.kill_group(child)
        code = self.follower.terminate(20)
        if code != 0:
            self.wrong.append(f"SIGTERM: exit {code}")
        plain = self.dir / "plain.db"
        result = common.restore_fresh(self.rig.bin, self.replica, plain)
        if result.code != 0:
            self.wrong.append(f"restore: {result.message}")
            return
        left, right = (bytearray(p.read_bytes()) for p in (self.out, plain))
        for content in (left, right):
            for start, end in ((18, 20), (24, 32), (40, 44), (92, 100)):
                content[start:end] = bytes(end - start)
        if left != right:
            self.wrong.append("the followed database is not what a restore gives")
        self.n = chain.Model().verify(plain)
        for suffix in ("-journal", "-wal", "-shm", "-txid-next"):
            if os.path.exists(f"{self.out}{suffix}"):
                self.wrong.append(f"left behind: out.db{suffix}")


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "reader":
        return reader(sys.argv[2], sys.argv[3])
    p = common.parser(__doc__, seconds=600)
    p.add_argument("--rate", type=float, default=60, help="commits per second")
    p.add_argument("--readers", type=int, default=2)
    p.add_argument("--kill-every", type=float, default=3, help="seconds, on average")
    p.add_argument("--odds", type=float, default=0.3, help="how often a file comes damaged first")
    rig = common.Rig("follow", args := p.parse_args())
    follow = Follow(rig, args)
    follow.play()
    looks = 0
    for i, (_, stats) in enumerate(follow.readers):
        found = json.loads(stats.read_text()) if stats.exists() else {"looks": 0, "wrong": ["reader died"]}
        looks += found["looks"]
        rig.case(f"reader {i}", not found["wrong"] and found["looks"] > 0, found)
    log = follow.log.read_text(errors="replace")
    figures = {"kills": follow.kills, "refusals": follow.refusals, "damaged": follow.mirror.counts, "looks": looks, "batches": log.count("follow: applied updates"),
               "errors_said": log.count("follow: error applying updates"), "commits": follow.figures["commits"]}
    rig.figures.update(figures)
    rig.case("follower", not follow.wrong and figures["batches"] > 0, follow.wrong or figures)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
