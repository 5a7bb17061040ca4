"""A history that proves itself: every transaction extends a hash chain and changes side tables as its hash says.

Transaction n inserts (n, writer, prev, hash) with hash = SHA-256 of all that came before, and derives from the hash alone
what it does to the other tables. So any restored database can be judged without the source: it must be exactly the
state after some n, with nothing missing, nothing mixed and nothing extra. Run as a program it is one writer
(`chain.py writer DB …`) or the process of another that checkpoints (`chain.py checkpointer DB …`).
"""

import argparse
import bisect
import hashlib
import json
import random
import signal
import sys
import time
from array import array

import common

KEYS = 2048
LOG_KEPT = 100
SIZES = (16, 16, 60, 60, 200, 200, 900, 5000)
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


def create(path, page_size=4096):
    db = common.Db(path)
    db.execute(f"PRAGMA page_size = {page_size}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE chain (n INTEGER PRIMARY KEY, w INTEGER, prev TEXT, hash TEXT)")
    db.execute("CREATE TABLE kv (k INTEGER PRIMARY KEY, n INTEGER, v BLOB)")
    db.execute("CREATE INDEX kv_n ON kv (n, k)")
    db.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, hash TEXT)")
    db.execute("CREATE TABLE tally (id INTEGER PRIMARY KEY, n INTEGER, total INTEGER)")
    db.execute("INSERT INTO tally VALUES (1, 0, 0)")
    db.close()


def link(prev, n, writer):
    return hashlib.sha256(f"{prev}|{n}|{writer}".encode()).hexdigest()[:32]


def effects(digest):
    """[(key, value size or None for a deletion)] of the transaction with this hash, in order."""
    r = int(digest, 16)
    changes = [(r % KEYS, SIZES[(r >> 16) % len(SIZES)])]
    if (r >> 24) % 7 == 0:
        changes.append(((r >> 32) % KEYS, None))
    if (r >> 48) % 400 == 0:
        changes.extend(((r + 13 * i) % KEYS, SIZES[(r + i) % len(SIZES)]) for i in range(150))
    return changes


def value(digest, size):
    return (digest * (size // 32 + 1))[:size].encode()


def step(db, writer):
    """One transaction; returns (n, seconds until the lock was held, seconds of COMMIT)."""
    began = time.perf_counter()
    db.execute("BEGIN IMMEDIATE")
    locked = time.perf_counter()
    try:
        last = db.execute("SELECT n, hash FROM chain ORDER BY n DESC LIMIT 1")
        n, prev = (last[0][0] + 1, last[0][1]) if last else (1, "")
        digest = link(prev, n, writer)
        db.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (n, writer, prev, digest))
        for key, size in effects(digest):
            if size is None:
                db.execute("DELETE FROM kv WHERE k = ?", (key,))
            else:
                db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?, ?)", (key, n, value(digest, size)))
        db.execute("INSERT INTO log VALUES (?, ?)", (n, digest))
        db.execute("DELETE FROM log WHERE n <= ?", (n - LOG_KEPT,))
        db.execute("UPDATE tally SET n = ?, total = total + ?", (n, n))
        ready = time.perf_counter()
        db.execute("COMMIT")
    except BaseException:
        try:
            db.execute("ROLLBACK")
        except common.DbError:
            pass
        raise
    return n, locked - began, time.perf_counter() - ready


