"""What every rig shares: processes that never outlive the rig, the application's SQLite, hashes, the report.

Rules kept here so that no rig has to think about them:

* Every process is started in its own session, dies with the rig (PR_SET_PDEATHSIG), and is ended by its own id only.
* Every wait has a limit.
* A database that some connection of *this* process has open is never opened as a plain file: closing that descriptor
  would drop SQLite's POSIX locks. Copies are made by a separate `cp`.
"""

import argparse
import atexit
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MIN_SQLITE = (3, 51, 3)


def _enter_venv():
    """Re-runs the script under tests/rigs/.venv when that exists and apsw is not importable here."""
    python = HERE / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != HERE / ".venv" and not os.environ.get("RIGS_IN_VENV"):
        os.environ["RIGS_IN_VENV"] = "1"
        os.execv(python, [str(python), *sys.argv])


try:
    import apsw
except ImportError:
    _enter_venv()
    apsw = None

if apsw:
    SQLITE_VERSION = apsw.sqlite_lib_version()
else:
    import sqlite3
    SQLITE_VERSION = sqlite3.sqlite_version

if tuple(map(int, SQLITE_VERSION.split("."))) < MIN_SQLITE and not os.environ.get("RIGS_ALLOW_OLD_SQLITE"):
    sys.exit(f"SQLite {SQLITE_VERSION} has the WAL-reset bug (fixed in 3.51.3) and would corrupt the database by itself.\n"
             f"Set up the environment once:\n  python3 -m venv {HERE}/.venv && {HERE}/.venv/bin/pip install -r {HERE}/requirements.txt")


# ---------------------------------------------------------------------------------------------- the application's SQLite

class Db:
    """One autocommit connection (apsw, or the standard library's module if that is new enough)."""

    def __init__(self, path, busy_ms=5000, immutable=False):
        self.path = str(path)
        if apsw:
            flags = apsw.SQLITE_OPEN_READONLY if immutable else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            name = f"file:{self.path}?immutable=1" if immutable else self.path
            self._db = apsw.Connection(name, flags | apsw.SQLITE_OPEN_URI)
            self._db.set_busy_timeout(busy_ms)
        else:
            name = f"file:{self.path}?immutable=1&mode=ro" if immutable else f"file:{self.path}"
            self._db = sqlite3.connect(name, uri=True, isolation_level=None, timeout=busy_ms / 1000)

    def execute(self, sql, params=()):
        return list(self._db.execute(sql, params))

    def value(self, sql, params=()):
        rows = self.execute(sql, params)
        return rows[0][0] if rows else None

    def iterate(self, sql, params=()):
        return self._db.execute(sql, params)

    def close(self):
        self._db.close()


if apsw:
    BusyError = apsw.BusyError
    DbError = apsw.Error
else:
    DbError = sqlite3.Error
    BusyError = sqlite3.OperationalError


