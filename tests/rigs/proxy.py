"""A reverse proxy for HTTP/1.1 that counts, delays, and harms: what stands between a program and its object store.

    proxy = Proxy(("127.0.0.1", 9000))          # where the store listens
    proxy.url                                   # give this to the program as its endpoint
    proxy.latency = 0.03                        # seconds before each request goes on
    proxy.rate = 80e6                           # bytes a second of answers, on each connection
    proxy.decide = lambda request: Fault(...)   # or None: pass it on unchanged
    proxy.counts                                # {"PUT": 3, "LIST": 1, ...}

Heads go through byte for byte (signatures cover `Host`), bodies stream. It knows just enough of HTTP to find where messages end,
and of object stores to tell a LIST from a GET. Run as a program it only counts and delays:

    python3 proxy.py 127.0.0.1:9000 --latency 0.03
"""

import argparse
import re
import signal
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 1 << 18
REASONS = {403: "Forbidden", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}


@dataclass
class Request:
    method: str
    target: str
    headers: dict = field(repr=False)

    @property
    def operation(self):
        """PUT, GET, LIST, DELETE or HEAD, as object stores bill them; other methods by their name."""
        query = urlsplit(self.target).query
        names = {part.split("=")[0] for part in query.split("&")}
        if self.method == "GET" and (names & {"list-type", "prefix", "uploads"} or "comp=list" in query):
            return "LIST"
        if self.method == "PROPFIND":
            return "LIST"
        if self.method == "POST":
            return "DELETE" if "delete" in names else "PUT"
        return self.method


@dataclass
class Fault:
    """One thing to go wrong with a request. `at` counts bytes, `seconds` time."""

    # status       an answer with `status`; the store hears nothing
    # cut-request  the connection breaks after `at` bytes of the body
    # cut-answer   the connection breaks after `at` bytes of the answer, head included
    # short-body   the body ends after `at` bytes, and the head says that this is all
    # lost-answer  the store does it, the program never hears so
    # stall        nothing happens for `seconds`, or until `Proxy.heal`; then it goes on
    # stall-body   as `stall`, after `at` bytes of the answer; then the connection breaks
    # lie-delete   "deleted", although the store hears nothing
    # stale        an older answer to the same question, if there was one
    kind: str
    at: int = 0
    seconds: float = 0.0
    status: int = 503
    retry_after: int | None = None
    body: bytes = b""


class Broken(Exception):
    """The connection is to be closed."""


class Proxy:
    def __init__(self, upstream, latency=0.0, decide=None, remember=False):
        self.upstream, self.latency, self.decide = upstream, latency, decide
        self.counts, self.statuses, self.bytes, self.faults = Counter(), Counter(), Counter(), Counter()
        self.rate = None
        self.remember = remember        # whether answers to listings are kept for `stale`
        self._answers = {}
        self._well = threading.Event()  # set: nobody stalls any longer
        self._lock = threading.Lock()
        self._open = set()
        self.recent = deque(maxlen=400)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def harm(self, decide):
        """Faults from now on as `decide` says."""
        self._well.clear()
        self.decide = decide

    def heal(self):
        """No faults from now on; who stalls goes on."""
        self.decide = None
        self._well.set()

    def forget(self):
        """Empties the counters."""
        with self._lock:
            for counter in (self.counts, self.statuses, self.bytes, self.faults):
                counter.clear()

    def close(self):
        self.heal()
        self._listener.close()
        for sock in list(self._open):
            _shut(sock)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(client)
        link = Link(client, self)
        try:
            while link.exchange():
                pass
        except (Broken, OSError, ValueError):
            pass
        finally:
            link.close()
            self._open.discard(client)

    def count(self, request, status, sent=0):
        with self._lock:
            self.counts[request.operation] += 1
            self.statuses[status] += 1
            self.bytes[request.operation] += sent
            self.recent.append((round(time.time(), 3), request.operation, status, request.target))

    def harmed(self, fault):
        with self._lock:
            self.faults[fault.kind] += 1


