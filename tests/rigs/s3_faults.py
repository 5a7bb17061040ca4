#!/usr/bin/env python3
"""A store that fails in every way a network lets it, between a daemon under load and its bucket.

Run below `tests/servers/s3.sh`. The daemon (short levels, snapshots, retention) reaches the store only through `proxy.py`; each phase is
one kind of harm, then the proxy is well again. All the time:

* a restore through the sick proxy is an error, or an exact past state (`chain.py`); a TXID gives the same bytes as without the proxy;
* `sync -wait` and `status -max-lag` that say "safe" are right: the store, asked directly, restores at least what was committed;
* after each phase the daemon catches up by itself, in bounded time; at the end both programs restore the last commit.
"""

import os
import re
import sys
import threading
import time

import chain
import common
from proxy import Fault, Proxy, address

STORM_XML = b"<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def phases(rng):
    """[(name, request -> Fault or None)]"""
    often = lambda share, make: lambda request: make(request) if rng.random() < share else None
    status = lambda choices, **more: lambda _: Fault("status", status=rng.choice(choices), body=rng.choice([b"", b"busy", STORM_XML]), **more)
    big_or_small = lambda: rng.choice([0, 1, rng.randrange(1, 300), rng.randrange(1, 4000), rng.randrange(1, 200_000)])

    def only(operations, make):
        return lambda request: make(request) if request.operation in operations else None

    return [
        ("requests cut", often(0.5, lambda _: Fault("cut-request", at=big_or_small()))),
        ("answers cut", often(0.5, lambda _: Fault("cut-answer", at=big_or_small()))),
        ("5xx storm", often(0.9, status([500, 502, 503, 504]))),
        ("429 and Retry-After", often(0.7, status([429, 503], retry_after=1))),
        ("everything refused", status([503])),
        ("answers lost", often(0.6, only({"PUT", "DELETE"}, lambda _: Fault("lost-answer")))),
        ("bodies shortened", often(0.5, only({"GET", "LIST"}, lambda _: Fault("short-body", at=big_or_small())))),
        ("stalls", often(0.4, lambda _: Fault(rng.choice(["stall", "stall-body"]), at=big_or_small(), seconds=rng.uniform(0.5, 3)))),
        ("deletes not done", only({"DELETE"}, lambda _: Fault("lie-delete"))),
        ("old listings", lambda r: Fault("stale") if r.operation == "LIST" else Fault("status", status=500) if rng.random() < 0.2 else None),
    ]


