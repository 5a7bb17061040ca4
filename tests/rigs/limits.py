#!/usr/bin/env python3
"""Limits of the process, and a clock that jumps.

descriptors   a daemon with 12 databases may open no more files, from its start or from some moment on: it must say so, name
              what it could not save, every restore must still be an exact past state, and it must go on by itself when the limit is lifted
turns         more databases than may be open at once, all of them written to: every one is replicated, one line in the log says
              which limit to raise, nobody stays behind; the same after a restart, and with the last commits at SIGTERM
clock         the wall clock of a daemon jumps by hours and by a year, both ways: every restore right, the newest state never
              older than before, and no snapshot removed sooner than the retention of real time allows

`clock` needs libfaketime (Debian: faketime) and a program that is not linked
statically. What cannot run is counted as skipped.
"""

import os
import re
import resource
import sys
import time
from pathlib import Path

import chain
import common

EMFILE = re.compile(r"too many open files|os error 24\b|unable to open database", re.I)
TURNS = re.compile(r"too few open files are allowed")
DATABASES = 12
PRELOADS = [Path(f"/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1") for arch in ("x86_64", "aarch64")]


class Set:
    """Databases with one daemon."""

    def __init__(self, rig, name, count, **settings):
        self.rig, self.dir = rig, rig.dir / name
        self.dir.mkdir()
        self.names = [f"app{i}" for i in range(count)]
        self.sources, self.models = [], [chain.Model() for _ in self.names]
        for n in self.names:
            chain.create(self.dir / f"{n}.db")
            self.sources.append(common.Db(self.dir / f"{n}.db"))
        self.config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.dir / f"{n}.db"), "monitor-interval": "100ms",
            "replica": {"url": common.url(self.dir / f"replica-{n}"), "sync-interval": "100ms"}} for n in self.names], **settings)
        self.log = self.dir / "daemon.log"

    def write(self, commits=3):
        for source in self.sources:
            for _ in range(commits):
                chain.step(source, 1)

    def state(self, i):
        """The n that a restore of database i gives; raises Mismatch."""
        out = self.dir / "restored.db"
        result = common.restore_fresh(self.rig.bin, self.dir / f"replica-{self.names[i]}", out)
        if result.code != 0:
            raise common.Mismatch(f"{self.names[i]}: {result.message[-200:]}")
        return self.models[i].verify(out)

    def behind(self):
        """Names of the databases whose restore is not their present state yet."""
        late = []
        for i, source in enumerate(self.sources):
            try:
                if self.state(i) != source.value("SELECT max(n) FROM chain"):
                    late.append(self.names[i])
            except common.Mismatch as e:
                late.append(str(e))
        return late


