#!/usr/bin/env python3
"""As the first process of a container: are signals passed on, orphans collected, the last commits replicated?

Starts the program as process 1 of a PID namespace of its own, with an application that leaves orphans behind, answers
SIGTERM with a last commit, and fails. Needs permission to make namespaces (root, or user namespaces); says so and exits
with 77 without it.
"""
import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APPLICATION = """#!/bin/bash
trap 'touch told; while [ ! -e done ]; do sleep 0.05; done; exit {code}' TERM
for i in 1 2 3 4 5; do bash -c 'sleep 0.2 & exit 0'; done
touch up
while :; do sleep 0.05; done
"""
LIMIT = 60


def wait(what, ready):
    end = time.monotonic() + LIMIT
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"waited {LIMIT} s in vain: {what}")
        time.sleep(0.05)


def namespace():
    """The way to make a PID namespace here, or None."""
    for flags in (["-pf", "--mount-proc"], ["-Urpf", "--mount-proc"]):
        if subprocess.run(["unshare", *flags, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            return ["unshare", *flags, "--kill-child"]
    return None


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(init):
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in children(init)]
    return states.count("Z")


def round_with(binary, prefix, code):
    home = Path(tempfile.mkdtemp(prefix="pid1-"))
    try:
        db = sqlite3.connect(home / "app.db")
        db.executescript("pragma journal_mode = wal; create table t(v); insert into t values ('first');")
        db.close()
        (home / "app.sh").write_text(APPLICATION.format(code=code))
        (home / "app.sh").chmod(0o755)
        url = f"file://{home}/rep"
        with open(home / "log", "w") as log:
            outer = subprocess.Popen(
                [*prefix, binary, "replicate", "-exec", "./app.sh", "app.db", url], cwd=home, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )
        wait("application", (home / "up").exists)
        init = children(outer.pid)[0]
        time.sleep(1)  # the orphans have ended by now
        left = zombies(init)
        os.kill(init, signal.SIGTERM)
        wait("signal to arrive", (home / "told").exists)
        db = sqlite3.connect(home / "app.db")
        db.execute("insert into t values ('last')")
        db.commit()
        db.close()
        (home / "done").touch()
        ended = outer.wait(LIMIT)
        subprocess.run([binary, "restore", "-o", "out.db", url], cwd=home, check=True, timeout=LIMIT)
        rows = [row for (row,) in sqlite3.connect(home / "out.db").execute("select v from t")]
        wrong = []
        if left:
            wrong.append(f"{left} zombies")
        if ended != (1 if code else 0):
            wrong.append(f"exit code {ended}")
        if rows != ["first", "last"]:
            wrong.append(f"restored {rows}")
        if wrong:
            print((home / "log").read_text())
        return {"application": code, "exit": ended, "zombies": left, "rows": rows, "wrong": wrong}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True)
    args = parser.parse_args()
    prefix = namespace()
    if not prefix:
        print("not run: no permission to make a PID namespace")
        sys.exit(77)
    rounds = [round_with(os.path.abspath(args.bin), prefix, code) for code in (0, 5)]
    print(json.dumps({"rounds": rounds}))
    sys.exit(any(r["wrong"] for r in rounds))


if __name__ == "__main__":
    main()