class Faults:
    def __init__(self, rig, line):
        self.rig = rig
        name, endpoint, self.bucket, self.access, self.secret = line.split(" ")
        self.label, self.endpoint = name, endpoint
        self.proxy = Proxy(address(endpoint), remember=True)
        where = self.where = rig.dir / name
        where.mkdir()
        self.db, self.socket = where / "app.db", where / "s.sock"
        chain.create(self.db)
        self.source = common.Db(self.db)
        self.direct, self.sick = self.config("direct", endpoint), self.config("sick", self.proxy.url)
        self.model, self.newest, self.judging, self.asking = chain.Model(), 0, threading.Lock(), threading.Lock()
        self.counts = {"asked": 0, "acknowledged": 0, "restored": 0, "refused": 0, "txids": 0}

    def config(self, name, endpoint):
        replica = {"type": "s3", "bucket": self.bucket, "path": f"faults-{self.rig.seed}", "endpoint": endpoint, "access-key-id": self.access,
                   "secret-access-key": self.secret, "region": "us-east-1", "sync-interval": "100ms"}
        return common.write_config(
            self.where / f"{name}.yml", [{"path": str(self.db), "monitor-interval": "100ms", "min-checkpoint-page-count": 200, "replica": replica}],
            levels=[{"interval": "1s"}, {"interval": "3s"}], snapshot={"interval": "4s", "retention": "12s"},
            socket={"enabled": True, "path": str(self.socket)}, **{"l0-retention": "2s", "l0-retention-check-interval": "1s"})

    def committed(self):
        with self.asking:
            return self.source.value("SELECT max(n) FROM chain") or 0

    def restore(self, config, options=(), program=None, timeout=60, name="direct.db"):
        """(state, path) or (None, message). What is restored must be an exact past state."""
        out = self.where / name
        out.unlink(missing_ok=True)
        result = common.run([(program or self.rig.bin).path, "restore", "-config", config, "-o", out, *options, self.db], timeout)
        if result.code != 0:
            if out.exists():
                raise common.Mismatch(f"a failed restore left its output: {result.message}")
            return None, result.message
        with self.judging:
            return self.model.verify(out), out

    def truth(self, why, at_least):
        """What the store really holds."""
        for _ in range(3):
            state, found = self.restore(self.direct)    # retention may take a file meanwhile
            if state is not None:
                break
        if state is None:
            raise common.Mismatch(f"{why}: the store holds nothing restorable: {found}")
        if state < at_least:
            raise common.Mismatch(f"{why}, but the store restores {state}, and {at_least} was acknowledged")
        if state < self.newest:
            raise common.Mismatch(f"{why}: the store went back from {self.newest} to {state}")
        self.newest = state
        return state

    def ask(self, left):
        """One acknowledgement, if it is given, checked against the store."""
        if self.rig.rng.random() < 0.6:
            before = self.committed()
            result = common.run([self.rig.bin.path, "sync", "-wait", "-timeout", "2", "-socket", self.socket, self.db], 20)
            why = "sync -wait returned 0"
        else:
            # A commit's age counts from when it is noticed: a monitor interval late, more on a busy machine.
            before = self.committed()
            time.sleep(1.5)
            result = common.run([self.rig.bin.path, "status", "-max-lag", "1s", "-socket", self.socket], 20)
            why = "status -max-lag returned 0"
        self.counts["asked"] += 1
        if result.code == 0:
            self.counts["acknowledged"] += 1
            self.truth(why, before)

    def look(self, left):
        """A restore through the proxy as it is; one that is still trying when the phase ends is stopped."""
        state, _ = self.restore(self.sick, timeout=left + 1, name="sick.db")
        self.counts["refused" if state is None else "restored"] += 1

    def look_at_txid(self, left):
        listed = common.run([self.rig.bin.path, "ltx", "-config", self.direct, "-level", "all", self.db], 60)
        txids = re.findall(r"\b[0-9a-f]{16}\b", listed.out)
        if not txids:
            return
        option = ("-txid", self.rig.rng.choice(txids))
        through, found = self.restore(self.sick, option, timeout=left + 1, name="sick.db")
        if through is None:
            self.counts["refused"] += 1
            return
        digest = common.sha256_file(found)
        direct, found = self.restore(self.direct, option, name="at-txid.db")
        if direct is None:
            return          # compacted away meanwhile
        if digest != common.sha256_file(found):
            raise common.Mismatch(f"{option}: {through} through the proxy, {direct} without")
        self.counts["txids"] += 1

    def watch(self, seconds):
        """Asks and looks for that long, in two threads."""
        until, wrong = time.monotonic() + seconds, []

        def repeat(*choices):
            while not wrong and (left := until - time.monotonic()) > 0:
                try:
                    self.rig.rng.choice(choices)(left)
                except Exception as e:
                    wrong.append(e)

        threads = [threading.Thread(target=repeat, args=choices) for choices in ((self.ask,), (self.look, self.look_at_txid))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]

    def recover(self, limit):
        """The proxy is well: how long until everything committed by now is in the store."""
        wanted, began = self.committed(), time.monotonic()
        while True:
            if not self.daemon.alive():
                raise common.Mismatch(f"the daemon ended by itself: {self.daemon.log_text()[-400:]}")
            status = common.run([self.rig.bin.path, "status", "-max-lag", "1s", "-socket", self.socket], 20)
            took = time.monotonic() - began
            if status.code == 0 and took >= 1.5:
                self.truth("caught up", wanted)
                return took
            if took > limit:
                raise common.Mismatch(f"not caught up {took:.0f} s after the store was well: {status.message}")
            time.sleep(0.1)

    def run(self, seconds, limit, only):
        rig = self.rig
        crew = chain.Crew(self.db, self.where, 2, 30, rig.seed, False, 0)
        common.wait_for(self.committed, 10)
        self.daemon = rig.bin.replicate_config(self.sick, self.where / "daemon.log")
        slowest = 0.0
        try:
            self.recover(limit)
            for name, decide in phases(rig.rng):
                if only and not any(word in name for word in only):
                    continue
                case = f"{self.label}: {name}"
                before = dict(self.counts)
                self.proxy.forget()
                try:
                    self.proxy.harm(decide)
                    self.watch(seconds)
                    harm = sum(self.proxy.faults.values())
                    self.proxy.heal()
                    took = self.recover(limit)
                    slowest = max(slowest, took)
                    seen = {key: self.counts[key] - before[key] for key in before}
                    rig.case(case, harm > 0, f"{harm} faults, well again after {took:.1f} s, {seen}")
                except common.Mismatch as e:
                    self.proxy.heal()
                    time.sleep(3)       # the next phase is not to begin while this one is waited out
                    rig.case(case, False, f"{e} | {list(self.proxy.recent)[-6:]}")
            figures = crew.stop()
            for error in figures["errors"]:
                rig.case("application", False, error)
            wanted, code = self.committed(), self.daemon.terminate()
            ours, first = self.restore(self.direct)
            digest = common.sha256_file(first) if ours is not None else first
            readers = [(ours, digest)]
            if rig.reference:
                theirs, second = self.restore(self.direct, program=rig.reference)
                readers.append((theirs, common.sha256_file(second) if theirs is not None else second))
            rig.case(f"{self.label}: the end", code == 0 and all(r == (wanted, digest) for r in readers), f"exit {code}, {wanted} committed, {readers}")
        finally:
            self.daemon.kill()
            self.source.close()
            self.proxy.close()
        return slowest


def main():
    p = common.parser(__doc__, seconds=8)
    p.add_argument("--service", action="append", help="only this one of the services")
    p.add_argument("--only", action="append", help="only phases with this word in their name")
    p.add_argument("--recovery-seconds", type=float, default=30, help="how long catching up may take")
    rig = common.Rig("s3_faults", args := p.parse_args())
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    os.environ.pop("AWS_CA_BUNDLE", None)
    for line in services.splitlines():
        if args.service and line.split(" ")[0] not in args.service:
            continue
        faults = Faults(rig, line)
        try:
            slowest = faults.run(args.seconds, args.recovery_seconds, args.only)
            rig.figures[faults.label] = {**faults.counts, "slowest_recovery_seconds": round(slowest, 1)}
        except common.Mismatch as e:
            rig.case(faults.label, False, e)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