def limit(pid, files):
    """The soft limit of a running process; the hard one could not be raised again."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(files, hard), hard))


def complaint(place, since, timeout=25):
    def found():
        return [line for line in place.log.read_text(errors="replace")[since:].splitlines()
                if (EMFILE.search(line) or TURNS.search(line)) and ("level=ERROR" in line or "level=WARN" in line or line.startswith("Error"))]
    return common.wait_for(found, timeout, 0.3)


def caught_up(place, timeout):
    return common.wait_for(lambda: not place.behind(), timeout, 0.5)


def descriptors(rig):
    place = Set(rig, "descriptors", DATABASES, **{"shutdown-sync-timeout": "3s"})
    place.write()
    daemon = rig.bin.replicate_config(place.config, place.log)
    rig.case("descriptors: whole at first", caught_up(place, 40), place.behind())
    mark = len(place.log.read_text(errors="replace"))
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    limit(daemon.pid, before)
    for _ in range(6):
        place.write()
        time.sleep(0.5)
    said = complaint(place, mark)
    rig.case("descriptors: says so", bool(said), (said or [f"no such line in 25 s, limit {before}"])[0][-180:])
    wrong = []
    for i in range(DATABASES):
        try:
            place.state(i)
        except common.Mismatch as e:
            wrong.append(str(e))
    rig.case("descriptors: restores stay right meanwhile", not wrong and daemon.alive(), "; ".join(wrong[:3]))
    limit(daemon.pid, 4096)
    began = time.monotonic()
    rig.case("descriptors: goes on by itself", caught_up(place, 60) and daemon.alive(), f"{time.monotonic() - began:.1f} s after the limit was lifted")
    place.write()
    code = daemon.terminate()
    rig.case("descriptors: last commits at SIGTERM", code == 0 and not place.behind(), f"exit {code}, {place.behind()}")

    # Too few from the start: the program may refuse to run, but must not pretend.
    mark = len(place.log.read_text(errors="replace"))
    daemon = common.Daemon(["prlimit", "--nofile=26:26", rig.bin.path, "replicate", "-config", place.config], place.log)
    place.write()
    said = complaint(place, mark)
    rig.case("descriptors: too few at start, says so", bool(said), (said or ["no such line in 25 s"])[0][-180:])
    code = daemon.terminate() if daemon.alive() else daemon.wait(1)
    # The exit code of a failed last sync is 1, and 0 in the reference. What was not saved must be named.
    text = place.log.read_text(errors="replace")[mark:]
    unsaid = [n for n in place.behind() if f"db={n}.db" not in "".join(l for l in text.splitlines() if "failed to close database" in l)]
    rig.case("descriptors: too few at start, every loss named", not unsaid, f"exit {code}, not named: {unsaid}")


def turns(rig):
    count, files = rig.args.databases, rig.args.files
    place = Set(rig, "turns", count, **{"shutdown-sync-timeout": "10s"})
    limited = ["prlimit", f"--nofile={files}:{files}", rig.bin.path, "replicate", "-config", place.config]
    for life in ("first", "second"):
        mark = len(place.log.read_text(errors="replace")) if place.log.exists() else 0
        daemon = common.Daemon(limited, place.log)
        began = time.monotonic()
        for _ in range(4):
            place.write(1)
            time.sleep(0.5)
        late = [] if caught_up(place, 60) else place.behind()
        text = place.log.read_text(errors="replace")[mark:]
        said = [line for line in text.splitlines() if "LimitNOFILE" in line and "level=WARN" in line]
        failed = [line for line in text.splitlines() if EMFILE.search(line) and "level=ERROR" in line]
        rig.case(f"turns: {count} databases, {files} files, {life} life", not late and daemon.alive(),
                 f"{len(late)} behind: {late[:2]}" if late else f"all there after {time.monotonic() - began:.1f} s")
        rig.case(f"turns: one line names the limit, {life} life", len(said) == 1, (said or ["none"])[0][-200:] + f", {len(said)} lines")
        rig.case(f"turns: nobody meets the limit, {life} life", not failed, (failed or ["no error"])[0][-200:])
        most = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        # Those that are open use the first of the line up; a few write on, most are quiet.
        for source in place.sources[:: max(1, count // 10)]:
            chain.step(source, 1)
        rig.case(f"turns: some go on, {life} life", caught_up(place, 30), f"{place.behind()[:2]}, {most} files open")
        place.write(1)
        code = daemon.terminate()
        rig.case(f"turns: last commits at SIGTERM, {life} life", code == 0 and not place.behind(), f"exit {code}, {place.behind()[:2]}")
        place.write(1)


def clock(rig):
    preload = next((p for p in PRELOADS if p.exists()), None)
    if preload is None:
        return rig.case("clock", None, "libfaketime is not here")
    retention = 25
    place = Set(rig, "clock", 1, levels=[{"interval": "1s"}, {"interval": "3s"}], snapshot={"interval": "4s", "retention": f"{retention}s"},
                **{"l0-retention": "5s", "l0-retention-check-interval": "2s"})
    offset = place.dir / "offset"
    offset.write_text("+0\n")
    env = {**os.environ, "LD_PRELOAD": str(preload), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
           "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    place.write()
    daemon = common.Daemon([rig.bin.path, "replicate", "-config", place.config], place.log, env=env)
    replica, seen, soon, newest, wrong = place.dir / "replica-app0", {}, [], 0, []
    common.wait_for(lambda: common.ltx_files(replica), 20)
    steps = ["+0", "+2h", "-3h", "+400d", "+400d", "-400d", "+0"]
    for step in steps:
        offset.write_text(step + "\n")
        until = time.monotonic() + rig.args.step_seconds
        while time.monotonic() < until:
            place.write(2)
            now = time.monotonic()
            there = {high for _, high, _ in common.ltx_files(replica, 9)}
            for high in there:
                seen.setdefault(high, now)
            for high in [h for h in seen if h not in there]:
                age = now - seen.pop(high)
                # It was there up to one snapshot interval before it was seen.
                if age < retention - 5:
                    soon.append(f"snapshot {high:x} removed {age:.0f} s after it was made, at {step}")
            try:
                n = place.state(0)
                if n < newest:
                    wrong.append(f"the newest state went back at {step}: {newest} -> {n}")
                newest = max(newest, n)
            except common.Mismatch as e:
                wrong.append(f"at {step}: {e}")
            time.sleep(0.2)
    year = str(time.gmtime(time.time() + 400 * 86400).tm_year)
    if f"time={year}-" not in place.log.read_text(errors="replace"):
        daemon.terminate()
        return rig.case("clock", None, "the program does not see the faked clock (linked statically?)")
    rig.case("clock: restores right, newest never older", not wrong and daemon.alive(), "; ".join(wrong[:3]) or f"{newest} commits, {len(steps)} steps")
    rig.case("clock: no snapshot removed early", not soon, "; ".join(soon[:3]) or f"{len(seen)} snapshots at the end")
    code = daemon.terminate()
    rig.case("clock: last commits at SIGTERM", code == 0 and not place.behind(), f"exit {code}, {place.behind()}")


def main():
    p = common.parser(__doc__)
    p.add_argument("--only", default="descriptors,turns,clock")
    p.add_argument("--databases", type=int, default=40, help="of turns")
    p.add_argument("--files", type=int, default=160, help="how many the daemon of turns may have open")
    p.add_argument("--step-seconds", type=float, default=6, help="how long each position of the clock lasts")
    rig = common.Rig("limits", args := p.parse_args())
    for name, case in (("descriptors", descriptors), ("turns", turns), ("clock", clock)):
        if name in args.only.split(","):
            case(rig)
    rig.finish()


if __name__ == "__main__":
    main()