class Model:
    """What the state after n must be, learnt once per n and kept for every later look."""

    def __init__(self):
        self.hashes = [""]
        self.history = {}

    def learn(self, n, writer):
        digest = link(self.hashes[-1], n, writer)
        self.hashes.append(digest)
        for key, size in effects(digest):
            entries = self.history.setdefault(key, ([], []))
            entries[0].append(n)
            entries[1].append(size)

    def expected(self, key, n):
        """(n of the last change, size) of a key in the state after n, or None."""
        entries = self.history.get(key)
        at = bisect.bisect_right(entries[0], n) - 1 if entries else -1
        if at < 0 or entries[1][at] is None:
            return None
        return entries[0][at], entries[1][at]

    def verify(self, path):
        """The n this database is the exact state of; raises Mismatch."""
        db = common.open_restored(path)
        try:
            return self.verify_open(db)
        except common.DbError as e:
            raise common.Mismatch(f"unreadable: {e}") from None
        finally:
            db.close()

    def verify_open(self, db):
        common.check_integrity(db)
        n = 0
        for n, (found, writer, prev, digest) in enumerate(db.iterate("SELECT n, w, prev, hash FROM chain ORDER BY n"), 1):
            if found != n:
                raise common.Mismatch(f"chain: {found} where {n} belongs (commits are missing)")
            if n == len(self.hashes):
                self.learn(n, writer)
            if digest != self.hashes[n] or prev != self.hashes[n - 1]:
                raise common.Mismatch(f"chain: other content at {n}")
        if db.execute("SELECT n, total FROM tally") != [(n, n * (n + 1) // 2)]:
            raise common.Mismatch(f"tally is not that of {n}: {db.execute('SELECT n, total FROM tally')}")
        log = list(db.iterate("SELECT n, hash FROM log ORDER BY n"))
        if log != [(i, self.hashes[i]) for i in range(max(1, n - LOG_KEPT + 1), n + 1)]:
            raise common.Mismatch(f"log is not that of {n}: {len(log)} rows, {log[:1]} .. {log[-1:]}")
        stored = {k: (at, v) for k, at, v in db.iterate("SELECT k, n, v FROM kv")}
        for key in range(KEYS):
            want = self.expected(key, n)
            have = stored.get(key)
            right = (have is None) if want is None else (have == (want[0], value(self.hashes[want[0]], want[1])))
            if not right:
                raise common.Mismatch(f"kv: key {key} is not as after {n}")
        return n


class Stop(Exception):
    pass


def stop_on_term():
    state = {"stop": False}
    signal.signal(signal.SIGTERM, lambda *_: state.update(stop=True))
    return state


def writer(args):
    """Commits until SIGTERM or the time limit; writes its latencies (microseconds) as JSON."""
    state = stop_on_term()
    db = common.Db(args.db, busy_ms=args.busy_ms)
    db.execute("PRAGMA synchronous = NORMAL")
    if args.autocheckpoint is not None:
        db.execute(f"PRAGMA wal_autocheckpoint = {args.autocheckpoint}")
    total, locked, commit, busy, errors = array("d"), array("d"), array("d"), 0, []
    began = time.monotonic()
    due = began
    while not state["stop"] and time.monotonic() - began < args.seconds:
        if args.rate:
            due += 1 / args.rate
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            else:
                due = time.monotonic()
        try:
            at = time.perf_counter()
            _, lock, done = step(db, args.id)
            total.append((time.perf_counter() - at) * 1e6)
            locked.append(lock * 1e6)
            commit.append(done * 1e6)
        except common.BusyError:
            busy += 1
        except common.DbError as e:
            errors.append(f"{type(e).__name__}: {e}")
            if len(errors) > 20:
                break
    seconds = time.monotonic() - began
    db.close()
    figures = {"commits": len(total), "seconds": seconds, "busy": busy, "errors": errors[:5],
               "total": total.tolist(), "lock": locked.tolist(), "commit": commit.tolist()}
    with open(args.stats, "w") as f:
        json.dump(figures, f)


def checkpointer(args):
    """Checkpoints in random modes at random moments, as a process that knows nothing of replication."""
    state = stop_on_term()
    rng = random.Random(args.seed)
    waits = [int(x) for x in args.busy.split(",")]
    done = {mode: [0, 0] for mode in CHECKPOINTS}
    errors = []
    began = time.monotonic()
    while not state["stop"] and time.monotonic() - began < args.seconds:
        time.sleep(rng.expovariate(1000 / args.mean_ms))
        mode = rng.choice(CHECKPOINTS)
        try:
            db = common.Db(args.db, busy_ms=rng.choice(waits))
            for _ in range(rng.randrange(1, 6)):
                row = db.execute(f"PRAGMA wal_checkpoint({mode})")[0]
                done[mode][0] += 1
                done[mode][1] += row[0] == 0 and row[1] == row[2]
                time.sleep(rng.expovariate(1000 / args.mean_ms))
            db.close()
        except common.BusyError:
            pass
        except common.DbError as e:
            errors.append(f"{type(e).__name__}: {e}")
    with open(args.stats, "w") as f:
        json.dump({"checkpoints": done, "errors": errors[:5]}, f)


class Crew:
    """The writers and the foreign checkpointer of one database."""

    def __init__(self, db, where, writers=3, rate=0, seed=0, foreign=True, autocheckpoint=None, seconds=3600, mean_ms=80, foreign_busy="0,20,200"):
        self.where = where
        base = [sys.executable, common.HERE / "chain.py"]
        self.members = []
        for i in range(writers):
            stats = where / f"writer-{i}-{time.monotonic_ns()}.json"
            extra = [] if autocheckpoint is None else ["--autocheckpoint", autocheckpoint]
            argv = [*base, "writer", db, "--id", i + 1, "--rate", rate, "--seconds", seconds, "--stats", stats, *extra]
            self.members.append(("writer", common.spawn(argv), stats))
        if foreign:
            stats = where / f"checkpointer-{time.monotonic_ns()}.json"
            argv = [*base, "checkpointer", db, "--seed", seed, "--mean-ms", mean_ms, "--busy", foreign_busy, "--seconds", seconds, "--stats", stats]
            self.members.append(("checkpointer", common.spawn(argv), stats))

    def stop(self):
        """Ends everyone and returns figures: commits, rate, latencies in milliseconds, checkpoints, errors."""
        for _, child, _ in self.members:
            child.send_signal(signal.SIGTERM)
        result = {"commits": 0, "busy": 0, "errors": [], "checkpoints": {}}
        total, lock, commit, rate = [], [], [], 0.0
        for role, child, stats in self.members:
            code = child.wait(60)
            common.kill_group(child)
            if code != 0 or not stats.exists():
                result["errors"].append(f"{role} ended with {code}")
                continue
            with open(stats) as f:
                found = json.load(f)
            result["errors"] += found["errors"]
            if role == "writer":
                result["commits"] += found["commits"]
                result["busy"] += found["busy"]
                rate += found["commits"] / found["seconds"] if found["seconds"] else 0
                total += found["total"]
                lock += found["lock"]
                commit += found["commit"]
            else:
                result["checkpoints"] = {m: f"{ok}/{n}" for m, (n, ok) in found["checkpoints"].items()}
        milli = lambda values: {k: round(v / 1000, 2) if v is not None else None for k, v in common.quantiles(values).items()}
        result.update(rate=round(rate, 1), total_ms=milli(total), lock_ms=milli(lock), commit_ms=milli(commit),
                      over_50ms=sum(v > 50_000 for v in total))
        return result


def main():
    p = argparse.ArgumentParser()
    sub = p.add_subparsers(required=True)
    w = sub.add_parser("writer")
    w.add_argument("db")
    w.add_argument("--id", type=int, default=1)
    w.add_argument("--rate", type=float, default=0)
    w.add_argument("--autocheckpoint", type=int, default=None)
    w.add_argument("--busy-ms", type=int, default=5000)
    w.set_defaults(role=writer)
    c = sub.add_parser("checkpointer")
    c.add_argument("db")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--mean-ms", type=float, default=80)
    c.add_argument("--busy", default="0,20,200", help="busy timeouts in ms, one is drawn per connection")
    c.set_defaults(role=checkpointer)
    for each in (w, c):
        each.add_argument("--seconds", type=float, default=3600)
        each.add_argument("--stats", required=True)
    args = p.parse_args()
    args.role(args)


if __name__ == "__main__":
    main()
