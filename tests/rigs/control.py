"""The control plane of a running daemon, beside the reference where there is something to compare.

  endpoints   every endpoint of the control socket: same status, type and fields as the reference, in the same setup
  metrics     one scrape of both: every metric of the reference is there, with the same type and labels
  abuse       10,000 connections, a body of 1 GB, heads that never end, a link at the socket's path, another user:
              replication goes on, memory and descriptors stay
  directory   databases that appear, move and vanish in a watched directory: none is missed, each within 2 s
  lag         the replica is out of reach for a while: metric, status -max-lag and /readyz say so in time, and recover
  mcp         the official Python client lists and calls every tool; foreign Origin and missing token are refused

usage: control.py --bin PATH [--reference PATH] [--only NAME] [--connections N] [--databases N] [--outage SECONDS]

Prints one JSON object per part and exits non-zero if any part does not hold. The parts talk to this machine only, and end by
themselves. `mcp` needs the package `mcp` (2.3, pip install mcp) in the Python that runs this; without it the part fails.
"""

import argparse
import http.client
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

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
    (our_types, our_labels, our_text), (types, labels, _) = found
    missing = sorted(name for name in types if name not in our_types and not GO_ONLY.match(name))
    wrong_type = sorted(name for name in types if name in our_types and types[name] != our_types[name])
    wrong_labels = sorted(f"{name} {series}" for name in labels if not GO_ONLY.match(name) and not name.startswith("go_")
                          for series in labels[name] if series not in our_labels.get(name, set()))
    result = {"reference": len(types), "ours": len(our_types), "missing": missing, "other type": wrong_type,
              "missing series": wrong_labels, "holds": not (missing or wrong_type or wrong_labels)}
    promtool = options.promtool and subprocess.run([options.promtool, "check", "metrics"], input=our_text, text=True, capture_output=True)
    if promtool:
        result["promtool"] = promtool.stdout + promtool.stderr
    return result


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
            s.settimeout(5)
            try:
                s.connect(str(daemon.root / "s.sock"))
                if n % 2:
                    s.send(b"POST /stop HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                held.append(s)
            except OSError:
                refused += 1
        result["connections"], result["refused"] = len(held), refused
        result["while held"] = {"descriptors": daemon.descriptors(), "rss": daemon.rss(), "info": daemon.ask("GET", "/info")[0]}
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
            ask = ["curl", "-s", "--max-time", "5", "--unix-socket", str(daemon.root / "s.sock"), "http://localhost/info"]
            other = subprocess.run(ask, capture_output=True, text=True, user=65534)
            result["another user"] = {"curl": other.returncode, "said": other.stdout}
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
    outsider = other is None or (other.stdout == "" and other.returncode != 0)
    result["holds"] = bool(alive and grown < 32 << 20 and max(delays) < 3 and sent < 16 << 20 and result["link"] and outsider
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


def lag(options):
    at = port()
    config = SOCKET + f'addr: "127.0.0.1:{at}"\n' + 'dbs: [{path: "ROOT/app.db", replica: {path: "ROOT/rep"}}]\n'
    daemon = Daemon(options.bin, config, ["app.db"])
    series = lambda: float(re.search(r"^sqlite_replication_lag_seconds\S* (\S+)$", fetch(at, "/metrics")[1], re.M).group(1))
    limit = 20
    check = lambda: subprocess.run([options.bin, "status", "-max-lag", f"{limit}s", "-socket", str(daemon.root / "s.sock")],
                                   capture_output=True).returncode
    stop = threading.Event()

    def load():
        while not stop.is_set():
            insert(daemon.root / "app.db")
            time.sleep(0.05)

    writer = threading.Thread(target=load)
    level = daemon.root / "rep/ltx/0"
    try:
        assert until(lambda: "last_sync_at" in daemon.ask("GET", "/list")[2], 20) is not None
        writer.start()
        time.sleep(3)
        quiet = series()
        level.rename(level.with_name("aside"))
        level.write_text("in the way")
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
        level.unlink()
        level.with_name("aside").rename(level)
        recovered = until(lambda: series() < 2 and check() == 0 and fetch(at, "/readyz")[0] == 200, 120, 0.2)
        result = {"lag before": quiet, "metric and truth differ by at most": round(worst, 2), f"-max-lag {limit}s failed after": alarm,
                  "/readyz (30 s) failed after": unready, "reason": reason.strip(), "all well again after": recovered}
        result["holds"] = quiet < 2 and worst < 3 and alarm is not None and alarm < limit + 2 and recovered is not None \
            and (options.outage < 33 or (unready is not None and unready < 32))
        return result
    finally:
        stop.set()
        writer.join()
        daemon.end()


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
    root = Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--reference", default=str(root / "target/reference/bin/litestream"))
    parser.add_argument("--only", action="append")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--databases", type=int, default=1_000)
    parser.add_argument("--outage", type=int, default=60)
    parser.add_argument("--promtool")
    options = parser.parse_args()
    failed = False
    for part in (endpoints, metrics, abuse, directory, lag, mcp):
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
