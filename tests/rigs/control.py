"""The control plane of a running daemon, beside the reference where there is something to compare.

  endpoints   every endpoint of the control socket: same status, type and fields as the reference, in the same setup
  metrics     one scrape of both: every metric of the reference is there, with the same type and labels; promtool complains
              about names that the reference has, and nothing else
  abuse       10,000 connections, a body of 1 GB, heads that never end, a link at the socket's path, another user: nobody
              is refused by the system, replication goes on, memory and descriptors stay
  directory   databases that appear, move and vanish in a watched directory: none is missed, each within 2 s
  lag         a replica (a directory, S3) is out of reach for a while: metric, status -max-lag and /readyz say so in time, the
              store is tried within seconds of being back, and all is well 2 s later
  grafana     every query of the dashboard is answered by a Prometheus that watches a daemon
  heartbeat   those who are told about one database, or about a directory's, hear of these only
  mcp         the official Python client lists and calls every tool; foreign Origin and missing token are refused

usage: control.py --bin PATH [--reference PATH] [--only NAME] [--connections N] [--databases N] [--outage SECONDS]

Prints one JSON object per part and exits non-zero if any part does not hold. The parts talk to this machine only, and end by
themselves. What a part needs and does not find makes it fail: `metrics` promtool and `grafana` prometheus (Debian: prometheus),
`lag` and `grafana` moto under target/servers (`tests/servers/s3.sh true` puts it there), `mcp` the package `mcp` (2.3, pip
install mcp) in the Python that runs this.
"""

import argparse
import contextlib
import http.client
import http.server
import json
import os
import re
import resource
import signal
import socket
import struct
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
GO_ONLY = re.compile(r"^(go_|process_(network|cpu_guest))")


class Daemon:
    """A daemon in a directory of its own."""

    def __init__(self, binary, config, databases=(), root=None):
        self.root = root or Path(tempfile.mkdtemp(prefix="ctl-"))
        for name in databases:
            make(self.root / name)
        (self.root / "c.yml").write_text(config.replace("ROOT", str(self.root)))
        self.log = open(self.root / "log", "w")
        self.process = subprocess.Popen([binary, "replicate", "-config", "c.yml"], cwd=self.root, stdout=self.log,
                                        stderr=subprocess.STDOUT, env={**os.environ, "TZ": "UTC"})
        self.binary = binary

    def ask(self, method, path, body=None, timeout=30):
        connection = Unix(str(self.root / "s.sock"), timeout)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.getheader("Content-Type"), text

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text()).group(1)) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return (self.root / "log").read_text()