def rows_sha256_of(db):
    """The content hash of the fixtures: independent of page layout, own bookkeeping tables left out."""
    digest = hashlib.sha256()
    names = [r[0] for r in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for name in sorted(n for n in names if not n.startswith(("sqlite_", "_litestream_"))):
        quoted = '"' + name.replace('"', '""') + '"'
        columns = [r[1] for r in db.execute(f"PRAGMA table_info({quoted})")]
        row = "||'|'||".join('quote("' + c.replace('"', '""') + '")' for c in columns)
        digest.update(f"TABLE {name}\n".encode())
        for line in sorted(r[0].encode() for r in db.iterate(f"SELECT {row} FROM {quoted}")):
            digest.update(line + b"\n")
    return digest.hexdigest()


class Mismatch(Exception):
    """A restored database is not what it must be."""


def open_restored(path):
    """Opens a restored database without leaving files beside it; foreign sidecars are an error in themselves."""
    for suffix in ("-wal", "-shm", "-journal"):
        if os.path.exists(f"{path}{suffix}"):
            raise Mismatch(f"restore left {path}{suffix}")
    return Db(path, immutable=True)


def check_integrity(db):
    first = db.value("PRAGMA integrity_check(3)")
    if first != "ok":
        raise Mismatch(f"integrity_check: {first}")


def restored_rows(path):
    """rows_sha256 of a restored database that also passes integrity_check."""
    db = open_restored(path)
    try:
        check_integrity(db)
        return rows_sha256_of(db)
    except DbError as e:
        raise Mismatch(f"unreadable: {e}") from None
    finally:
        db.close()


def folded(db_path, into):
    """A page-exact copy of a quiet database with its WAL folded in: what a restore must equal byte for byte."""
    into = Path(into)
    into.mkdir(parents=True, exist_ok=True)
    copy = into / "folded.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
    subprocess.run(["cp", str(db_path), str(copy)], check=True, timeout=120)
    if os.path.exists(f"{db_path}-wal"):
        subprocess.run(["cp", f"{db_path}-wal", f"{copy}-wal"], check=True, timeout=120)
    db = Db(copy)
    row = db.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0]
    db.close()
    if row[0] != 0:
        raise RuntimeError(f"cannot fold the copy: {row}")
    return copy


