#!/usr/bin/env python3
"""Does the program end in time, whatever hangs? And does it say so when a store does not answer?

A *black hole* accepts connections and never answers. Beside it: a store that is down, and failures that waiting cannot
cure. Each case starts a daemon with one pending commit, sends SIGTERM, and measures how long it takes to end; the cases
run side by side, because most of the time they wait.
"""

import concurrent.futures
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import common

# What scheduling, a debug build and ten daemons at once may add to a limit.
SLACK = 2.0
SECRETS = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true",
    "LITESTREAM_AZURE_ACCOUNT_KEY": "Zm9v",
}


class BlackHole:
    """Accepts everybody, reads what comes, says nothing, but for a greeting: with it a WebDAV replica gets past the start.
    An SFTP or NATS replica does not, so those daemons are ended while they start."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._swallow, args=(connection,), daemon=True).start()

    @staticmethod
    def _swallow(connection):
        try:
            while asked := connection.recv(65536):
                if asked.startswith(b"OPTIONS "):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nDAV: 1\r\nContent-Length: 0\r\n\r\n")
        except OSError:
            pass


def refusing(status, text):
    """The port of a service that refuses everything."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def answer():
        while True:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode())
            connection.close()

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def replicas(port):
    """One replica of each kind at a port."""
    at = f"127.0.0.1:{port}"
    return {
        "s3": {"type": "s3", "bucket": "bucket", "path": "app", "endpoint": f"http://{at}", "region": "us-east-1",
               "force-path-style": True},
        "webdav": {"type": "webdav", "webdav-url": f"http://{at}", "path": "app"},
        "sftp": {"type": "sftp", "host": at, "user": "u", "password": "p", "path": "/app", "host-key": "any"},
        "nats": {"type": "nats", "url": f"nats://{at}/bucket"},
        "abs": {"type": "abs", "account-name": "a", "account-key": "Zm9v", "bucket": "bucket", "path": "app",
                "endpoint": f"http://{at}"},
        "oss": {"type": "oss", "bucket": "bucket", "path": "app", "endpoint": f"http://{at}", "access-key-id": "a",
                "secret-access-key": "b"},
        "gs": {"type": "gs", "bucket": "bucket", "path": "app"},
    }


