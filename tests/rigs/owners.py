#!/usr/bin/env python3
"""A daemon of another user or group: is the application ever locked out of its database?

Each case: the application (user 1000, its own group) makes a database and closes it, so that nothing stands beside it. The
daemon starts as the case says. Then the application opens the database, writes, and writes again after the daemon was killed: all
of that must succeed. Either its commits are on the replica, or the daemon has created nothing beside the database and an
ERROR says what to grant. Which of the two is part of the case. Needs root, to become the others.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import common

APP, DAEMON, THIRD = 61000, 62000, 63000
SUFFIXES = ("-wal", "-shm", "-journal")

# Name; user, group and other groups of the daemon; mode of the database; group and mode of its directory; whether it can work.
CASES = [
    ("same user", (APP, APP, []), 0o600, (APP, 0o700), True),
    ("same user, other group", (APP, DAEMON, []), 0o600, (APP, 0o700), True),
    ("same user, other group, group reads", (APP, DAEMON, []), 0o640, (APP, 0o770), False),
    ("same user, supplementary group", (APP, DAEMON, [APP]), 0o660, (APP, 0o770), True),
    ("own user, group may only read", (DAEMON, APP, []), 0o640, (APP, 0o770), False),
    ("own user, supplementary, group may only read", (DAEMON, DAEMON, [APP]), 0o640, (APP, 0o2770), False),
    ("own user, application's group", (DAEMON, APP, []), 0o660, (APP, 0o770), True),
    ("own user, supplementary group", (DAEMON, DAEMON, [APP]), 0o660, (APP, 0o770), True),
    ("own user, supplementary group, setgid", (DAEMON, DAEMON, [APP]), 0o660, (APP, 0o2770), True),
    ("own user, not in the group", (DAEMON, DAEMON, []), 0o666, (APP, 0o777), True),
    ("own user, not in the group, others read", (DAEMON, DAEMON, []), 0o664, (APP, 0o777), False),
    ("own user, setgid to a third group", (DAEMON, APP, []), 0o660, (THIRD, 0o2777), True),
    ("own user, directory not writable", (DAEMON, APP, []), 0o660, (APP, 0o750), False),
    ("root", (0, 0, []), 0o600, (APP, 0o700), True),
]


def as_user(user, group, groups, work):
    """What `work` returns in a child that has become somebody else; a text that begins with `error` if it raises."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(there)
            os.setgroups(groups)
            os.setgid(group)
            os.setuid(user)
            os.umask(0o077)
            answer = work()
        except BaseException as e:
            answer = f"error: {type(e).__name__}: {e}"
        os.write(here, json.dumps(answer).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as f:
        answer = json.loads(f.read() or '"error: died"')
    os.waitpid(child, 0)
    return answer


def make(db, journal):
    source = common.Db(db)
    source.execute(f"PRAGMA journal_mode = {journal}")
    source.execute("CREATE TABLE t (x)")
    source.execute("INSERT INTO t VALUES (0)")
    source.close()
    return "made"


def write(db):
    source = common.Db(db)
    source.execute("INSERT INTO t SELECT max(x) + 1 FROM t")
    rows = source.value("SELECT count(*) FROM t")
    # As an application that ends: the last one removes log and index.
    source.close()
    return rows


def seen(db):
    found = {}
    for suffix in SUFFIXES:
        try:
            stat = os.stat(f"{db}{suffix}")
            found[suffix] = f"{stat.st_uid}:{stat.st_gid} {stat.st_mode & 0o7777:04o}"
        except FileNotFoundError:
            pass
    return found


def restored(rig, replica, out):
    result = common.restore_fresh(rig.bin, replica, out)
    return common.open_restored(out).value("SELECT count(*) FROM t") if result.code == 0 else 0


def case(rig, program, n, journal, name, who, mode, place, works):
    label, scene = f"{name}, {journal}", rig.dir / f"case{n}"
    home, group_dir = scene / "data", scene / "daemon"
    for made in (scene, home, group_dir):
        made.mkdir()
        os.chmod(made, 0o755)
    os.chown(home, APP, place[0])
    os.chmod(home, place[1])
    os.chown(group_dir, who[0], who[1])
    db = home / "app.db"
    application = (APP, APP, [])
    problems = []

    def application_writes(when):
        answer = as_user(*application, lambda: write(db))
        if not isinstance(answer, int):
            problems.append(f"{when}: {answer} with {seen(db)}")
        return answer

    if (answer := as_user(*application, lambda: make(db, journal))) != "made":
        return rig.case(label, False, answer)
    os.chown(db, APP, APP)
    os.chmod(db, mode)
    config = common.write_config(scene / "litestream.yml", [{
        "path": str(db), "meta-path": str(group_dir / "meta"), "monitor-interval": "50ms",
        "replica": {"url": common.url(group_dir / "replica"), "sync-interval": "50ms"}}], **{"shutdown-sync-timeout": "1s"})
    os.chmod(config, 0o644)
    change = ["setpriv", f"--reuid={who[0]}", f"--regid={who[1]}", "--groups=" + ",".join(map(str, who[2] or [who[1]]))]
    daemon = common.Daemon([*change, program, "replicate", "-config", config], scene / "daemon.log")
    refusal = lambda: [line for line in daemon.log_text().splitlines() if "level=ERROR" in line]
    common.wait_for(lambda: refusal() or common.ltx_files(group_dir / "replica"), 20)
    between = seen(db)
    rows = application_writes("beside the daemon")
    if works:
        arrived = common.wait_for(lambda: restored(rig, group_dir / "replica", scene / "restored.db") == rows, 20, 0.2)
        if not arrived:
            problems.append(f"commits do not arrive: {(refusal() or ['no error'])[0][-300:]}")
    else:
        said = (refusal() or ["nothing was said"])[0]
        if "chmod" not in said or "hint=" not in said:
            problems.append(f"not said: {said[-300:]}")
        if between:
            problems.append(f"created {between}")
    if not daemon.alive():
        problems.append("the daemon has ended")
    daemon.kill()
    for when in ("after the daemon", "once more"):
        application_writes(when)
    rig.case(label, not problems, "; ".join(problems) or ("replicates" if works else refusal()[0].split("error=")[-1][:150]))


def main():
    p = common.parser(__doc__)
    p.add_argument("--only", default="", help="cases whose name contains this")
    rig = common.Rig("owners", args := p.parse_args())
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        sys.exit("owners: needs root and setpriv (util-linux): nothing was tried")
    os.chmod(rig.dir, 0o755)
    # Others may not be able to reach the place where it was built.
    program = shutil.copy(rig.bin.path, rig.dir / "litestream")
    os.chmod(program, 0o755)
    cases = [(journal, *row) for journal in ("wal", "delete") for row in CASES]
    for n, (journal, name, *row) in enumerate(cases):
        if args.only in name:
            case(rig, program, n, journal, name, *row)
    rig.finish()


if __name__ == "__main__":
    main()
