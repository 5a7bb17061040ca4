#!/usr/bin/env python3
"""What was uploaded vanishes under the running daemon (a lifecycle rule, `sync --delete`, another disk in its place).

all        everything is gone, and commits go on: within two rounds of level 1 the replica can be restored
old        only what is older than the last seconds is gone: the same
replaced   the directory is another, empty one: the same
asked      nobody commits, and `sync -wait` is asked: it can be restored when that has succeeded
broken     nothing can be written there any more: an ERROR says so, `status -max-lag` exits 1, `/readyz` answers 503, `sync -wait`
           fails; when it can be written again, all of them say that it is well
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import chain
import common

LEVEL = 2


class Scene:
    def __init__(self, rig, name, replica=None):
        self.rig, self.dir = rig, rig.dir / name
        self.dir.mkdir()
        self.db, self.replica, self.socket = self.dir / "app.db", replica or self.dir / "replica", self.dir / "socket"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        chain.create(self.db)
        self.source = common.Db(self.db)
        self.config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.db), "monitor-interval": "100ms", "replica": {"url": common.url(self.replica), "sync-interval": "100ms"}}],
            levels=[{"interval": f"{LEVEL}s"}], addr=f"127.0.0.1:{self.port}", socket={"enabled": True, "path": str(self.socket)},
            **{"l0-retention": "1s", "l0-retention-check-interval": "500ms", "shutdown-sync-timeout": "2s"})
        self.daemon = rig.bin.replicate_config(self.config, self.dir / "daemon.log")
        for _ in range(12):
            chain.step(self.source, 1)
            time.sleep(0.5)
        # Level 1 has everything, and level-0 retention has been here.
        common.wait_for(lambda: common.ltx_files(self.replica, 1), 10)
        time.sleep(LEVEL + 1)

    def commits(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            chain.step(self.source, 1)
            time.sleep(0.25)

    def present(self):
        """None if a restore gives the present state, else why not."""
        result = common.restore_fresh(self.rig.bin, self.replica, self.dir / "restored.db")
        if result.code != 0:
            return result.message[-160:]
        try:
            n = chain.Model().verify(self.dir / "restored.db")
        except common.Mismatch as e:
            return str(e)
        now = self.source.value("SELECT max(n) FROM chain")
        return None if n == now else f"{n} instead of {now}"

    def ask(self, *command):
        name, *rest = command
        return common.run([self.rig.bin.path, name, "-socket", self.socket, *rest], 30)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def end(self):
        return self.daemon.terminate()


def soon(rig, name, harm):
    scene = Scene(rig, name)
    harm(scene)
    scene.commits(2 * LEVEL + 1)
    why = common.wait_for(lambda: scene.present() is None, 2) or scene.present()
    rig.case(f"{name}: restorable after two rounds", why is True, "" if why is True else why)
    said = [line for line in scene.daemon.log_text().splitlines() if "level=ERROR" in line and "cannot be restored" in line]
    rig.case(f"{name}: said once", len(said) == 1, (said or ["nothing"])[0][-200:])
    scene.end()


def empty(scene):
    for entry in scene.replica.iterdir():
        shutil.rmtree(entry)


def old(scene):
    files = sorted((p for p in scene.replica.rglob("*.ltx")), key=lambda p: p.stat().st_mtime)
    for file in files[:-1]:
        file.unlink()


def replaced(scene):
    scene.replica.rename(scene.dir / "elsewhere")
    scene.replica.mkdir()


def asked(rig):
    scene = Scene(rig, "asked")
    empty(scene)
    answer = scene.ask("sync", "-wait", scene.db)
    rig.case("asked: sync -wait is true", answer.code == 0 and scene.present() is None, f"exit {answer.code}, {scene.present()}")
    scene.end()


def broken(rig):
    place = rig.dir / "full"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, timeout=20)
    if mounted.returncode != 0:
        return rig.case("broken", None, "cannot mount a tmpfs here")
    rig.undo(lambda: subprocess.run(["umount", "-l", place], timeout=20, capture_output=True))
    scene = Scene(rig, "broken", place / "replica")
    rig.case("broken: well before", scene.ready()[0] == 200 and scene.ask("status", "-max-lag", "10m").code == 0, scene.ready())
    empty(scene)
    filler = place / "filler"
    with open(filler, "wb") as f, contextlib.suppress(OSError):
        while True:
            os.write(f.fileno(), bytes(4096))
    scene.commits(2 * LEVEL + 1)
    lag = scene.ask("status", "-max-lag", "10m")
    rig.case("broken: status exits 1", lag.code == 1, f"exit {lag.code}: {lag.message}")
    ready = scene.ready()
    rig.case("broken: /readyz answers 503", ready[0] == 503, ready)
    errors = [line for line in scene.daemon.log_text().splitlines() if "level=ERROR" in line]
    rig.case("broken: an error in the log", bool(errors), (errors or [""])[0][-200:])
    wait = scene.ask("sync", "-wait", "-timeout", "3", scene.db)
    rig.case("broken: sync -wait fails", wait.code != 0, f"exit {wait.code}: {wait.message}")
    filler.unlink()
    well = common.wait_for(lambda: scene.ready()[0] == 200 and scene.present() is None, 40, 0.5)
    rig.case("broken: well again by itself", bool(well), f"{scene.ready()}, {scene.present()}")
    rig.case("broken: ends in good order", scene.end() == 0 and scene.present() is None, scene.present())


def main():
    rig = common.Rig("emptied", common.parser(__doc__).parse_args())
    for name, harm in (("all", empty), ("old", old), ("replaced", replaced)):
        soon(rig, name, harm)
    asked(rig)
    broken(rig)
    rig.finish()


if __name__ == "__main__":
    main()
