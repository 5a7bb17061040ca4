"""What `backends.py` must know of each kind of storage: how a replica is written in a configuration, what to end and start
again, and which configurations are wrong. One class each; `tests/servers/<name>.sh` has started the server and left its address in
the environment.
"""

import os
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path


class Backend:
    """Subclasses set `name` and `variable`, and read the words of the variable in `found`."""

    name = variable = None
    # Whether the reference knows the time of a file as exactly as we do; if not, the two may restore different states.
    same_stamps = True
    # Without warning, where the server keeps what it said it had stored.
    stop_signal = signal.SIGKILL

    def __init__(self):
        line = os.environ.get(self.variable)
        if not line:
            raise SystemExit(f"run this below tests/servers/{self.name}.sh")
        self.found(line.split(" "))

    def found(self, words):
        """Must set `port` (of the server, on loopback) and `folder` (with `pid` and `start`)."""
        raise NotImplementedError

    def replica(self, path, port):
        """The replica's mapping for a configuration; `port` is the server's, or that of a proxy before it."""
        raise NotImplementedError

    def environment(self, port):
        """Variables both programs need."""
        return {}

    def wrong(self, port):
        """[(label, replica, variables, words one of which the error must hold)]"""
        return []

    def restart(self, down_seconds):
        """Ends the server and starts it again; what was stored must still be there."""
        pid = int((Path(self.folder) / "pid").read_text())
        os.kill(pid, self.stop_signal)
        deadline = time.monotonic() + 20
        while running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(down_seconds)
        subprocess.run(["sh", f"{self.folder}/start"], check=True, timeout=60)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Stranger:
    """Speaks TLS on loopback with a certificate nobody trusts, and nothing else."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        pem = f"{self.folder.name}/stranger.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", f"{pem}.crt"],
                       check=True, timeout=30, capture_output=True)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(f"{pem}.crt", pem)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            client.settimeout(5)
            try:
                self.tls.wrap_socket(client, server_side=True).close()
            except OSError:
                client.close()


class Abs(Backend):
    name, variable = "abs", "LITESTREAM_TEST_ABS"
    # Azurite writes down every few seconds what it has, and when it is asked to end.
    stop_signal = signal.SIGTERM

    def found(self, words):
        self.endpoint, self.account, self.key, self.container, self.sas, self.port, self.folder = words

    def replica(self, path, port, **more):
        return {"type": "abs", "bucket": self.container, "path": path, "endpoint": f"http://127.0.0.1:{port}/{self.account}",
                "account-name": self.account, "account-key": self.key, **more}

    def wrong(self, port):
        return [
            ("wrong key", self.replica("w", port, **{"account-key": "bm90IHRoZSBrZXk="}), {}, ["AuthorizationFailure", "AuthenticationFailed"]),
            ("wrong account", self.replica("w", port, **{"account-name": "nobody"}), {}, ["AuthorizationFailure", "AuthenticationFailed"]),
            ("no container", self.replica("w", port, bucket="no-such-container"), {}, ["ContainerNotFound"]),
            ("other authority", self.replica("w", port, endpoint=f"{Stranger().url}/{self.account}"), {}, ["invalid peer certificate"]),
        ]


class Gs(Backend):
    name, variable = "gs", "LITESTREAM_TEST_GS"

    def found(self, words):
        _, self.bucket, self.strict, self.port, self.folder = words

    def replica(self, path, port, **more):
        return {"type": "gs", "bucket": self.bucket, "path": path, **more}

    def environment(self, port):
        return {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{port}"}

    def wrong(self, port):
        return [
            ("no token", self.replica("w", port), {"STORAGE_EMULATOR_HOST": self.strict}, ["401"]),
            ("no bucket", self.replica("w", port, bucket="no-such-bucket"), {}, ["does not exist", "doesn't exist"]),
            ("other authority", self.replica("w", port), {"STORAGE_EMULATOR_HOST": Stranger().url}, ["invalid peer certificate"]),
        ]


class Oss(Backend):
    name, variable = "oss", "LITESTREAM_TEST_OSS"

    def found(self, words):
        _, self.bucket, self.access, self.secret, self.region, self.port, self.folder = words

    def replica(self, path, port, **more):
        return {"type": "oss", "bucket": self.bucket, "path": path, "endpoint": f"http://127.0.0.1:{port}", "region": self.region,
                "access-key-id": self.access, "secret-access-key": self.secret, **more}

    def wrong(self, port):
        return [
            ("wrong secret", self.replica("w", port, **{"secret-access-key": "wrong"}), {}, ["SignatureDoesNotMatch"]),
            ("wrong key id", self.replica("w", port, **{"access-key-id": "NOBODY"}), {}, ["InvalidAccessKeyId"]),
            ("wrong region", self.replica("w", port, region="cn-beijing"), {}, ["InvalidArgument"]),
            ("no bucket", self.replica("w", port, bucket="no-such-bucket"), {}, ["NoSuchBucket"]),
            ("other authority", self.replica("w", port, endpoint=Stranger().url), {}, ["invalid peer certificate"]),
        ]


KINDS = {kind.name: kind for kind in (Abs, Gs, Oss)}
