"""The application of the rigs: a separate process that obeys JSON lines on stdin.

End of input without `close` is a crash: the process leaves at once and SQLite cleans nothing up.
"""

import json
import os
import random
import sys

import common

CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


def create(db, rng, rows):
    db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, k INTEGER, v TEXT)")
    db.execute("CREATE INDEX IF NOT EXISTS t_k ON t (k, v)")
    db.execute("CREATE TABLE IF NOT EXISTS u (id INTEGER PRIMARY KEY, data BLOB)")
    db.execute("CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, n INTEGER)")
    db.execute("INSERT OR IGNORE INTO counter VALUES (1, 0)")
    db.execute("BEGIN IMMEDIATE")
    for _ in range(rows):
        db.execute("INSERT INTO t (k, v) VALUES (?, ?)", (rng.randrange(1000), text(rng)))
    db.execute("COMMIT")


def text(rng):
    return "%0*x" % (rng.choice((8, 40, 120)), rng.getrandbits(32))


def transaction(db, rng):
    """One commit of a random kind; most touch one or two pages, some many."""
    kind = rng.random()
    db.execute("BEGIN IMMEDIATE")
    if kind < 0.40:
        db.execute("INSERT INTO t (k, v) VALUES (?, ?)", (rng.randrange(1000), text(rng)))
    elif kind < 0.55:
        db.execute("UPDATE counter SET n = n + 1")
    elif kind < 0.70:
        db.execute("UPDATE t SET v = ? WHERE id = (SELECT id FROM t WHERE id >= ? LIMIT 1)", (text(rng), rng.randrange(2000)))
    elif kind < 0.80:
        db.execute("INSERT OR REPLACE INTO u VALUES (?, ?)", (rng.randrange(40), rng.randbytes(rng.choice((50, 900, 5000, 20000)))))
    elif kind < 0.88:
        for _ in range(20):
            db.execute("INSERT INTO t (k, v) VALUES (?, ?)", (rng.randrange(1000), text(rng)))
    elif kind < 0.95:
        low = rng.randrange(2000)
        db.execute("DELETE FROM t WHERE id BETWEEN ? AND ?", (low, low + rng.randrange(30)))
    else:
        db.execute("DELETE FROM u WHERE id = ?", (rng.randrange(40),))
    db.execute("COMMIT")


class Application:
    def __init__(self, path):
        self.path, self.db = path, None

    def open(self, pragmas=(), seed=None, rows=0):
        self.db = common.Db(self.path)
        for pragma in pragmas:
            self.db.execute(f"PRAGMA {pragma}")
        self.db.value("SELECT count(*) FROM sqlite_schema")
        if seed is not None:
            self.db.execute("PRAGMA journal_mode = WAL")
            create(self.db, random.Random(seed), rows)

    def write(self, commits, seed):
        rng = random.Random(seed)
        for _ in range(commits):
            transaction(self.db, rng)

    def checkpoint(self, mode):
        return self.db.execute(f"PRAGMA wal_checkpoint({mode})")[0]

    def sql(self, sql):
        return self.db.execute(sql)

    def rows(self):
        return common.rows_sha256_of(self.db)

    def close(self):
        self.db.close()
        self.db = None


def main():
    application = Application(sys.argv[1])
    for line in sys.stdin.buffer:
        call = json.loads(line)
        try:
            answer = {"value": getattr(application, call.pop("op"))(**call)}
        except Exception as e:  # the rig decides what an error means
            answer = {"error": f"{type(e).__name__}: {e}"}
        sys.stdout.write(json.dumps(answer, default=repr) + "\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
