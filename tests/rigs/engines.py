#!/usr/bin/env python3
"""Applications whose SQLite is not the stock one, beside the daemon: 20 commits with checkpoints, kill -9 of the application, a restart
of the daemon. Right is: every row is restored, or `sync -wait` and `status` fail. Installs pinned packages of PyPI and npm below
--packages; what cannot be installed is an error. Not part of the test run (slow, needs both registries)."""

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

PYTHON = ["apsw==3.51.1.0", "pyturso==0.8.3", "libsql==0.1.11", "sqlcipher3-wheels==0.5.7",
          "duckdb==1.5.5", "duckdb-extension-sqlite-scanner==1.5.5"]
NODE = ["node-sqlite3-wasm@0.8.60", "better-sqlite3@12.11.1", "better-sqlite3-multiple-ciphers@12.11.1", "sql.js@1.13.0",
        "node@24.21.0"]

# Each waits for its standard input: a line is one commit, answered by a line. It says what it is when it has opened the database.
SQLITE3 = """
import sqlite3, sys
c = sqlite3.connect("file:%%s%%s" %% (sys.argv[1], %r), uri=True, isolation_level=None)
%s
c.execute("create table if not exists t(id integer primary key, v)")
print("open", flush=True)
for line in sys.stdin:
    c.execute("insert into t(v) values (randomblob(900))")
    if int(line) %% 7 == 6: c.execute("pragma wal_checkpoint(truncate)").fetchall()
    print("done", flush=True)
"""
EXCLUSIVE = 'c.execute("pragma locking_mode=exclusive"); c.execute("pragma journal_mode=wal").fetchall()'
GENERIC = """
import sys
%s
c.execute("create table if not exists t(id integer primary key, v)")
%s
print("open", flush=True)
for line in sys.stdin:
    c.execute("insert into t(v) values (randomblob(900))")
    %s
    print("done", flush=True)
"""
WASM = """
const { Database } = require("node-sqlite3-wasm");
const db = new Database(process.argv[1]);
db.exec("PRAGMA locking_mode=exclusive; PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)");
const commit = n => { db.exec("INSERT INTO t(v) VALUES (randomblob(900))"); if (n % 7 == 6) db.exec("PRAGMA wal_checkpoint(TRUNCATE)"); };
"""
BETTER = """
const db = new (require("%s"))(process.argv[1]);
db.pragma("journal_mode = WAL"); db.exec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)");
const commit = n => { db.exec("INSERT INTO t(v) VALUES (randomblob(900))"); if (n %% 7 == 6) db.pragma("wal_checkpoint(TRUNCATE)"); };
"""
NODE_SQLITE = """
const db = new (require("node:sqlite").DatabaseSync)(process.argv[1]);
db.exec("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)");
const commit = n => { db.exec("INSERT INTO t(v) VALUES (randomblob(900))"); if (n % 7 == 6) db.exec("PRAGMA wal_checkpoint(TRUNCATE)"); };
"""
DUCKDB = """
import glob, os, sys
import duckdb, duckdb_extension_sqlite_scanner as scanner
c = duckdb.connect(config={"allow_unsigned_extensions": "true"})
c.execute("LOAD '%s'" % glob.glob(os.path.dirname(scanner.__file__) + "/extensions/*/*")[0])
c.execute("ATTACH '%s' AS s (TYPE sqlite)" % sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    c.execute("INSERT INTO s.t(id, v) VALUES (?, ?)", [int(line) + 1, os.urandom(900)])
    print("done", flush=True)
"""
SQLJS = """
const fs = require("fs");
let db;
const open = require("sql.js")().then(SQL => {
  db = new SQL.Database(fs.readFileSync(process.argv[1]));
  db.run("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)");
  fs.writeFileSync(process.argv[1], db.export());
});
const commit = n => { db.run("INSERT INTO t(v) VALUES (randomblob(900))"); fs.writeFileSync(process.argv[1], db.export()); };
"""
NODE_LOOP = """
Promise.resolve(typeof open === "undefined" ? 0 : open).then(() => {
  console.log("open");
  require("readline").createInterface({ input: process.stdin }).on("line", line => { commit(+line); console.log("done"); });
});
"""