class Link:
    """One connection of the program and the one to the store behind it."""

    def __init__(self, client, proxy):
        self.proxy, self.client, self.reader = proxy, client, client.makefile("rb", CHUNK)
        self.store = self.answers = None

    def close(self):
        for sock in (self.client, self.store):
            if sock:
                _shut(sock)

    def exchange(self):
        """One request and its answer. False at the end of the connection."""
        head = read_head(self.reader)
        if not head:
            return False
        method, target = head.split(b" ", 2)[:2]
        request = Request(method.decode(), target.decode(), fields(head))
        if self.proxy.latency:
            time.sleep(self.proxy.latency)
        decide = self.proxy.decide
        fault = decide(request) if decide else None
        if fault:
            self.proxy.harmed(fault)
        if fault and fault.kind == "stall":
            self.proxy._well.wait(fault.seconds)
        if request.headers.get("expect", "").lower() == "100-continue":
            self.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?im)^expect:[^\r\n]*\r\n", b"", head)
        made = self._made_up(request, fault)
        if made:
            self.client.sendall(made)
            return True
        self._forward(head, request, fault)
        return self._answer(request, fault)

    def _made_up(self, request, fault):
        """The answer if it does not come from the store; the request's body has been read then."""
        if not fault:
            return None
        if fault.kind == "status":
            self._drain(request)
            self.proxy.count(request, fault.status)
            extra = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after is not None else ""
            return answer(fault.status, fault.body, extra)
        if fault.kind == "lie-delete":
            body = self._drain(request)
            self.proxy.count(request, 200)
            if request.method == "DELETE":
                return answer(204, b"")
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            done = b"".join(b"<Deleted><Key>" + key + b"</Key></Deleted>" for key in keys)
            space = b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
            return answer(200, b'<?xml version="1.0" encoding="UTF-8"?><DeleteResult ' + space + b">" + done + b"</DeleteResult>")
        if fault.kind == "stale":
            old = self.proxy._answers.get(request.target)
            if old:
                self._drain(request)
                self.proxy.count(request, 200)
            return old
        return None

    def _drain(self, request):
        return b"".join(body(self.reader, request.headers, "none"))

    def _forward(self, head, request, fault):
        if self.store is None:
            self.store = socket.create_connection(self.proxy.upstream, 10)
            self.store.settimeout(120)
            self.store.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.answers = self.store.makefile("rb", CHUNK)
        left = fault.at if fault and fault.kind == "cut-request" else None
        self.store.sendall(head)
        for piece in body(self.reader, request.headers, "none"):
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            self.store.sendall(piece)
            if left == 0:
                break
        if left is not None:
            self.proxy.count(request, 0)
            raise Broken

    def _answer(self, request, fault):
        head = read_head(self.answers)
        while head and b" 100 " in head.split(b"\r\n", 1)[0]:
            head = read_head(self.answers)
        if not head:
            raise Broken
        status, headers = int(head.split(b" ", 2)[1]), fields(head)
        ends = "none" if request.method == "HEAD" or status in (204, 304) else "close"
        pieces = iter(()) if ends == "none" else body(self.answers, headers, ends)
        sent = 0
        kind = fault.kind if fault else None
        keep = self.proxy.remember and request.operation == "LIST" and status == 200
        if kind in ("short-body", "lost-answer") or keep:
            whole = b"".join(pieces)
            if keep and kind is None:
                # The first answer of a harmless time is the old one from then on.
                self.proxy._answers[request.target] = head + whole
            if kind == "lost-answer":
                self.proxy.count(request, status)
                raise Broken
            if kind == "short-body" and ends != "none":
                whole = unchunked(whole, headers)[:fault.at]
                head = re.sub(rb"(?im)^(content-length|transfer-encoding):[^\r\n]*\r\n", b"", head)[:-2] + b"Content-Length: %d\r\n\r\n" % len(whole)
            pieces = iter((whole,))
        left = fault.at if kind in ("cut-answer", "stall-body") else None
        sent += self._send(head, left)
        for piece in pieces:
            sent += self._send(piece, None if left is None else left - sent)
            if left is not None and sent >= left:
                break
        self.proxy.count(request, status, sent)
        if left is not None:
            if kind == "stall-body":
                self.proxy._well.wait(fault.seconds)
            raise Broken
        measured = ends == "none" or "content-length" in headers or "chunked" in headers.get("transfer-encoding", "")
        return measured and headers.get("connection", "").lower() != "close"

    def _send(self, piece, left):
        piece = piece if left is None else piece[:max(left, 0)]
        self.client.sendall(piece)
        if self.proxy.rate:
            time.sleep(len(piece) / self.proxy.rate)
        return len(piece)


def relay(host, upstream):
    """Passes bytes on from a port of `host`, a loopback address, to `upstream`; returns the port."""
    listener = socket.create_server((host, 0))

    def pump(source, sink):
        try:
            while data := source.recv(CHUNK):
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            _shut(sock)

    def accept():
        while True:
            client, _ = listener.accept()
            store = socket.create_connection(upstream, 10)
            for pair in ((client, store), (store, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def _shut(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


def read_head(reader):
    """Everything up to and with the empty line; empty at the end of the connection."""
    lines = []
    while True:
        line = reader.readline(65536)
        if not line:
            return b""
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)


def fields(head):
    found = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.decode("latin-1").lower()] = value.decode("latin-1").strip()
    return found


def body(reader, headers, without_length):
    """The pieces of a body as they are on the wire, chunk marks included."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while True:
            mark = reader.readline(1024)
            if not mark:
                raise Broken
            yield mark
            size = int(mark.split(b";")[0], 16)
            if size == 0:
                while True:
                    line = reader.readline(65536)
                    yield line
                    if line in (b"\r\n", b"\n", b""):
                        return
            yield from exactly(reader, size + 2)
    elif "content-length" in headers:
        yield from exactly(reader, int(headers["content-length"]))
    elif without_length == "close":
        while piece := reader.read1(CHUNK):
            yield piece


def exactly(reader, size):
    while size:
        piece = reader.read1(min(size, CHUNK))
        if not piece:
            raise Broken
        size -= len(piece)
        yield piece


def unchunked(raw, headers):
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        return raw
    out, at = [], 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(out)
        out.append(raw[end + 2:end + 2 + size])
        at = end + 2 + size + 2


def answer(status, content, extra=""):
    reason = REASONS.get(status, "OK")
    kind = "Content-Type: application/xml\r\n" if content.startswith(b"<") else ""
    length = "" if status == 204 else f"Content-Length: {len(content)}\r\n"
    return f"HTTP/1.1 {status} {reason}\r\n{kind}{extra}{length}\r\n".encode() + content


def address(url):
    """(host, port) of `http://host:port`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname, parts.port


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("upstream", help="where the store listens: 127.0.0.1:9000")
    p.add_argument("--latency", type=float, default=0.0)
    args = p.parse_args()
    proxy = Proxy(address(args.upstream), args.latency)
    print(proxy.url, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: exit(0))
    try:
        while True:
            time.sleep(1)
    except (KeyboardInterrupt, SystemExit):
        print(dict(proxy.counts))


if __name__ == "__main__":
    main()
