#!/usr/bin/env python3
"""Full disks and I/O errors: a clear error, no false success, nothing destroyed, recovery without a restart.

meta-full      metadata directory on a full tmpfs: `-once` and a daemon
replica-full   replica on a full tmpfs: `-once` and a daemon
restore-full   restore target on a full tmpfs: new path, and -force over an existing database
wal-eio        pread64 of the WAL fails (strace -P): `-once` with different starting points, and a daemon
fsync-eio      every fsync/fdatasync of a daemon fails for a while (strace)
refused        write, fsync, rename, open below the replica or the metadata directory, reads of the database fail (killat.c):
               `-once`, and a daemon for a while

Rule for every `-once`: exit 0 only if the restore equals the source. Rule for every daemon: an ERROR or WARN line that names
the fault while it lasts; after it ends, the restore equals the source within `--recover-seconds`, the same process still running.
Mounting needs root, wal-eio and fsync-eio need strace, refused needs a C compiler; what cannot run is counted as skipped.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import chain
import common

FULL = re.compile(r"no space left|disk full|os error 28|ENOSPC|disk is full", re.I)
EMFILE = re.compile(r"too many open files|os error 24\b|EMFILE", re.I)
# SQLite itself reports a WAL page that it cannot read as a malformed database in one place.
SQLITE_EIO = re.compile(r"input/output error|I/O error|os error 5\b|EIO|short read|malformed", re.I)
EIO = re.compile(r"input/output error|I/O error|os error 5\b|EIO|short read", re.I)


class Place:
    """One database with some history, its metadata and replica wherever the case wants them."""

    made = 0

    def __init__(self, rig, meta=None, replica=None):
        # The directory's name must not look like an error: log lines quote paths.
        Place.made += 1
        self.rig, self.dir = rig, rig.dir / f"place-{Place.made}"
        self.dir.mkdir()
        self.db, self.replica = self.dir / "app.db", replica or self.dir / "replica"
        self.model = chain.Model()
        chain.create(self.db)
        self.source = common.Db(self.db)
        self.source.execute("PRAGMA wal_autocheckpoint = 0")
        self.source.execute("CREATE TABLE ballast (id INTEGER PRIMARY KEY, data BLOB)")
        self.config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.db), **({"meta-path": str(meta)} if meta else {}), "monitor-interval": "100ms",
            "replica": {"url": common.url(self.replica), "sync-interval": "100ms"}}], **{"shutdown-sync-timeout": "2s"})
        self.log = self.dir / "daemon.log"
        self.write(20)

    def write(self, commits, kilobytes=0):
        for _ in range(commits):
            chain.step(self.source, 1)
        for _ in range(kilobytes // 64):
            self.source.execute("INSERT INTO ballast (data) VALUES (randomblob(65536))")

    def once(self, wrap=()):
        return common.run([*wrap, self.rig.bin.path, "replicate", "-once", "-config", self.config], 90)

    def daemon(self, wrap=()):
        return common.Daemon([*wrap, self.rig.bin.path, "replicate", "-config", self.config], self.log)

    def wrong(self):
        """'' when the restore equals the source."""
        out = self.dir / "restored.db"
        result = common.restore_fresh(self.rig.bin, self.replica, out)
        if result.code != 0:
            return f"restore: {result.message}"
        try:
            n = self.model.verify(out)
            if n != self.source.value("SELECT max(n) FROM chain"):
                return f"restored commit {n} of {self.source.value('SELECT max(n) FROM chain')}"
            if common.restored_rows(out) != common.rows_sha256_of(self.source):
                return "other rows"
        except common.Mismatch as e:
            return str(e)
        return ""

    def recovers(self):
        """'' once the restore equals the source, else what is still wrong when time is up."""
        last = ["never looked"]

        def equal():
            last[0] = self.wrong()
            return not last[0]
        began = time.monotonic()
        common.wait_for(equal, self.rig.args.recover_seconds, 0.5)
        self.took = time.monotonic() - began
        return last[0]


def tmpfs(rig, name, megabytes):
    path = rig.dir / name
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, timeout=20)
    if done.returncode != 0:
        return None
    rig.undo(lambda: subprocess.run(["umount", "-l", str(path)], timeout=20, capture_output=True))
    return path


def fill(path):
    """Takes all free space but a few kilobytes; returns the file to delete."""
    ballast = path / "ballast"
    with open(ballast, "wb") as f:
        try:
            while True:
                f.write(bytes(16384))
                f.flush()
        except OSError:
            pass
    return ballast


def telling(text, pattern):
    return [x for x in text.splitlines() if pattern.search(x)]


def check_once(place, result, pattern, label):
    """Exit 0 must be true; an error must say what is wrong."""
    wrong = place.wrong()
    if result.code == 0:
        return place.rig.case(label, not wrong, f"exit 0, {wrong or 'and the restore equals the source'}")
    if result.code == -999:
        return place.rig.case(label, False, "did not end")
    said = telling(result.err + result.out, pattern)
    return place.rig.case(label, bool(said), f"exit {result.code}: {(said or [result.message])[-1][-160:]}")


def full_disk(rig, which):
    disk = tmpfs(rig, f"{which}-disk", 24)
    if disk is None:
        return rig.case(f"{which}-full", None, "cannot mount a tmpfs here")
    where = disk / "store"
    place = Place(rig, **{which: where})
    if (first := place.once()).code != 0:
        return rig.case(f"{which}-full", False, f"cannot prepare: {first.message}")
    ballast = fill(disk)
    place.write(20, 1024)
    check_once(place, place.once(), FULL, f"{which}-full -once")
    ballast.unlink()
    again = place.once()
    rig.case(f"{which}-full -once, space freed", again.code == 0 and not place.wrong(), place.wrong() or again.message[-100:])

    daemon = place.daemon()
    try:
        place.write(1)
        rig.case(f"{which}-full daemon starts", not place.recovers())
        mark = len(daemon.log_text())
        ballast = fill(disk)
        place.write(20, 1024)
        said = common.wait_for(lambda: telling(daemon.log_text()[mark:], FULL), 20)
        rig.case(f"{which}-full daemon says so", bool(said), (said or ["no such line in 20 s"])[0][-200:])
        place.write(20)
        time.sleep(4)
        out = place.dir / "during.db"
        result = common.restore_fresh(rig.bin, place.replica, out)
        try:
            rig.case(f"{which}-full replica stays restorable", result.code == 0 and place.model.verify(out) > 0, result.message[-100:] if result.code else "")
        except common.Mismatch as e:
            rig.case(f"{which}-full replica stays restorable", False, e)
        ballast.unlink()
        wrong = place.recovers()
        rig.case(f"{which}-full daemon recovers", not wrong and daemon.alive(), wrong or f"{place.took:.1f} s after the space was freed")
        code = daemon.terminate()
        rig.case(f"{which}-full tidy", code == 0 and not common.leftovers(disk), f"exit {code}, {common.leftovers(disk)}")
    finally:
        daemon.kill()
    place.source.close()


def restore_full(rig):
    disk = tmpfs(rig, "restore-disk", 8)
    if disk is None:
        return rig.case("restore-full", None, "cannot mount a tmpfs here")
    place = Place(rig)
    place.write(50, 12 * 1024)
    if (first := place.once()).code != 0:
        return rig.case("restore-full", False, f"cannot prepare: {first.message}")
    target = disk / "new.db"
    result = rig.bin.restore(place.replica, target)
    said = telling(result.err + result.out, FULL)
    left = sorted(p.name for p in disk.iterdir())
    rig.case("restore-full new path", result.code not in (0, -999) and bool(said) and not left, f"exit {result.code}, {(said or [result.message])[-1][:120]}, left {left}")
    old = disk / "old.db"
    db = common.Db(old)
    db.execute("CREATE TABLE precious (x)")
    db.execute("INSERT INTO precious VALUES ('the only copy')")
    db.close()
    before = old.read_bytes()
    result = rig.bin.restore(place.replica, old, options=["-force"])
    left = sorted(p.name for p in disk.iterdir())
    intact = old.exists() and old.read_bytes() == before
    rig.case("restore-full -force, old database intact", result.code not in (0, -999) and intact and left == ["old.db"], f"exit {result.code}, left {left}")
    place.source.close()


def strace(calls, error, when, *paths, log="/dev/null"):
    names = ",".join(calls)
    only = [x for p in paths for x in ("-P", p)]
    return ["strace", "-f", "-q", "-o", log, *only, "-e", f"trace={names}", "-e", f"inject={names}:error={error}:when={when}"]


READS = ("read", "pread64", "preadv", "readv")


def injected(path):
    text = path.read_text(errors="replace") if path.exists() else ""
    return text.count("(INJECTED)")


def eio(rig):
    if not shutil.which("strace"):
        return rig.case("wal-eio", None, "needs strace")
    for when in rig.args.whens.split(","):
        place = Place(rig)
        if (first := place.once()).code != 0:
            rig.case(f"wal-eio -once when={when}", False, f"cannot prepare: {first.message}")
            continue
        place.write(20)
        trace = place.dir / "trace"
        result = place.once(strace(READS, "EIO", when, f"{place.db}-wal", log=trace))
        check_once(place, result, SQLITE_EIO, f"wal-eio -once when={when} ({injected(trace)} faults)")
        again = place.once()
        wrong = place.wrong() if again.code == 0 else again.message
        rig.case(f"wal-eio -once when={when}, afterwards", not wrong, wrong)
        place.source.close()

    # A daemon: strace attaches to the running process and goes away again, so the fault ends by itself.
    for label, calls, wal in (("wal-eio", READS, True), ("fsync-eio", ("fsync", "fdatasync"), False)):
        place = Place(rig)
        daemon = place.daemon()
        try:
            place.write(1)
            rig.case(f"{label} daemon starts", not place.recovers())
            mark, trace = len(daemon.log_text()), place.dir / "trace"
            names = ",".join(calls)
            fault = common.spawn(["strace", "-f", "-q", "-o", trace, "-p", daemon.pid, *(["-P", f"{place.db}-wal"] if wal else []),
                                  "-e", f"trace={names}", "-e", f"inject={names}:error=EIO:when=1+"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.5)
            for _ in range(40):
                place.write(2)
                time.sleep(0.1)
            fault.send_signal(signal.SIGINT)
            common.wait_for(lambda: fault.poll() is not None, 10)
            common.kill_group(fault)
            faults, said = injected(trace), telling(daemon.log_text()[mark:], EIO)
            rig.case(f"{label} daemon says so", bool(said) if faults else None, (said or [f"{faults} faults, no line about them"])[0][-160:])
            during = place.wrong()
            place.write(5)
            wrong = place.recovers()
            rig.case(f"{label} daemon recovers ({faults} faults)", not wrong and daemon.alive(), wrong or f"{place.took:.1f} s; during: {during or 'equal'}")
        finally:
            daemon.kill()
        place.source.close()


# (name, which files, error number, what a message must match, system calls)
NAMES = "rename,renameat,renameat2,link,linkat"
REFUSED = (
    ("replica write EIO", "replica", 5, EIO, "write,pwrite64,writev,pwritev,copy_file_range,sendfile"),
    ("replica fsync EIO", "replica", 5, EIO, "fsync,fdatasync"),
    ("replica rename EIO", "replica", 5, EIO, NAMES),
    ("replica open EMFILE", "replica", 24, EMFILE, "open,openat"),
    ("meta write ENOSPC", "meta", 28, FULL, "write,pwrite64,writev,pwritev"),
    ("meta fsync EIO", "meta", 5, EIO, "fsync,fdatasync"),
    ("meta rename EIO", "meta", 5, EIO, NAMES),
    ("database read EIO", "db", 5, SQLITE_EIO, "read,pread64,preadv,readv"),
)


def refused(rig):
    """System calls on chosen files fail for a while (killat.c): `-once`, and a daemon that must come back by itself."""
    killat = rig.dir / "killat"
    built = common.run(["cc", "-O2", "-o", killat, common.HERE / "killat.c"], 60)
    if built.code != 0:
        return rig.case("refused", None, f"needs a C compiler: {built.message}")
    for label, files, number, pattern, calls in REFUSED:
        if rig.args.refused not in label:
            continue
        place = Place(rig)
        prefix = {"replica": place.replica, "meta": place.dir / ".app.db-litestream", "db": place.db}[files]
        flag, log = place.dir / "flag", place.dir / "refused.log"
        wrap = [killat, f"E{number}:{flag}:{calls}", prefix, log]
        count = lambda: len(log.read_text(errors="replace").splitlines()) if log.exists() else 0
        if (first := place.once()).code != 0:
            rig.case(f"{label} -once", False, f"cannot prepare: {first.message}")
            continue
        place.write(20, 256)
        flag.touch()
        result = place.once(wrap)
        faults = count()
        flag.unlink()
        if faults or result.code != 0:
            check_once(place, result, pattern, f"{label} -once ({faults} faults)")
        else:
            rig.case(f"{label} -once", None, "the program makes no such call")
        again = place.once()
        wrong = place.wrong() if again.code == 0 else again.message
        rig.case(f"{label} -once, afterwards", not wrong, wrong)

        daemon = place.daemon(wrap)
        try:
            # A commit that only this daemon can have replicated: it is past its start.
            place.write(1)
            if wrong := place.recovers():
                rig.case(f"{label} daemon starts", False, wrong)
                continue
            mark = len(daemon.log_text())
            flag.touch()
            for _ in range(40):
                place.write(1)
                time.sleep(0.1)
            faults, said, during = count(), telling(daemon.log_text()[mark:], pattern), place.wrong()
            flag.unlink()
            rig.case(f"{label} daemon says so", bool(said) if faults else None, (said or [f"{faults} faults, no line about them"])[0][-160:])
            place.write(5)
            wrong = place.recovers()
            rig.case(f"{label} daemon recovers ({faults} faults)", not wrong and daemon.alive(), wrong or f"{place.took:.1f} s; during: {during or 'equal'}")
        finally:
            daemon.kill()
        # The same fault while a daemon starts: a start that failed half-way must not be its end.
        place.write(5)
        flag.touch()
        daemon = place.daemon(wrap)
        try:
            time.sleep(3)
            faults = count()
            flag.unlink()
            wrong = place.recovers()
            rig.case(f"{label} at start, daemon recovers ({faults} faults)", not wrong and daemon.alive(), wrong or f"{place.took:.1f} s")
        finally:
            daemon.kill()
            place.source.close()


def main():
    p = common.parser(__doc__)
    p.add_argument("--recover-seconds", type=float, default=60, help="limit for recovery after a fault has ended")
    p.add_argument("--only", default="meta,replica,restore,eio,refused")
    p.add_argument("--refused", default="", help="only cases of `refused` whose name contains this")
    p.add_argument("--whens", default="1+,2+,3+,5+,9+,15+,25+,40+", help="first failing WAL read of -once")
    rig = common.Rig("faults", args := p.parse_args())
    only = args.only.split(",")
    for which in ("meta", "replica"):
        if which in only:
            full_disk(rig, which)
    if "restore" in only:
        restore_full(rig)
    if "eio" in only:
        eio(rig)
    if "refused" in only:
        refused(rig)
    rig.finish()


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