def engines(python, modules):
    py = [python, "-c"]
    env = {**os.environ, "NODE_PATH": modules}
    node = lambda text: (["node", "-e", text + NODE_LOOP, "--"], env)
    turso = GENERIC % ("import turso; c = turso.connect(sys.argv[1]%s)", "c.commit()", "c.commit()")
    return {
        "sqlite3": (py + [SQLITE3 % ("", "c.execute('pragma journal_mode=wal')")], None),
        "sqlite3 vfs=unix-none": (py + [SQLITE3 % ("?vfs=unix-none", EXCLUSIVE)], None),
        "sqlite3 vfs=unix-dotfile": (py + [SQLITE3 % ("?vfs=unix-dotfile", EXCLUSIVE)], None),
        "sqlite3 exclusive, heap wal-index": (py + [SQLITE3 % ("", EXCLUSIVE)], None),
        "apsw": (py + [GENERIC % ("import apsw; c = apsw.Connection(sys.argv[1])", "c.execute('pragma journal_mode=wal')", "pass")], None),
        "pyturso": (py + [turso % ""], None),
        "pyturso multiprocess_wal": (py + [turso % ', experimental_features="multiprocess_wal"'], None),
        "libsql": (py + [GENERIC % ("import libsql; c = libsql.connect(sys.argv[1])", "c.commit()", "c.commit()")], None),
        "sqlcipher3, no key": (
            py + [GENERIC % ("from sqlcipher3 import dbapi2 as s; c = s.connect(sys.argv[1], isolation_level=None)", "pass", "pass")], None),
        "node-sqlite3-wasm, exclusive": node(WASM),
        "better-sqlite3": node(BETTER % "better-sqlite3"),
        "better-sqlite3-multiple-ciphers, no key": node(BETTER % "better-sqlite3-multiple-ciphers"),
        "sql.js, autosave": node(SQLJS),
        "node:sqlite": ([f"{modules}/node/bin/node", "-e", NODE_SQLITE + NODE_LOOP, "--"], env),
        "DuckDB's SQLite extension": (py + [DUCKDB], None),
    }


class Daemon:
    def __init__(self, bin, dir):
        self.bin, self.dir, self.socket = bin, dir, f"{dir}/socket"
        config = f"""
socket: {{enabled: true, path: {self.socket}}}
dbs:
  - path: {dir}/app.db
    monitor-interval: 200ms
    replica: {{url: "file://{dir}/replica", sync-interval: 200ms}}
"""
        open(f"{dir}/litestream.yml", "w").write(config)
        self.start()

    def start(self):
        log = open(f"{self.dir}/log", "a")
        self.child = subprocess.Popen([self.bin, "replicate", "-config", f"{self.dir}/litestream.yml"], stdout=log, stderr=log)
        time.sleep(1.5)

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(60)

    def ask(self, *args):
        done = subprocess.run([self.bin, *args], capture_output=True, text=True, timeout=60)
        return done.returncode, (done.stdout + done.stderr).strip().replace("\n", " ")[:110]

    def verdict(self, want):
        synced, text = self.ask("sync", "-wait", "-timeout", "20", "-socket", self.socket, f"{self.dir}/app.db")
        status, _ = self.ask("status", "-max-lag", "10s", "-socket", self.socket)
        out = f"{self.dir}/out.db"
        for name in (out, out + "-wal", out + "-shm"):
            if os.path.exists(name):
                os.unlink(name)
        restored, _ = self.ask("restore", "-o", out, f"file://{self.dir}/replica")
        rows = -1
        if restored == 0:
            try:
                conn = sqlite3.connect(out)
                rows = conn.execute("select count(*) from t").fetchone()[0]
                if conn.execute("pragma integrity_check").fetchone()[0] != "ok":
                    rows = -2
                conn.close()
            except sqlite3.Error:
                rows = -3
        said = synced != 0 and status != 0
        right = rows == want or (said and rows <= want and rows != -2)
        return right, f"{rows} of {want} rows, sync {synced}, status {status}" + (f": {text}" if said else "")


def play(name, command, env, bin):
    dir = tempfile.mkdtemp(prefix="engines-")
    conn = sqlite3.connect(f"{dir}/app.db")
    conn.executescript("create table t(id integer primary key, v); pragma journal_mode=wal;")
    conn.close()
    daemon = Daemon(bin, dir)
    app = subprocess.Popen(command + [f"{dir}/app.db"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=open(f"{dir}/app.log", "w"), text=True)
    lines, done = [], 0
    try:
        if app.stdout.readline().strip() != "open":
            text = open(f"{dir}/app.log").read().strip().splitlines()[-1:]
            return True, [f"does not open a database that is followed: {text}"]
        for n in range(20):
            app.stdin.write(f"{n}\n")
            app.stdin.flush()
            if app.stdout.readline().strip() != "done":
                lines.append(f"stopped after {done} commits")
                break
            done += 1
            time.sleep(0.1)
        time.sleep(1)
        ok, text = daemon.verdict(done)
        lines.append(f"running: {text}")
        app.kill()
        app.wait()
        ok2, text = daemon.verdict(done)
        lines.append(f"killed: {text}")
        daemon.stop()
        daemon.start()
        ok3, text = daemon.verdict(done)
        lines.append(f"restarted: {text}")
        return ok and ok2 and ok3, lines
    finally:
        app.kill()
        daemon.child.kill()
        daemon.child.wait()
        os.environ.get("KEEP") or shutil.rmtree(dir, ignore_errors=True)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--bin", default="target/release/litestream")
    args.add_argument("--packages", default="target/engines")
    args.add_argument("--only", action="append")
    args = args.parse_args()
    packages = os.path.abspath(args.packages)
    os.makedirs(packages, exist_ok=True)
    python = f"{packages}/venv/bin/python"
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", f"{packages}/venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON], check=True)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", packages, *NODE], check=True)
    wrong = 0
    for name, (command, env) in engines(python, f"{packages}/node_modules").items():
        if args.only and name not in args.only:
            continue
        right, lines = play(name, command, env, os.path.abspath(args.bin))
        wrong += not right
        print(f"{'right' if right else 'WRONG'}  {name}")
        for line in lines:
            print(f"         {line}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
