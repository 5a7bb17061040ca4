#!/usr/bin/env python3
"""kill -9 at many distinct system calls, then restart: is everything right?

killat.c (ptrace, built here) kills the program on entering its n-th system call that touches the working directory, counted over
all threads. n runs over every kind of call on every kind of file. Scenarios:

once      `replicate -once` with an existing replica and new commits
first     `replicate -once` on a database seen for the first time
daemon    a running daemon with low checkpoint thresholds, writes, and checkpoints by the application
restore   restore to a new path
force     restore -force over an existing database
resume    restore of 72 MB that does not compress, now to a new path and now with -force, killed up to three times in a row:
          each goes on from where the last one was

After a kill of the replicator: the replica as it was left must restore to some exact earlier state or fail cleanly; then the
program is started again, and the restore must equal the source. After a kill of a restore: the destination is
absent, or the old file, or the complete new one; nothing else; a second restore must succeed. After `resume` it must be byte for byte
what a restore gives that was never killed, and nothing may lie beside it.
Where a kill really hit is read from the log, so `distinct_points` counts distinct (scenario, n, system call, kind of file).
"""

import re
import shutil
import sys
import time

import chain
import common


def kind_of(path):
    """A name for a file that does not depend on TXIDs, random names or directories."""
    name = path.rsplit("/", 1)[-1]
    where = "meta " if "-litestream" in path else "replica " if "/replica" in path else ""
    if re.fullmatch(r"(once|first|daemon|restore|force|resume)-\d+", name):
        return "its directory"
    name = re.sub(r"[0-9a-f]{16}", "T", name)
    return where + re.sub(r"(\.tmp).*|[._-][0-9a-zA-Z]{6,}(\.tmp)", ".tmp", name)


