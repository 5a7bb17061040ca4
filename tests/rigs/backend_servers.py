"""SFTP, WebDAV and NATS for `backends.py`."""

import os
import signal
import subprocess
from pathlib import Path

from backend_kinds import Backend


class Sftp(Backend):
    name, variable = "sftp", "LITESTREAM_TEST_SFTP"
    # Whole seconds.
    same_stamps = False

    def found(self, words):
        address, self.user, self.password, self.directory, self.keys, self.folder = words
        self.port = address.split(":")[1]
        # Of the server's two keys the one that the reference asks for.
        self.host_key = " ".join(Path(self.keys, "host_ecdsa.pub").read_text().split()[:2])

    def replica(self, path, port, **more):
        return {"type": "sftp", "host": f"127.0.0.1:{port}", "user": self.user, "password": self.password,
                "path": f"{self.directory}/{path}", "host-key": self.host_key, **more}

    def wrong(self, port):
        other = " ".join(Path(self.keys, "other.pub").read_text().split()[:2])
        return [
            ("wrong password", self.replica("w", port, password="wrong-One"), {}, ["ssh: unable to authenticate"]),
            ("locked key", self.replica("w", port, **{"key-path": f"{self.keys}/id_locked"}), {}, ["passphrase protected"]),
            ("other host key", self.replica("w", port, **{"host-key": other}), {}, ["ssh: host key mismatch"]),
            ("unknown host", self.replica("w", port, **{"host-key": ""}), {}, ["ssh: unknown host"]),
            ("no permission", {**self.replica("w", port), "path": "/root/nowhere"}, {}, ["SSH_FX_PERMISSION_DENIED"]),
        ]

    def restart(self, down_seconds):
        # Sessions outlive the server that accepted them.
        found = subprocess.run(["ps", "-o", "pid=", "-U", self.user], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        super().restart(down_seconds)


class Webdav(Backend):
    name, variable = "webdav", "LITESTREAM_TEST_WEBDAV"
    # When the server got the file.
    same_stamps = False
    stop_signal = signal.SIGTERM

    def found(self, words):
        # The first of several servers; what follows is on further lines.
        _, self.url, self.user, rest = words[:4]
        self.password = rest.split("\n")[0]
        self.port = self.url.rsplit(":", 1)[1]
        self.untrusted = next(line.split(" ")[1] for line in os.environ[self.variable].splitlines() if line.startswith("untrusted "))
        self.folder = os.environ["LITESTREAM_TEST_WEBDAV_DIR"]

    def replica(self, path, port, **more):
        return {"type": "webdav", "webdav-url": f"http://127.0.0.1:{port}", "webdav-username": self.user,
                "webdav-password": self.password, "path": f"/{path}", **more}

    def wrong(self, port):
        return [
            ("wrong password", self.replica("w", port, **{"webdav-password": "wrong-One"}), {}, ["401"]),
            ("wrong user", self.replica("w", port, **{"webdav-username": "nobody"}), {}, ["401"]),
            ("other authority", self.replica("w", port, **{"webdav-url": self.untrusted}), {}, ["invalid peer certificate"]),
        ]


class Nats(Backend):
    name, variable = "nats", "LITESTREAM_TEST_NATS"

    def found(self, words):
        self.port = words[1].split("\n")[0].rsplit(":", 1)[1]
        self.tls = next(line.split(" ")[1] for line in os.environ[self.variable].splitlines() if line.startswith("tls "))
        self.folder = os.environ["LITESTREAM_TEST_NATS_DIR"]
        self.buckets = {}

    def replica(self, path, port, **more):
        # The reference knows one database per bucket: each path gets a bucket of its own.
        bucket = self.buckets.get(path) or self.make_bucket(path)
        return {"type": "nats", "url": f"nats://127.0.0.1:{port}/{bucket}", "username": "ls", "password": "lsPass-1",
                "reconnect-wait": "200ms", **more}

    def make_bucket(self, path):
        bucket = "".join(c if c.isalnum() else "-" for c in path)
        python = Path(__file__).resolve().parent.parent.parent / "target" / "servers" / "bin" / "python"
        setup = Path(__file__).resolve().parent.parent / "servers" / "nats_setup.py"
        subprocess.run([python, setup, self.folder, self.port, "bucket", bucket], check=True, timeout=30)
        self.buckets[path] = bucket
        return bucket

    def wrong(self, port):
        pair = {"client-cert": f"{self.folder}/client.pem", "client-key": f"{self.folder}/client.key"}
        good = self.replica("w", port)
        return [
            ("wrong password", {**good, "password": "wrong-One"}, {}, ["Authorization Violation"]),
            ("no bucket", {**good, "url": f"nats://127.0.0.1:{port}/no-such-bucket"}, {}, ["bucket not found"]),
            ("other authority", {**good, "url": f"{self.tls}/litestream", "root-cas": [f"{self.folder}/other-ca.pem"], **pair}, {},
             ["certificate"]),
            ("nkey alone", {**good, "username": "", "password": "", "nkey": Path(self.folder, "nkey.pub").read_text()}, {},
             ["without a signature handler"]),
        ]


SERVERS = {kind.name: kind for kind in (Sftp, Webdav, Nats)}
