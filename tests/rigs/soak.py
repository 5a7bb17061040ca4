#!/usr/bin/env python3
"""Many databases under one daemon for a long time: kill -9 every minute, restores all the while.

Every database has a writer and short levels, snapshots and retention. Between two kills random databases are restored (the
newest state, random transaction IDs of files that are in the replica right then) and judged. At the end, after SIGTERM: nothing
committed is missing, all levels are contiguous, there is no temporary file, and memory and descriptors of the daemon (measured
before each kill) have not grown.
"""

import os
import sys
import time

import chain
import common


def status(pid):
    """(RSS in kB, open descriptors) of a process."""
    with open(f"/proc/{pid}/status") as f:
        rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
    return rss, len(os.listdir(f"/proc/{pid}/fd"))


def holes(replica):
    """Neighbours of one level that do not follow each other."""
    found = []
    for level in range(9):
        files = common.ltx_files(replica, level)
        for before, after in zip(files, files[1:]):
            if after[0] != before[1] + 1:
                found.append(f"level {level}: {before[0]}-{before[1]} then {after[0]}-{after[1]}")
    return found


class Subject:
    """One database, its writer, and what is known of its restores."""

    def __init__(self, n, where, args, seed, program):
        self.bin = program
        self.dir = where / f"db{n}"
        self.dir.mkdir()
        self.db, self.replica = self.dir / "app.db", where / "replicas" / f"db{n}"
        chain.create(self.db)
        self.source = common.Db(self.db)
        self.crew = chain.Crew(self.db, self.dir, 1, args.rate, seed + n, False, 1000)
        self.model, self.newest, self.states = chain.Model(), 0, {}

    def entry(self):
        return {"path": str(self.db), "monitor-interval": "200ms", "min-checkpoint-page-count": 200,
                "replica": {"url": common.url(self.replica), "sync-interval": "200ms"}}

    def restore_newest(self, reader):
        out = self.dir / "restored.db"
        result = common.restore_fresh(reader, self.replica, out)
        if result.code != 0:
            if reader is not self.bin and "no such file or directory" in result.message:
                return  # the reference does not plan anew when retention takes a file meanwhile
            raise common.Mismatch(f"{self.dir.name}: newest: {result.message}")
        n = self.model.verify(out)
        if n < self.newest:
            raise common.Mismatch(f"{self.dir.name}: the newest state went back: {self.newest} -> {n}")
        self.newest = n

    def restore_txid(self, reader, rng):
        """Whether there was still such a TXID; what is compacted away cannot be asked for any more."""
        files = [f for level in range(10) for f in common.ltx_files(self.replica, level)]
        txid = rng.choice(files)[1]
        out = self.dir / "restored.db"
        result = common.restore_fresh(reader, self.replica, out, txid=txid)
        if result.code != 0:
            if "no matching backup files" in result.message or reader is not self.bin and "no such file" in result.message:
                return False
            raise common.Mismatch(f"{self.dir.name}: TXID {txid}: {result.message}")
        n = self.model.verify(out)
        if self.states.setdefault(txid, n) != n:
            raise common.Mismatch(f"{self.dir.name}: TXID {txid} gave {self.states[txid]} before and {n} now")
        return True


def main():
    p = common.parser(__doc__, seconds=1800)
    p.add_argument("--databases", type=int, default=20)
    p.add_argument("--rate", type=float, default=4, help="commits per second and database")
    p.add_argument("--kill-seconds", type=float, default=60)
    rig = common.Rig("soak", args := p.parse_args())
    subjects = [Subject(n, rig.dir, args, rig.seed, rig.bin) for n in range(args.databases)]
    config = common.write_config(
        rig.dir / "litestream.yml", [s.entry() for s in subjects],
        levels=[{"interval": "2s"}, {"interval": "10s"}, {"interval": "30s"}],
        snapshot={"interval": "60s", "retention": "180s"},
        **{"l0-retention": "10s", "l0-retention-check-interval": "3s"})
    counts = {"newest": 0, "txid": 0, "gone": 0, "kills": 0, "errors": 0}
    samples, started = [], time.monotonic()
    try:
        while time.monotonic() - started < args.seconds:
            log = rig.dir / f"daemon-{counts['kills']}.log"
            daemon = rig.bin.replicate_config(config, log)
            until = min(time.monotonic() + args.kill_seconds, started + args.seconds)
            ready = common.wait_for(lambda: all(common.ltx_files(s.replica) for s in subjects), 30)
            if not ready:
                raise common.Mismatch("not every database has a file in its replica after 30 s")
            while time.monotonic() < until:
                subject = rig.rng.choice(subjects)
                reader = rig.rng.choice([rig.bin, rig.bin, rig.reference]) if rig.reference else rig.bin
                subject.restore_newest(reader)
                counts["newest"] += 1
                counts["txid" if subject.restore_txid(reader, rig.rng) else "gone"] += 1
            if not daemon.alive():
                raise common.Mismatch(f"the daemon ended by itself: {daemon.log_text()[-300:]}")
            samples.append(status(daemon.pid))
            errors = [line for line in daemon.log_text().splitlines() if "level=ERROR" in line]
            counts["errors"] += len(errors)
            rss, fds = samples[-1]
            rig.case(f"minute {counts['kills']}", True, f"RSS {rss} kB, {fds} descriptors, {counts['newest'] + counts['txid']} restores"
                     f"{' ' + errors[0][:160] if errors else ''}")
            if time.monotonic() - started < args.seconds:
                daemon.kill()
                counts["kills"] += 1
        wanted = [s.source.value("SELECT max(n) FROM chain") for s in subjects]
        code = daemon.terminate()
        rig.case("SIGTERM", code == 0, f"exit {code}")
        commits = 0
        for subject, least in zip(subjects, wanted):
            figures = subject.crew.stop()
            commits += figures["commits"]
            subject.restore_newest(rig.bin)
            trouble = holes(subject.replica) + common.leftovers(subject.replica) + common.leftovers(subject.dir / ".app.db-litestream")
            trouble += figures["errors"]
            if subject.newest < least:
                trouble.append(f"restored {subject.newest} of {least}")
            rig.case(subject.dir.name, not trouble, "; ".join(trouble[:3]) or f"{subject.newest} commits")
            subject.source.close()
        rig.figures.update(commits=commits)
        if len(samples) >= 4:
            # The first minute is warming up; a leak shows between the second and the last.
            (rss0, fd0), (rss1, fd1) = samples[1], samples[-1]
            rig.case("memory", rss1 <= rss0 * 1.25 + 4096, f"RSS {rss0} -> {rss1} kB")
            rig.case("descriptors", fd1 <= fd0 + 8, f"{fd0} -> {fd1}")
    except common.Mismatch as e:
        rig.case("soak", False, str(e))
    rig.figures.update(counts, rss_kb=[r for r, _ in samples], fds=[f for _, f in samples])
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