def differing_pages(a, b):
    """Page numbers that differ (the first 8), or a text when the sizes differ; empty = identical."""
    left, right = Path(a).read_bytes(), Path(b).read_bytes()
    if left == right:
        return []
    size = int.from_bytes(left[16:18], "big")
    size = 65536 if size == 1 else max(size, 512)
    found = [f"size {len(left)} != {len(right)}"] if len(left) != len(right) else []
    for at in range(0, min(len(left), len(right)), size):
        if left[at:at + size] != right[at:at + size]:
            found.append(at // size + 1)
            if len(found) == 8:
                break
    return found


def sha256_file(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------------- processes

_libc = ctypes.CDLL(None, use_errno=True)
_children = set()


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)


def spawn(argv, **kw):
    """Popen in its own session that dies with us; registered for clean-up."""
    child = subprocess.Popen([str(a) for a in argv], start_new_session=True, preexec_fn=_die_with_parent, **kw)
    _children.add(child)
    return child


def kill_group(child):
    """Ends the session this rig started, by its own id."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        pass
    _children.discard(child)


@atexit.register
def _reap():
    for child in list(_children):
        kill_group(child)


for _sig in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_sig, lambda *_: sys.exit(143))


class Result:
    def __init__(self, code, out, err, seconds, max_rss_kb=0):
        self.code, self.out, self.err, self.seconds, self.max_rss_kb = code, out, err, seconds, max_rss_kb

    @property
    def message(self):
        """The line that explains a failure best: the last one that speaks of an error, else the last."""
        lines = [x for x in (self.err + "\n" + self.out).splitlines() if x.strip()]
        telling = [x for x in lines if "error" in x.lower()] or lines
        return telling[-1][:300] if telling else f"exit {self.code}, no output"


def run(argv, timeout=120, env=None, cwd=None):
    """Runs to the end or kills it; exit code -999 means the time limit. RSS is the peak of the process itself."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = spawn(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        code, rss = None, 0
        deadline = began + timeout
        pause = 0.001
        while code is None:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                code, rss = os.waitstatus_to_exitcode(status), usage.ru_maxrss
            elif time.monotonic() > deadline:
                kill_group(child)
                code = -999
            else:
                time.sleep(pause)
                pause = min(pause * 1.5, 0.02)
        child.returncode = code
        seconds = time.monotonic() - began
        kill_group(child)
        out.seek(0)
        err.seek(0)
        return Result(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"), seconds, rss)


class Daemon:
    """A `replicate` process with its log in a file."""

    def __init__(self, argv, log, env=None, preexec=None):
        self.log = Path(log)
        self._out = open(self.log, "ab")
        kw = {}
        self.child = spawn(argv, stdin=subprocess.DEVNULL, stdout=self._out, stderr=subprocess.STDOUT, env=env, **kw)
        self.pid = self.child.pid
        self.started = time.monotonic()

    def alive(self):
        return self.child.poll() is None

    def signal(self, number):
        if self.alive():
            self.child.send_signal(number)

    def wait(self, timeout):
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def _done(self):
        kill_group(self.child)
        self._out.close()

    def terminate(self, timeout=60):
        """SIGTERM = final sync, then exit. Returns the exit code, -999 when it had to be killed."""
        self.signal(signal.SIGTERM)
        code = self.wait(timeout)
        self._done()
        return -999 if code is None else code

    def kill(self):
        if self.alive():
            self.child.kill()
        self._done()

    def log_text(self):
        return self.log.read_text(errors="replace")


def resolve_binary(name):
    """Absolute path of the program itself; version-manager shims are looked through, so that pids and RSS are its own."""
    found = shutil.which(name) or str(name)
    path = Path(found).absolute()
    if not path.exists():
        sys.exit(f"no such program: {name}")
    if "shims" in path.parts and path.read_bytes()[:2] == b"#!":
        answer = subprocess.run(["pyenv", "which", path.name], capture_output=True, text=True, timeout=30)
        if answer.returncode == 0:
            path = Path(answer.stdout.strip())
    return str(path)


def default_reference():
    beside = Path(sys.executable).parent / "litestream"
    return str(beside) if beside.exists() else (shutil.which("litestream") or "")


class Litestream:
    """One program under test, called only through its command line."""

    def __init__(self, path):
        self.path = resolve_binary(path)
        self.version = run([self.path, "version"], 30).out.strip()

    def replicate(self, db, replica, log, options=()):
        return Daemon([self.path, "replicate", *options, db, url(replica)], log)

    def replicate_config(self, config, log):
        return Daemon([self.path, "replicate", "-config", config], log)

    def once(self, db, replica, timeout=120):
        return run([self.path, "replicate", "-once", db, url(replica)], timeout)

    def restore(self, replica, out, txid=None, options=(), timeout=300):
        extra = ["-txid", f"{txid:016x}"] if txid else []
        return run([self.path, "restore", *options, "-o", out, *extra, url(replica)], timeout)


def url(path):
    text = str(path)
    return text if "://" in text else f"file://{Path(text).absolute()}"


def write_config(path, dbs, **settings):
    """A config file; JSON is YAML. `dbs` are dictionaries with the documented keys."""
    Path(path).write_text(json.dumps({**settings, "dbs": dbs}, indent=1))
    return path


def restore_fresh(program, replica, out, **kw):
    """Restores to `out` after removing what is there. Returns the Result."""
    for suffix in ("", "-wal", "-shm", "-journal", ".tmp"):
        Path(f"{out}{suffix}").unlink(missing_ok=True)
    return program.restore(replica, out, **kw)


def ltx_files(replica, level=0):
    """Sorted [(min, max, path)] of one level of a file replica or a metadata directory."""
    found = []
    try:
        for entry in os.scandir(Path(replica) / "ltx" / str(level)):
            name = entry.name
            if len(name) == 37 and name.endswith(".ltx"):
                found.append((int(name[:16], 16), int(name[17:33], 16), entry.path))
    except FileNotFoundError:
        pass
    return sorted(found)


def leftovers(directory):
    """Temporary files below a directory (there must be none after a clean stop)."""
    return [str(p) for p in Path(directory).rglob("*") if p.name.endswith(".tmp") or ".tmp" in p.suffixes]


def wait_for(condition, timeout, pause=0.05):
    """Calls `condition` until it returns something true or time is up; returns its last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(pause)


# ---------------------------------------------------------------------------------------------- the application (app.py)

class App:
    """The application as its own process, so that it can close cleanly, crash, or stay connected."""

    def __init__(self, db):
        self.child = spawn([sys.executable, HERE / "app.py", db], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, op, **args):
        self.child.stdin.write(json.dumps({"op": op, **args}).encode() + b"\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the application died in {op}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"application, {op}: {answer['error']}")
        return answer.get("value")

    def close(self):
        """Closes the connection (SQLite checkpoints if it is the last one) and ends."""
        if self.child.poll() is None:
            self.call("close")
        self._end()

    def crash(self):
        """Ends without closing: WAL and shm stay as they are."""
        kill_group(self.child)
        self._end()

    def _end(self):
        kill_group(self.child)
        self.child.stdin.close()
        self.child.stdout.close()


# ---------------------------------------------------------------------------------------------------------------- report

def parser(description, rounds=None, seconds=None):
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default=os.environ.get("LITESTREAM_BIN", "litestream"), help="program under test")
    p.add_argument("--reference", default=default_reference(), help="the real Litestream 0.5.17")
    p.add_argument("--seed", type=int, default=None, help="random seed (printed; default: from the clock)")
    p.add_argument("--tmp", default=None, help="where the working directory is made")
    p.add_argument("--keep", action="store_true", help="keep the working directory")
    p.add_argument("--keep-failed", action="store_true", help="keep the working directory if something failed")
    if rounds is not None:
        p.add_argument("--rounds", type=int, default=rounds)
    if seconds is not None:
        p.add_argument("--seconds", type=float, default=seconds)
    return p


class Rig:
    """Working directory, programs, seed, and the cases counted so far."""

    def __init__(self, name, args):
        self.name, self.args = name, args
        self.seed = args.seed if args.seed is not None else int(time.time() * 1000) % 1_000_000_000
        self.rng = random.Random(self.seed)
        self.bin = Litestream(args.bin)
        self.reference = Litestream(args.reference) if args.reference else None
        self.dir = Path(tempfile.mkdtemp(prefix=f"rig-{name}-", dir=args.tmp))
        self.began = time.monotonic()
        self.cases = []
        self.figures = {}
        self._undo = []
        atexit.register(self._clean)
        print(f"{name}: {self.bin.path} ({self.bin.version}), application SQLite {SQLITE_VERSION}, seed {self.seed}, {self.dir}", flush=True)

    def undo(self, action):
        """Runs `action` at the end, whatever happens (unmounting, for example)."""
        self._undo.append(action)

    def case(self, name, ok, detail=""):
        """Counts one case. `ok` is True, False, or None for skipped."""
        self.cases.append((name, ok, str(detail)))
        word = {True: "ok", False: "FAILED", None: "skipped"}[ok]
        print(f"  {word:8} {name:44} {detail}", flush=True)
        return ok

    def _clean(self):
        _reap()
        while self._undo:
            self._undo.pop()()
        failed = any(ok is False for _, ok, _ in self.cases)
        if self.args.keep or (self.args.keep_failed and failed):
            print(f"kept {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def finish(self):
        """Prints the summary and one JSON line, then exits: 0 only if nothing failed and something ran."""
        passed = sum(ok is True for _, ok, _ in self.cases)
        failed = [(n, d) for n, ok, d in self.cases if ok is False]
        skipped = [n for n, ok, _ in self.cases if ok is None]
        seconds = round(time.monotonic() - self.began, 1)
        print(f"{self.name}: {passed} of {passed + len(failed)} right, {len(skipped)} skipped, {seconds} s, seed {self.seed}")
        for name, detail in failed[:20]:
            print(f"  FAILED {name}: {detail}")
        print(json.dumps({"rig": self.name, "bin": self.bin.path, "version": self.bin.version, "seed": self.seed, "passed": passed,
                          "failed": len(failed), "skipped": len(skipped), "seconds": seconds, **self.figures}))
        sys.exit(0 if passed and not failed else 1)


def quantiles(values):
    """p50, p99, p99.9 and max of a list, in its own unit."""
    if not values:
        return {"p50": None, "p99": None, "p999": None, "max": None}
    ordered = sorted(values)
    pick = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]
    return {"p50": pick(0.5), "p99": pick(0.99), "p999": pick(0.999), "max": ordered[-1]}