class Case:
    def __init__(self, rig, name, replica, port=None, **settings):
        self.dir = rig.dir / re.sub(r"\W+", "-", name)
        self.dir.mkdir()
        self.rig, self.db = rig, self.dir / "app.db"
        app = common.Db(self.db)
        app.execute("PRAGMA journal_mode = wal")
        app.execute("CREATE TABLE t(v)")
        app.execute("INSERT INTO t VALUES (1)")
        app.close()
        self.env = {**os.environ, **SECRETS}
        if port:
            self.env["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
        self.config = common.write_config(
            self.dir / "c.yml", [{"path": str(self.db), "monitor-interval": "100ms", "replica": replica}], **settings)
        self.child = None

    def spawn(self, *args, name="log", **kw):
        self.log = self.dir / name
        with open(self.log, "wb") as out:
            return common.spawn([self.rig.bin.path, *map(str, args)], stdout=out, stderr=out, env=self.env, cwd=self.dir, **kw)

    def start(self, pending=1.5, **kw):
        self.child = self.spawn("replicate", "-config", self.config, **kw)
        time.sleep(pending)
        assert self.child.poll() is None, self.log.read_text()
        return self

    def end(self, most, *signals):
        """Seconds from the (last) signal to the end, and the exit code. `signals`: pauses before further SIGTERMs."""
        self.child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for pause in signals:
            time.sleep(pause)
            self.child.send_signal(signal.SIGTERM)
            began = time.monotonic()
        try:
            code = self.child.wait(most + 20)
        except Exception:
            common.kill_group(self.child)
            code = None
        return time.monotonic() - began, code

    def lines(self, level):
        return sum(f"level={level}" in line for line in self.log.read_text().splitlines())


def stopping(rig, name, replica, most, *signals, code=1, lines=3, port=None, timeout=None, **settings):
    """A job: one daemon, ended. No more than so many lines of warnings from the signal on."""
    if timeout is not None:
        settings["shutdown-sync-timeout"] = timeout

    def job():
        case = Case(rig, name, replica, port, **settings).start()
        before = case.lines("WARN")
        took, got = case.end(most, *signals)
        said = case.lines("WARN") - before
        return name, took <= most and got == code and said <= lines, f"{took:.1f} s of {most:.1f}, exit {got}, {said} warnings"

    return job


def telling(rig, name, replica, args, port=None):
    """A job: a command that needs an answer, at a store that gives none."""

    def job():
        case = Case(rig, name, replica, port)
        child = case.spawn(*[a.format(config=case.config, db=case.db, out=case.dir / "out.db") for a in args], name="command")
        began = time.monotonic()
        try:
            code = child.wait(60)
        except Exception:
            common.kill_group(child)
            code = None
        took = time.monotonic() - began
        said = [line for line in case.log.read_text().splitlines() if line.startswith("Error: ")]
        return name, took < 30 and bool(code) and bool(said), f"{took:.1f} s, exit {code}, {said[-1:] or 'no error'}"[:160]

    return job


def black_hole(rig, hole, kinds):
    for kind, replica in replicas(hole.port).items():
        if kinds and kind not in kinds:
            continue
        for timeout, seconds in (("2s", 2), ("5s", 5), ("0s", 0)):
            yield stopping(rig, f"{kind}: black hole, timeout {timeout}", replica, seconds + SLACK, port=hole.port, timeout=timeout)
        yield stopping(rig, f"{kind}: black hole, default timeout", replica, 30 + SLACK, port=hole.port)
        yield stopping(rig, f"{kind}: black hole, second signal", replica, 1, 1.0, port=hole.port)
        yield telling(rig, f"{kind}: restore", replica, ("restore", "-config", "{config}", "-o", "{out}", "{db}"), hole.port)
        yield telling(rig, f"{kind}: ltx", replica, ("ltx", "-config", "{config}", "{db}"), hole.port)
        yield telling(rig, f"{kind}: replicate -once", replica, ("replicate", "-once", "-config", "{config}"), hole.port)


def down(rig, kinds):
    port = unused_port()
    for kind, replica in replicas(port).items():
        if kinds and kind not in kinds:
            continue
        for timeout, seconds in (("0s", 0), ("2s", 2), ("5s", 5)):
            yield stopping(rig, f"{kind}: down, timeout {timeout}", replica, seconds + SLACK, port=port, timeout=timeout)


def hopeless(rig, kinds):
    """What waiting cannot cure ends the program at once."""
    if kinds and "file" not in kinds:
        return

    def junk():
        case = Case(rig, "no database", {"path": str(rig.dir / "junk-replica")})
        for suffix in ("", "-wal", "-shm"):
            Path(f"{case.db}{suffix}").unlink(missing_ok=True)
        case.db.write_bytes(os.urandom(64 * 1024))
        took, code = case.start().end(1)
        return "a file that is no database", took <= 1 and code == 1, f"{took:.1f} s, exit {code}"

    def locked():
        case = Case(rig, "locked", {"path": str(rig.dir / "locked-replica")})
        holder = common.Db(case.db)
        holder.execute("PRAGMA locking_mode = exclusive")
        holder.execute("BEGIN EXCLUSIVE")
        took, code = case.start(2.5).end(1)
        holder.close()
        return "a database that is locked", took <= 1 and code == 1, f"{took:.1f} s, exit {code}"

    def refused(status, text):
        name = f"a store that answers {status}"
        case = Case(rig, name, replicas(refusing(status, text))["s3"])
        took, code = case.start().end(1)
        return name, took <= 1 and code == 1, f"{took:.1f} s, exit {code}"

    def silent():
        case = Case(rig, "idle", {"path": str(rig.dir / "idle-replica")})
        took, code = case.start().end(1)
        return "a healthy replica", took <= 1 and code == 0, f"{took:.1f} s, exit {code}"

    error = "<Error><Code>{}</Code><Message>no</Message></Error>"
    yield from (junk, locked, silent)
    yield lambda: refused("403 Forbidden", error.format("SignatureDoesNotMatch"))
    yield lambda: refused("404 Not Found", error.format("NoSuchBucket"))


def strays(rig, kinds):
    """Signals sent to the process group, and what the application of -exec gets of them."""
    if kinds and "file" not in kinds:
        return

    def ours():
        case = Case(rig, "strays", {"path": str(rig.dir / "strays-replica")}).start()
        for stray in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE):
            os.killpg(case.child.pid, stray)
            time.sleep(0.1)
        alive = case.child.poll() is None
        took, code = case.end(1)
        return "stray signals do not end it", alive and code == 0, f"alive {alive}, exit {code}"

    def theirs():
        case = Case(rig, "dispositions", {"path": str(rig.dir / "dispositions-replica")})
        child = case.spawn("replicate", "-config", case.config, "-exec", "grep Sig /proc/self/status")
        child.wait(20)
        ignored = re.search(r"SigIgn:\s*([0-9a-f]+)", case.log.read_text())
        blocked = re.search(r"SigBlk:\s*([0-9a-f]+)", case.log.read_text())
        bits = [int(found.group(1), 16) if found else None for found in (ignored, blocked)]
        return "the application gets default dispositions", bits == [0, 0], f"ignored, blocked: {bits}"

    yield from (ours, theirs)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--kind", action="append", default=[], help="only this kind of store, or file; may be repeated")
    args = parser.parse_args()
    rig = common.Rig("stopping", args)
    hole = BlackHole()
    jobs = [*black_hole(rig, hole, args.kind), *down(rig, args.kind), *hopeless(rig, args.kind), *strays(rig, args.kind)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=24) as pool:
        for done in concurrent.futures.as_completed([pool.submit(job) for job in jobs]):
            try:
                rig.case(*done.result())
            except AssertionError as early:
                rig.case("a daemon that should run", False, early)
    rig.finish()


if __name__ == "__main__":
    main()