class Unix(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.execute("create table t(v)")
    db.execute("insert into t values (1)")
    db.commit()
    db.close()


def insert(path):
    db = sqlite3.connect(path, timeout=30)
    db.execute("insert into t values (2)")
    db.commit()
    db.close()


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(done, limit, step=0.02):
    """Seconds it took, or None."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        try:
            if done():
                return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(step)
    return None


def fetch(at, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", at, timeout=30)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


SOCKET = 'socket: {enabled: true, path: "ROOT/s.sock"}\n'
ONE = 'dbs: [{path: "ROOT/app.db", replica: {path: "ROOT/rep"}}]\n'


def shape(value):
    """A JSON value with everything that may differ between two runs taken out."""
    if isinstance(value, dict):
        return {key: "VERSION" if key == "version" else shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, str):
        text = re.sub(r"/tmp/ctl-\w+", "ROOT", value)
        return "TIME" if re.match(r"\d{4}-\d\d-\d\dT", text) else text
    return type(value).__name__ if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def endpoints(options):
    requests = [("GET", "/info", None), ("GET", "/list", None), ("GET", "/txid?path=app.db", None), ("GET", "/txid", None),
                ("GET", "/txid?path=/nope", None), ("HEAD", "/list", None), ("GET", "/debug/sync-status", None),
                ("GET", "/debug/sync-status?path=/nope", None), ("GET", "/foo", None), ("POST", "/list", "{}"), ("GET", "/stop", None)]
    bodies = ["", "x", "{", "[]", "null", "{}", '{"path":1}', '{"path":"app.db","timeout":"5"}', '{"path":"app.db","timeout":1.5}',
              '{"path":"/nope"}', '{"path":"/nope","replica_url":"foo://x"}', '{"path":"/nope","replica_url":"s3://"}',
              '{"path":"/nope","replica_url":"bogus"}', '{"path":"app.db","replica_url":"file:///x"}']
    requests += [("POST", f"/{name}", body) for name in ("start", "stop", "sync", "register", "unregister") for body in bodies
                 if not (name in ("stop", "unregister") and "app.db" in body)]
    requests += [("POST", "/sync", '{"path":"app.db","wait":true}'), ("POST", "/stop", '{"path":"app.db","timeout":5}'),
                 ("POST", "/stop", '{"path":"app.db"}'), ("POST", "/sync", '{"path":"app.db"}'), ("GET", "/list", None),
                 ("POST", "/start", '{"path":"app.db"}'), ("POST", "/unregister", '{"path":"app.db"}'), ("GET", "/list", None)]
    said = []
    for binary in (options.bin, options.reference):
        daemon = Daemon(binary, SOCKET + ONE, ["app.db"])
        try:
            ready = until(lambda: "last_sync_at" in daemon.ask("GET", "/list")[2], 20)
            assert ready is not None, daemon.log
            answers = []
            for method, path, body in requests:
                status, kind, text = daemon.ask(method, path, body)
                try:
                    text = shape(json.loads(text))
                except ValueError:
                    pass
                if path.startswith("/debug/sync-status") and status == 200:
                    # Which of the optional fields are there depends on the moment.
                    text = [sorted(set(d) & {"path", "active", "operation", "phase", "txid", "wal_size"}) for d in text["databases"]]
                answers.append((method, path, body, status, kind, text))
            said.append(answers)
        finally:
            daemon.end()
    different = [{"ours": a, "reference": b} for a, b in zip(*said) if a != b]
    return {"requests": len(requests), "different": different, "holds": not different}


def metrics(options):
    """Runs with load, compaction and a checkpoint, so that as many series as possible exist."""
    found = []
    for binary in (options.bin, options.reference):
        at = port()
        config = SOCKET + f'addr: "127.0.0.1:{at}"\nlevels: [{{interval: 1s}}]\nl0-retention: 1s\nl0-retention-check-interval: 1s\n'
        config += 'dbs: [{path: "ROOT/app.db", min-checkpoint-page-count: 5, checkpoint-interval: 1s, replica: {path: "ROOT/rep"}}]\n'
        daemon = Daemon(binary, config, ["app.db"])
        try:
            assert until(lambda: fetch(at, "/metrics")[0] == 200, 20) is not None
            for _ in range(40):
                insert(daemon.root / "app.db")
                time.sleep(0.1)
            fetch(at, "/metrics")
            text = fetch(at, "/metrics")[1].replace(str(daemon.root), "ROOT")
        finally:
            daemon.end()
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        labels = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, rest = line.partition("{") if "{" in line else (line.split(" ")[0], "", "")
                pairs = re.findall(r'(\w+)="([^"]*)"', rest)
                labels.setdefault(name, set()).add(tuple(sorted(pairs)))
        found.append((types, labels, text))
    (our_types, our_labels, our_text), (types, labels, reference_text) = found
    missing = sorted(name for name in types if name not in our_types and not GO_ONLY.match(name))
    wrong_type = sorted(name for name in types if name in our_types and types[name] != our_types[name])
    wrong_labels = sorted(f"{name} {series}" for name in labels if not GO_ONLY.match(name) and not name.startswith("go_")
                          for series in labels[name] if series not in our_labels.get(name, set()))
    result = {"reference": len(types), "ours": len(our_types), "missing": missing, "other type": wrong_type,
              "missing series": wrong_labels, "holds": not (missing or wrong_type or wrong_labels)}
    # Names that the reference has must stay, so its complaints about them are ours; there must be no other.
    complaints, accepted = lint(our_text), {text for text in lint(reference_text) if text.split(" ")[0] in our_types}
    result["promtool"] = {"as the reference": sorted(complaints & accepted), "only ours": sorted(complaints - accepted),
                          "only the reference's": sorted(accepted - complaints)}
    result["holds"] = bool(result["holds"] and complaints == accepted and accepted)
    return result


def lint(text):
    """What `promtool check metrics` has to say, one line a complaint. What it cannot parse is an error."""
    promtool = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    if promtool.returncode not in (0, 3):
        raise RuntimeError(f"promtool: {promtool.stdout}{promtool.stderr}")
    return set((promtool.stdout + promtool.stderr).splitlines())


def sends(connection, data):
    try:
        return connection.send(data) > 0
    except OSError:
        return False


def abuse(options):
    daemon = Daemon(options.bin, SOCKET + 'dbs: [{path: "ROOT/app.db", monitor-interval: 100ms, replica: {path: "ROOT/rep", sync-interval: 100ms}}]\n',
                    ["app.db"])
    held, result = [], {}
    try:
        assert until(lambda: "last_sync_at" in daemon.ask("GET", "/list")[2], 20) is not None
        before = daemon.rss()
        stop, delays = threading.Event(), []

        def replicate():
            while not stop.is_set():
                insert(daemon.root / "app.db")
                want = len(list((daemon.root / "rep/ltx/0").glob("*.ltx"))) + 1
                took = until(lambda: len(list((daemon.root / "rep/ltx/0").glob("*.ltx"))) >= want, 20)
                delays.append(20 if took is None else took)
                time.sleep(0.05)

        writer = threading.Thread(target=replicate)
        writer.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        refused = 0
        for n in range(options.connections):
            s = socket.socket(socket.AF_UNIX)
            # A connect that waits for its turn, as clients do; with `settimeout` it would not.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 5, 0))
            try:
                s.connect(str(daemon.root / "s.sock"))
                if n % 2:
                    s.send(b"POST /stop HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                held.append(s)
            except (BrokenPipeError, ConnectionResetError):
                # Let in, and shown out by those who came after before it had said anything.
                held.append(s)
            except OSError:
                refused += 1
        result["connections"], result["refused by the system"] = len(held), refused
        result["while held"] = {"descriptors": daemon.descriptors(), "rss": daemon.rss(), "info": daemon.ask("GET", "/info")[0]}
        # Heads that grow by a byte a second: all are shown out within the 10 s a head may take.
        slow = [s for s in held[-100:] if sends(s, b"x")]
        began = time.monotonic()
        shown_out = until(lambda: not any([sends(s, b"x") for s in slow]), 20, 1)
        result["slow heads"], result["shown out after"] = len(slow), shown_out and round(shown_out, 1)
        result["rss after that"] = daemon.rss()
        sent = 0
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10)
        s.connect(str(daemon.root / "s.sock"))
        s.send(b"POST /sync HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            while sent < 1 << 30:
                s.sendall(chunk)
                sent += 0x100000
        except OSError:
            pass
        result["bytes of 1 GB taken"] = sent
        stop.set()
        writer.join()
        result["commits"], result["slowest commit to replica"] = len(delays), round(max(delays), 3)
        result["rss before and after"] = [before, daemon.rss()]
        grown = daemon.rss() - before
        alive = daemon.ask("GET", "/info")[0] == 200
        other = None
        if os.geteuid() == 0:
            for directory in (daemon.root, daemon.root / "s.sock"):
                os.chmod(directory, 0o777)
            ask = ["curl", "-sS", "--max-time", "5", "--unix-socket", str(daemon.root / "s.sock"), "http://localhost/info"]
            other = subprocess.run(ask, capture_output=True, text=True, user=65534)
            result["another user"] = {"curl": other.returncode, "said": other.stdout, "error": other.stderr.strip()}
    finally:
        for s in held:
            s.close()
        log = daemon.end()
    # A link where the socket should be.
    root = Path(tempfile.mkdtemp(prefix="ctl-"))
    (root / "victim").write_text("content")
    os.symlink("victim", root / "s.sock")
    linked = Daemon(options.bin, SOCKET, root=root)
    time.sleep(1)
    said = linked.end()
    result["link"] = "socket path exists but is not a socket" in said and (root / "victim").read_text() == "content" and (root / "s.sock").is_symlink()
    outsider = other is None or (other.stdout == "" and "refused a connection to the control socket from another user" in log)
    result["holds"] = bool(alive and refused == 0 and slow and shown_out is not None and shown_out < 14 and grown < 32 << 20 and max(delays) < 3 and sent < 16 << 20 and result["link"] and outsider
                           and result["while held"]["descriptors"] < 400 and result["while held"]["info"] == 200)
    return result


def directory(options):
    count = options.databases
    root = Path(tempfile.mkdtemp(prefix="ctl-"))
    (root / "d").mkdir()
    config = SOCKET + 'dbs: [{dir: "ROOT/d", pattern: "*.db", recursive: true, watch: true, replica: {path: "ROOT/rep"}}]\n'
    daemon = Daemon(options.bin, config, root=root)
    listed = lambda: [d["path"] for d in json.loads(daemon.ask("GET", "/list")[2])["databases"]]
    try:
        assert until(lambda: daemon.ask("GET", "/info")[0] == 200, 20) is not None
        make(root / "template")
        content = (root / "template").read_bytes()
        cpu = daemon.cpu()
        result = {}
        for n in range(count):
            (root / f"d/{n % 20}").mkdir(exist_ok=True)
            (root / f"d/{n % 20}/{n}.db").write_bytes(content)
        result["all there after"] = until(lambda: len(listed()) == count, 60)
        result["descriptors"], result["rss"] = daemon.descriptors(), daemon.rss()
        for n in range(count):
            os.rename(root / f"d/{n % 20}/{n}.db", root / f"d/{n % 20}/m{n}.db")
        moved = lambda: (lambda names: len(names) == count and all("/m" in name for name in names))(listed())
        result["all moved after"] = until(moved, 60)
        result["cpu seconds so far"] = round(daemon.cpu() - cpu, 2)
        settled = lambda: daemon.ask("GET", "/list")[2].count("last_sync_at") == count
        result["all replicated after"] = until(settled, 120, 0.2)
        time.sleep(2)
        idle = daemon.cpu()
        time.sleep(5)
        result["cpu seconds in 5 idle seconds"] = round(daemon.cpu() - idle, 2)
        for n in range(count):
            os.unlink(root / f"d/{n % 20}/m{n}.db")
        result["all gone after"] = until(lambda: not listed(), 60)
        # One at a time, while nothing else happens.
        times = []
        for n in range(5):
            (root / f"d/one{n}.db").write_bytes(content)
            times.append(until(lambda: any(name.endswith(f"/one{n}.db") for name in listed()), 20))
        result["single ones after"] = times
        result["holds"] = all(result[k] is not None for k in ("all there after", "all moved after", "all gone after")) \
            and all(t is not None and t < 2 for t in times)
        return result
    finally:
        daemon.end()


class Road:
    """The way to a store on this machine, which can be cut: connections end, and new ones are refused."""

    def __init__(self, to):
        self.to, self.at = to, port()
        self.open, self.used, self.listener = set(), None, None
        self.mend()

    def mend(self):
        self.used = None
        self.listener = socket.create_server(("127.0.0.1", self.at), reuse_port=False)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in list(self.open):
            end.close()

    def accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self.open |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self.pass_on, args=ends, daemon=True).start()

    def pass_on(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                # An upload, and not one of the requests of compaction, which has its own times.
                if self.used is None and data.startswith(b"PUT ") and b"/0000/" in data[:200]:
                    self.used = time.monotonic()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self.open.discard(end)


class Directory:
    """A replica in a directory, which can be put out of reach."""

    def __init__(self, root):
        self.level, self.stop = root / "rep/ltx/0", lambda: None
        self.setting = '{path: "ROOT/rep"}'

    def cut(self):
        self.level.rename(self.level.with_name("aside"))
        self.level.write_text("in the way")

    def mend(self):
        self.level.unlink()
        self.level.with_name("aside").rename(self.level)
        self.before = {path.name for path in self.level.iterdir()}

    def reached(self):
        """When something came through again."""
        new = [path.stat().st_ctime for path in self.level.iterdir() if path.name not in self.before]
        return time.monotonic() - (time.time() - min(new)) if new else None


class Bucket:
    """A replica in a bucket of a service of this machine (moto), whose network can be cut."""

    def __init__(self, root):
        moto = ROOT / "target/servers/bin/moto_server"
        if not moto.exists():
            raise RuntimeError("no moto under target/servers: run tests/servers/s3.sh true")
        at = port()
        self.service = subprocess.Popen([moto, "-H", "127.0.0.1", "-p", str(at)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert until(lambda: socket.create_connection(("127.0.0.1", at)).close() is None, 30) is not None
        connection = http.client.HTTPConnection("127.0.0.1", at)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        self.road = Road(at)
        self.setting = f'{{type: s3, bucket: bucket, path: x, endpoint: "http://127.0.0.1:{self.road.at}", region: us-east-1, '
        self.setting += "force-path-style: true, access-key-id: a, secret-access-key: b}"
        self.cut, self.mend = self.road.cut, self.road.mend

    def reached(self):
        return self.road.used

    def stop(self):
        self.service.kill()
        self.service.wait()


def lag(options):
    """On a directory and on S3."""
    found = {kind.__name__.lower(): outage(options, kind) for kind in (Directory, Bucket)}
    return {**found, "holds": all(one["holds"] for one in found.values())}


def outage(options, kind):
    at, root = port(), Path(tempfile.mkdtemp(prefix="ctl-"))
    store = kind(root)
    config = SOCKET + f'addr: "127.0.0.1:{at}"\n' + f'dbs: [{{path: "ROOT/app.db", replica: {store.setting}}}]\n'
    daemon = Daemon(options.bin, config, ["app.db"], root=root)
    series = lambda: float(re.search(r"^sqlite_replication_lag_seconds\S* (\S+)$", fetch(at, "/metrics")[1], re.M).group(1))
    limit = 20
    check = lambda: subprocess.run([options.bin, "status", "-max-lag", f"{limit}s", "-socket", str(daemon.root / "s.sock")],
                                   capture_output=True).returncode
    well = lambda: series() < 2 and check() == 0 and fetch(at, "/readyz")[0] == 200
    stop = threading.Event()

    def load():
        while not stop.is_set():
            insert(daemon.root / "app.db")
            time.sleep(0.05)

    writer = threading.Thread(target=load)
    try:
        assert until(lambda: "last_sync_at" in daemon.ask("GET", "/list")[2], 20) is not None
        writer.start()
        time.sleep(3)
        quiet = series()
        store.cut()
        began = time.monotonic()
        worst, alarm, unready = 0.0, None, None
        while time.monotonic() - began < options.outage:
            now = time.monotonic() - began
            worst = max(worst, abs(series() - now))
            if alarm is None and check() == 1:
                alarm = time.monotonic() - began
            if unready is None and fetch(at, "/readyz")[0] == 503:
                unready = time.monotonic() - began
            time.sleep(0.2)
        reason = fetch(at, "/readyz")[1] if unready else ""
        store.mend()
        mended = time.monotonic()
        recovered = until(well, 120, 0.1)
        tried = store.reached()
        tried = None if tried is None else tried - mended
        rounded = lambda seconds: None if seconds is None else round(seconds, 2)
        result = {"lag before": quiet, "metric and truth differ by at most": round(worst, 2),
                  f"-max-lag {limit}s failed after": rounded(alarm), "/readyz (30 s) failed after": rounded(unready),
                  "reason": reason.strip(), "store back: tried again after": rounded(tried), "all well again after": rounded(recovered)}
        result["holds"] = quiet < 2 and worst < 3 and alarm is not None and alarm < limit + 2 \
            and tried is not None and tried < 8 and recovered is not None and recovered < tried + 2 \
            and (options.outage < 33 or (unready is not None and unready < 32 and "lacks commits" in reason))
        return result
    finally:
        stop.set()
        if writer.is_alive():
            writer.join()
        daemon.end()
        store.stop()


def grafana(options):
    """Every query of the dashboard against a real Prometheus that watches a daemon: understood, and with an answer."""
    dashboard = json.loads((ROOT / "etc/grafana/litestream.json").read_text())
    panels = dashboard["panels"]
    cells = [(p["gridPos"]["x"] + x, p["gridPos"]["y"] + y) for p in panels for x in range(p["gridPos"]["w"]) for y in range(p["gridPos"]["h"])]
    source = {"type": "prometheus", "uid": "${source}"}
    wrong = [name for name, well in {
        "ids": len({p["id"] for p in panels}) == len(panels) and dashboard["uid"] and dashboard["title"],
        "places": len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24,
        "kinds": {p["type"] for p in panels} <= {"stat", "timeseries", "row", "table"},
        "sources": all(p["datasource"] == source and all(t["datasource"] == source for t in p["targets"]) for p in panels),
        "references": all(len({t["refId"] for t in p["targets"]}) == len(p["targets"]) > 0 for p in panels),
        "variables": [v["name"] for v in dashboard["templating"]["list"]] == ["source", "db"],
    }.items() if not well]
    root, at, web = Path(tempfile.mkdtemp(prefix="ctl-")), port(), port()
    store = Bucket(root)
    config = SOCKET + f'addr: "127.0.0.1:{at}"\nlevels: [{{interval: 1s}}]\nl0-retention: 1s\nl0-retention-check-interval: 1s\n'
    config += f'dbs: [{{path: "ROOT/app.db", min-checkpoint-page-count: 5, checkpoint-interval: 1s, replica: {store.setting}}}]\n'
    (root / "p.yml").write_text('global: {scrape_interval: 1s}\nscrape_configs: [{job_name: litestream, static_configs: '
                                f'[{{targets: ["127.0.0.1:{at}"]}}]}}]\n')
    prometheus = subprocess.Popen(["prometheus", f"--config.file={root}/p.yml", f"--storage.tsdb.path={root}/p",
                                   f"--web.listen-address=127.0.0.1:{web}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    daemon = Daemon(options.bin, config, ["app.db"], root=root)

    def answer(query):
        # What Grafana puts in for its variables.
        for name, value in (("$__rate_interval", "10s"), ("$__interval", "5s"), ("$__range", "20s"), ("$db", ".*"), ("${db}", ".*")):
            query = query.replace(name, value)
        said = json.loads(fetch(web, "/api/v1/query?query=" + urllib.parse.quote(query))[1])
        return len(said["data"]["result"]) if said["status"] == "success" else said["error"]

    try:
        queries = {f'{p["title"]}: {t["expr"]}': None for p in panels for t in p["targets"]}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(isinstance(n, int) and n > 0 for n in queries.values()):
            insert(root / "app.db")
            time.sleep(0.5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                queries = {name: answer(name.split(": ", 1)[1]) for name in queries}
        without = {name: said for name, said in queries.items() if said == 0 or not isinstance(said, int)}
        return {"panels": len(panels), "queries": len(queries), "without an answer": without, "wrong": wrong, "holds": not without and not wrong}
    finally:
        daemon.end()
        prometheus.terminate()
        prometheus.wait(20)
        store.stop()


def heartbeat(options):
    """Whoever is told about one database hears of that one only."""
    heard = {}

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            heard[self.path] = heard.get(self.path, 0) + 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Ear)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = Path(tempfile.mkdtemp(prefix="ctl-"))
    (root / "broken").write_text("a file where the replica should be")
    url = f'heartbeat-url: "http://127.0.0.1:{server.server_port}/'
    config = SOCKET + f'{url}all"\ndbs:\n - {{path: "ROOT/a.db", {url}a", replica: {{path: "ROOT/rep-a"}}}}\n'
    config += f' - {{path: "ROOT/b.db", {url}b", replica: {{path: "ROOT/broken/rep"}}}}\n'
    config += f' - {{dir: "ROOT/d", pattern: "*.db", {url}d", replica: {{path: "ROOT/rep-d"}}}}\n'
    daemon = Daemon(options.bin, config, ["a.db", "b.db", "d/c.db"], root=root)
    try:
        took = until(lambda: {"/a", "/d"} <= heard.keys(), 20)
        time.sleep(1)
        return {"heard": heard, "after": took and round(took, 1), "holds": heard == {"/a": 1, "/d": 1}}
    finally:
        daemon.process.kill()
        daemon.process.wait()
        server.shutdown()


def mcp(options):
    import asyncio

    import httpx2
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    at = port()
    config = f'mcp-addr: "127.0.0.1:{at}"\nmcp: {{token: secret, allow-changes: true, paths: ["ROOT/out"]}}\n' + ONE
    daemon = Daemon(options.bin, config, ["app.db"])
    (daemon.root / "out").mkdir()
    called = {}
    is_error = lambda answer: bool(getattr(answer, "isError", None) or getattr(answer, "is_error", None))

    async def use():
        web = httpx2.AsyncClient(headers={"Authorization": "Bearer secret"})
        async with streamable_http_client(f"http://127.0.0.1:{at}/mcp", http_client=web) as streams:
            async with ClientSession(*streams[:2]) as session:
                await session.initialize()
                app, out = str(daemon.root / "app.db"), str(daemon.root / "out")
                arguments = {"litestream_ltx": {"path": app}, "litestream_restore": {"path": app, "o": out + "/r.db", "if_replica_exists": True},
                             "litestream_reset": {"path": out + "/r.db"}, "litestream_status": {"path": app}}
                tools = sorted(tool.name for tool in (await session.list_tools()).tools)
                for name in sorted(tools, key=lambda name: name == "litestream_reset"):
                    answer = await session.call_tool(name, arguments.get(name, {}))
                    called[name] = [bool(is_error(answer)), answer.content[0].text[:60]]
                answer = await session.call_tool("litestream_restore", {"path": app, "o": str(daemon.root / "elsewhere.db")})
                called["restore elsewhere"] = [bool(is_error(answer)), answer.content[0].text[-60:]]

    try:
        assert until(lambda: socket.create_connection(("127.0.0.1", at)).close() is None, 20) is not None
        time.sleep(2)
        asyncio.run(asyncio.wait_for(use(), 60))
        refused = {"foreign Origin": fetch(at, "/", {"Origin": "http://evil.example", "Authorization": "Bearer secret"})[0],
                   "no token": fetch(at, "/")[0]}
        failures = [name for name, (failed, _) in called.items() if failed != (name == "restore elsewhere")]
        holds = refused == {"foreign Origin": 403, "no token": 401} and not failures and (daemon.root / "out/r.db").exists()
        return {"called": called, "refused": refused, "holds": holds}
    finally:
        daemon.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--reference", default=str(ROOT / "target/reference/bin/litestream"))
    parser.add_argument("--only", action="append")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--databases", type=int, default=1_000)
    parser.add_argument("--outage", type=int, default=60)
    options = parser.parse_args()
    failed = False
    for part in (endpoints, metrics, abuse, directory, lag, grafana, heartbeat, mcp):
        if options.only and part.__name__ not in options.only:
            continue
        try:
            result = part(options)
        except Exception as err:  # a part that cannot be run does not hold
            result = {"holds": False, "error": f"{type(err).__name__}: {err}"}
        failed |= not result["holds"]
        print(json.dumps({"part": part.__name__, **result}, indent=1), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