class Killer:
    """Runs the program under killat.c and says where it died."""

    def __init__(self, rig):
        self.program, self.log = rig.dir / "killat", rig.dir / "calls.log"
        built = common.run(["cc", "-O2", "-o", self.program, common.HERE / "killat.c"], 60)
        if built.code != 0:
            sys.exit(f"a C compiler is needed: {built.message}")

    def argv(self, command, root, when):
        self.log.unlink(missing_ok=True)
        return [self.program, when, root, self.log, *command]

    def calls(self):
        """[(call, kind of file)] in order; a killed run died on entering the last one."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [(call, kind_of(path)) for call, _, path in (line.partition(" ") for line in lines)]


def state_of(program, replica, out, model):
    """n of the restorable state, or None when restore refuses cleanly; raises Mismatch otherwise."""
    result = common.restore_fresh(program, replica, out)
    if result.code == 0:
        return model.verify(out)
    if out.exists():
        raise common.Mismatch(f"restore failed ({result.message}) but left an output")
    return None


class Replicating:
    """`replicate -once`, killed. A prepared directory is copied for every point."""

    def __init__(self, rig, fresh):
        self.rig, self.name = rig, "first" if fresh else "once"
        self.base = rig.dir / self.name
        self.base.mkdir()
        db = self.base / "app.db"
        chain.create(db)
        source = common.Db(db)
        source.execute("PRAGMA wal_autocheckpoint = 0")
        for _ in range(60):
            chain.step(source, 1)
        self.had = 0
        if not fresh:
            result = rig.bin.once(db, self.base / "replica")
            if result.code != 0:
                sys.exit(f"cannot prepare: {result.message}")
            self.had = 60
            for _ in range(40):
                chain.step(source, 1)
        self.n = source.value("SELECT max(n) FROM chain")
        # The files are copied by another process while the connection is open: a WAL with content stays.
        common.run(["cp", "-a", self.base, rig.dir / f"{self.name}-ready"])
        source.close()
        shutil.rmtree(self.base)
        self.base = rig.dir / f"{self.name}-ready"
        (self.base / "app.db-shm").unlink(missing_ok=True)
        self.model = chain.Model()

    def begin(self, work):
        common.run(["cp", "-a", self.base, work])

    def command(self, work):
        return [self.rig.bin.path, "replicate", "-once", work / "app.db", common.url(work / "replica")]

    def hit(self, killer, work, when):
        return common.run(killer.argv(self.command(work), self.rig.dir, when), 60).code == 137

    def judge(self, work):
        replica = work / "replica"
        n = state_of(self.rig.bin, replica, work / "crashed.db", self.model)
        if n is None and self.had:
            raise common.Mismatch("after the kill the replica is not restorable any more")
        if (n or 0) < self.had:
            raise common.Mismatch(f"after the kill the replica went back from {self.had} to {n}")
        again = common.run(self.command(work), 60)
        if again.code != 0:
            raise common.Mismatch(f"restart fails: {again.message}")
        for program in filter(None, (self.rig.bin, self.rig.reference)):
            n = state_of(program, replica, work / "restored.db", self.model)
            if n != self.n:
                raise common.Mismatch(f"after the restart {program.path} restores {n}, not {self.n}")
        left = common.leftovers(work / ".app.db-litestream")
        if left:
            raise common.Mismatch(f"the restart left {left}")


class Daemon:
    name = "daemon"

    def __init__(self, rig):
        self.rig, self.model = rig, chain.Model()

    def begin(self, work):
        work.mkdir()
        self.work, self.db = work, work / "app.db"
        chain.create(self.db)
        self.config = common.write_config(work / "litestream.yml", [{
            "path": str(self.db), "monitor-interval": "20ms", "min-checkpoint-page-count": 25, "truncate-page-n": 120,
            "checkpoint-interval": "200ms", "replica": {"url": common.url(work / "replica"), "sync-interval": "20ms"}}])

    def work_on(self, source, seconds, alive):
        end = time.monotonic() + seconds
        while time.monotonic() < end and alive():
            for _ in range(self.rig.rng.randrange(1, 6)):
                try:
                    chain.step(source, 1)
                except common.BusyError:
                    pass
            if self.rig.rng.random() < 0.08:
                try:
                    source.execute(f"PRAGMA wal_checkpoint({self.rig.rng.choice(chain.CHECKPOINTS)})")
                except common.BusyError:
                    pass
            time.sleep(0.01)

    def hit(self, killer, work, when):
        command = [self.rig.bin.path, "replicate", "-config", self.config]
        self.model = chain.Model()
        source = self.source = common.Db(self.db, busy_ms=2000)
        source.execute("PRAGMA wal_autocheckpoint = 50")
        daemon = common.Daemon(killer.argv(command, self.rig.dir, when), self.work.with_suffix(".log"))
        self.work_on(source, self.rig.args.daemon_seconds, daemon.alive)
        died = not daemon.alive()
        daemon.kill()
        if died:
            self.work_on(source, 0.1, lambda: True)
        return died

    def judge(self, work):
        source, replica = self.source, work / "replica"
        before = state_of(self.rig.bin, replica, work / "crashed.db", self.model) or 0
        daemon = self.rig.bin.replicate_config(self.config, work / "daemon.log")
        try:
            time.sleep(0.4)
            self.work_on(source, 0.1, lambda: True)
            want = source.value("SELECT coalesce(max(n), 0) FROM chain")
            code = daemon.terminate()
        finally:
            daemon.kill()
        if code != 0:
            raise common.Mismatch(f"SIGTERM: exit {code}: {daemon.log_text()[-300:]}")
        for program in filter(None, (self.rig.bin, self.rig.reference)):
            n = state_of(program, replica, work / "restored.db", self.model)
            if n != want or n < before:
                raise common.Mismatch(f"after the restart {program.path} restores {n}, not {want} (before {before})")
        left = common.leftovers(work / ".app.db-litestream")
        if left:
            raise common.Mismatch(f"the restart left {left}")

    def end(self):
        self.source.close()


class Restoring:
    def __init__(self, rig, force):
        self.rig, self.name, self.force = rig, "force" if force else "restore", force
        self.base = rig.dir / f"{self.name}-source"
        self.base.mkdir()
        db = self.base / "app.db"
        chain.create(db)
        source = common.Db(db)
        for _ in range(6):
            for _ in range(50):
                chain.step(source, 1)
            result = rig.bin.once(db, self.base / "replica")
            if result.code != 0:
                sys.exit(f"cannot prepare: {result.message}")
        self.n = source.value("SELECT max(n) FROM chain")
        source.close()
        self.old = self.base / "old.db"
        old = common.Db(self.old)
        old.execute("CREATE TABLE precious (x)")
        old.execute("INSERT INTO precious VALUES ('the only copy')")
        old.close()
        self.model = chain.Model()

    def begin(self, work):
        work.mkdir()
        if self.force:
            shutil.copy(self.old, work / "out.db")

    def command(self, work):
        return [self.rig.bin.path, "restore", *(["-force"] if self.force else []), "-o", work / "out.db", common.url(self.base / "replica")]

    def hit(self, killer, work, when):
        return common.run(killer.argv(self.command(work), self.rig.dir, when), 60).code == 137

    def judge(self, work):
        out = work / "out.db"
        if out.exists():
            if self.force and out.read_bytes() == self.old.read_bytes():
                pass
            else:
                n = self.model.verify(out)
                if n != self.n:
                    raise common.Mismatch(f"the destination holds {n}, not {self.n}")
        elif self.force:
            raise common.Mismatch("the old database is gone and there is no new one")
        again = common.run(self.command(work) if not out.exists() or self.force else
                           [self.rig.bin.path, "restore", "-force", "-o", out, common.url(self.base / "replica")], 60)
        if again.code != 0:
            raise common.Mismatch(f"a second restore fails: {again.message}")
        n = self.model.verify(out)
        if n != self.n:
            raise common.Mismatch(f"the second restore holds {n}, not {self.n}")


class Resuming:
    name = "resume"
    CONTINUED = "continuing an interrupted restore"

    def __init__(self, rig):
        self.rig, self.rng = rig, rig.rng
        self.base = rig.dir / "resume-source"
        self.base.mkdir()
        db = self.base / "app.db"
        chain.create(db)
        source = common.Db(db)
        source.execute("CREATE TABLE ballast (x BLOB)")
        for _ in range(40):
            source.execute("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 450) INSERT INTO ballast SELECT randomblob(4000) FROM c")
            chain.step(source, 1)
        for _ in range(3):
            result = rig.bin.once(db, self.base / "replica")
            if result.code != 0:
                sys.exit(f"cannot prepare: {result.message}")
            for _ in range(20):
                chain.step(source, 1)
        source.close()
        fresh = self.base / "fresh.db"
        result = common.restore_fresh(rig.bin, self.base / "replica", fresh)
        if result.code != 0:
            sys.exit(f"cannot prepare: {result.message}")
        chain.Model().verify(fresh)
        self.want = common.sha256_file(fresh)
        self.old = self.base / "old.db"
        old = common.Db(self.old)
        old.execute("CREATE TABLE precious (x)")
        old.execute("INSERT INTO precious VALUES ('the only copy')")
        old.close()
        self.old_sum = common.sha256_file(self.old)
        self.continued = self.kills = 0

    def begin(self, work):
        work.mkdir()
        self.force = self.rng.random() < 0.5
        if self.force:
            shutil.copy(self.old, work / "out.db")

    def command(self, work):
        return [self.rig.bin.path, "restore", *(["-force"] if self.force else []), "-o", work / "out.db", common.url(self.base / "replica")]

    def hit(self, killer, work, when):
        killed = common.run(killer.argv(self.command(work), self.rig.dir, when), 60).code == 137
        first = killer.log.read_text(errors="replace") if killer.log.exists() else ""
        # The next one reads back what is there and goes on; it is killed as well, at any point, and so may be the third.
        for _ in range(self.rng.choice([0, 1, 2]) if killed and when else 0):
            self.look(work)
            result = common.run(killer.argv(self.command(work), self.rig.dir, self.rng.randrange(1, max(2, when))), 60)
            self.count(result)
            if result.code != 137:
                break
            self.kills += 1
        killer.log.write_text(first)
        return killed

    def count(self, result):
        self.continued += self.CONTINUED in result.out + result.err

    def look(self, work):
        """The destination is absent, the old database, or the whole new one."""
        out = work / "out.db"
        found = common.sha256_file(out) if out.exists() else None
        if found not in ((self.old_sum if self.force else None), self.want):
            raise common.Mismatch(f"the destination is {'gone' if found is None else 'half written'}")

    def judge(self, work):
        self.look(work)
        if (work / "out.db").exists():
            self.force = True
        last = common.run(self.command(work), 60)
        self.count(last)
        if last.code != 0:
            raise common.Mismatch(f"the last restore fails: {last.message}")
        if common.sha256_file(work / "out.db") != self.want:
            raise common.Mismatch("the last restore is not byte for byte what one gives that was not killed")
        left = sorted(p.name for p in work.iterdir() if p.name != "out.db")
        if left:
            raise common.Mismatch(f"left behind: {left}")

    def end_all(self):
        return {"continued": self.continued, "further_kills": self.kills}


def choose(calls, budget, rng):
    """`budget` positions in the list of calls: first one of every kind of call on every kind of file, then at random."""
    places = {}
    for number, call in enumerate(calls, 1):
        places.setdefault(call, []).append(number)
    firsts = [rng.choice(numbers) for numbers in places.values()]
    rng.shuffle(firsts)
    chosen = set(firsts[:budget])
    # Calls that only look are less interesting than those that change something.
    rest = [n for n in range(1, len(calls) + 1) if n not in chosen]
    dull = ("fcntl", "fstat", "stat", "lstat", "newfstatat", "statx", "lseek", "read", "pread64", "close", "access", "faccessat", "mmap")
    rng.shuffle(rest)
    rest.sort(key=lambda n: calls[n - 1][0] in dull and rng.random() < 0.6)
    chosen.update(rest[:budget - len(chosen)])
    return sorted(chosen)


def main():
    p = common.parser(__doc__)
    p.add_argument("--points", type=int, default=300, help="kills to try, over all scenarios")
    p.add_argument("--scenarios", default="once,first,daemon,restore,force,resume")
    p.add_argument("--daemon-seconds", type=float, default=2.0, help="how long a traced daemon may run without being hit")
    p.add_argument("--verbose", action="store_true", help="one line per kill")
    rig = common.Rig("kill_points", args := p.parse_args())
    makers = {"once": lambda: Replicating(rig, False), "first": lambda: Replicating(rig, True), "daemon": lambda: Daemon(rig),
              "restore": lambda: Restoring(rig, False), "force": lambda: Restoring(rig, True), "resume": lambda: Resuming(rig)}
    names = args.scenarios.split(",")
    distinct, missed = set(), 0
    killer = Killer(rig)
    for index, name in enumerate(names):
        scenario = makers[name]()
        work = rig.dir / "count"
        scenario.begin(work)
        scenario.hit(killer, work, 0)
        if hasattr(scenario, "end"):
            scenario.end()
        shutil.rmtree(work)
        calls = killer.calls()
        budget = args.points // len(names) + (index < args.points % len(names))
        plan = choose(calls, budget, rig.rng)
        hits, wrong = 0, []
        print(f"  {name}: {len(plan)} of {len(calls)} calls, {len(set(calls))} kinds", flush=True)
        for number, when in enumerate(plan):
            work = rig.dir / f"{name}-{number}"
            scenario.begin(work)
            killed = scenario.hit(killer, work, when)
            seen = killer.calls()
            label = f"{name} #{when} {' '.join(seen[-1]) if killed and seen else 'not reached'}"
            try:
                if killed:
                    hits += 1
                    distinct.add((name, when, *seen[-1]))
                else:
                    missed += 1
                scenario.judge(work)
                if args.verbose:
                    print(f"    ok {label}", flush=True)
            except common.Mismatch as e:
                wrong.append(f"{label}: {e}")
                print(f"    WRONG {wrong[-1]}", flush=True)
                if args.keep_failed:
                    continue
            finally:
                if hasattr(scenario, "end"):
                    scenario.end()
            shutil.rmtree(work, ignore_errors=True)
        more = scenario.end_all() if hasattr(scenario, "end_all") else {}
        rig.case(name, not wrong and hits > 0, f"{hits} kills, {len(wrong)} wrong {wrong[:3]} {more or ''}")
        rig.figures[name] = {"kills": hits, "wrong": len(wrong), **more}
    rig.figures.update(distinct_points=len(distinct), distinct_kinds=len({d[:1] + d[2:] for d in distinct}), not_reached=missed)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
