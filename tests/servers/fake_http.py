"""What the fake object stores share: a threading HTTP/1.1 server, a store that survives a restart, byte ranges.

A fake is a class with `handle(method, path, query, headers, body) -> Answer`. `Refused` is raised for errors. Objects lie in
memory and, as one file each, in a folder, so that a test may end the server and start it again.
"""

import http.server
import json
import re
import threading
import urllib.parse
from pathlib import Path


class Answer:
    def __init__(self, status=200, body=b"", kind="application/octet-stream", headers=None):
        self.status, self.kind, self.headers = status, kind, headers or {}
        self.body = body.encode() if isinstance(body, str) else body


class Refused(Exception):
    def __init__(self, status, code, message=""):
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code


class Store:
    """Objects of one bucket by name: bytes and facts. Calls are atomic."""

    def __init__(self, folder):
        self.folder, self.lock, self.objects = Path(folder), threading.RLock(), {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.glob("*.json"):
            facts = json.loads(file.read_text())
            self.objects[facts["name"]] = (file.with_suffix(".data").read_bytes(), facts)

    def _file(self, name):
        import hashlib
        return self.folder / hashlib.sha256(name.encode()).hexdigest()

    def put(self, name, data, facts, new_only=False):
        with self.lock:
            if new_only and name in self.objects:
                return False
            facts = {**facts, "name": name}
            file = self._file(name)
            file.with_suffix(".data").write_bytes(data)
            file.with_suffix(".json").write_text(json.dumps(facts))
            self.objects[name] = (data, facts)
            return True

    def get(self, name):
        with self.lock:
            return self.objects.get(name)

    def delete(self, name):
        with self.lock:
            if self.objects.pop(name, None) is None:
                return False
            for suffix in (".data", ".json"):
                self._file(name).with_suffix(suffix).unlink(missing_ok=True)
            return True

    def page(self, prefix, delimiter, after, first, limit):
        """Names in byte order below `prefix`: (objects, prefixes, last name taken, whether there is more).

        `after` is exclusive (a page token), `first` inclusive."""
        with self.lock:
            names = sorted((n for n in self.objects if n.startswith(prefix)), key=str.encode)
            found, dirs, last = [], [], ""
            for name in names:
                if name.encode() <= after.encode() or name.encode() < first.encode():
                    continue
                rest = name[len(prefix):]
                entry = prefix + rest.split(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
                if entry and (entry in dirs or after.startswith(entry)):
                    last = name
                    continue
                if len(found) + len(dirs) >= limit:
                    return found, dirs, last, True
                last = name
                if entry:
                    dirs.append(entry)
                else:
                    found.append((name, *self.objects[name]))
            return found, dirs, last, False


def ranged(data, header):
    """(status, bytes, headers) for a Range header; a range that begins behind the end is refused with 416."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if not match:
        return 200, data, {}
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first >= len(data):
        raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
    return 206, data[first:last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"}


def serve(port, fake, refuse):
    """Serves until killed. `refuse(refused)` makes the answer to an error."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def body(self):
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                whole = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def go(self):
            if self.headers.get("Expect", "").lower() == "100-continue":
                pass
            body = self.body()
            url = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qsl(url.query, keep_blank_values=True)
            try:
                answer = fake.handle(self.command, url.path, query, self.headers, body)
            except Refused as refused:
                answer = refuse(refused)
            # No lock is held here: clients read several answers at once, each at its own pace.
            self.send_response(answer.status)
            headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body)), **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = go

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, address):
            pass

    Server(("127.0.0.1", port), Handler).serve_forever()
