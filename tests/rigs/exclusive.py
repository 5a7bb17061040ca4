#!/usr/bin/env python3
"""Two daemons where there should be one: never a mixed or unrestorable replica, and both say what is going on.

Cases: one database and one metadata directory (the second must wait, and take over when the first is gone, by SIGTERM or
kill -9); one database with two metadata directories and one replica; two databases on one replica. While both run, both
applications write and the replica is restored again and again: every result must be an exact past state of one of them.
"""

import re
import sys
import time

import chain
import common

LEVELS = [{"interval": "1s"}, {"interval": "3s"}]


def write(rig, name, db, replica, meta=None):
    entry = {"path": str(db), "monitor-interval": "100ms", "min-checkpoint-page-count": 100,
             "replica": {"url": common.url(replica), "sync-interval": "100ms"}}
    if meta:
        entry["meta-path"] = str(meta)
    return common.write_config(rig.dir / name, [entry], levels=LEVELS, snapshot={"interval": "5s", "retention": "60s"},
                               **{"l0-retention": "3s", "l0-retention-check-interval": "1s"})


def complaint(daemon):
    """The first error line of a daemon's log, without its time."""
    lines = [line for line in daemon.log_text().splitlines() if "level=ERROR" in line]
    return re.sub(r"^time=\S+ ", "", lines[0]) if lines else ""


class Scene:
    def __init__(self, rig, label, databases):
        self.rig, self.label = rig, label
        self.dir = rig.dir / label.replace(" ", "-")
        self.dir.mkdir()
        self.replica = self.dir / "replica"
        self.models, self.sources, self.crews = [], [], []
        for n in range(databases):
            db = self.dir / f"app{n}.db"
            chain.create(db)
            self.sources.append(common.Db(db))
            # Writers of their own ids make chains of their own: no state of one is a state of the other.
            crew = chain.Crew(db, self.dir, n + 1, 40, rig.seed + n, False, 1000)
            self.crews.append(crew)
            self.models.append(chain.Model())
            common.wait_for(lambda s=self.sources[-1]: s.value("SELECT count(*) FROM chain"), 10)
        self.restores = 0

    def db(self, n=0):
        return self.dir / f"app{n}.db"

    def judge(self):
        """(which database, which commit) the replica restores to; raises Mismatch for anything else."""
        out = self.dir / "restored.db"
        result = common.restore_fresh(self.rig.bin, self.replica, out)
        if result.code != 0:
            raise common.Mismatch(f"restore: {result.message}")
        self.restores += 1
        trouble = []
        for n, source in enumerate(self.sources):
            restored = common.open_restored(out)
            count = restored.value("SELECT max(n) FROM chain")
            same = restored.execute("SELECT hash FROM chain WHERE n = ?", (count,)) == source.execute("SELECT hash FROM chain WHERE n = ?", (count,))
            restored.close()
            if same:
                return n, self.models[n].verify(out)
            trouble.append(f"not database {n} at {count}")
        raise common.Mismatch("; ".join(trouble))

    def watch(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.judge()
            time.sleep(0.05)

    def end(self):
        for crew in self.crews:
            crew.stop()
        for source in self.sources:
            source.close()


def one_database_one_directory(rig, kill):
    scene = Scene(rig, f"same directory, first {'killed' if kill else 'ended'}", 1)
    config = write(rig, f"same-{kill}.yml", scene.db(), scene.replica)
    first = rig.bin.replicate_config(config, scene.dir / "first.log")
    common.wait_for(lambda: common.ltx_files(scene.replica), 20)
    second = rig.bin.replicate_config(config, scene.dir / "second.log")
    scene.watch(4)
    once = common.run([rig.bin.path, "replicate", "-once", "-config", str(config)], 60)
    if once.code != 1 or "locked by process" not in once.message:
        raise common.Mismatch(f"-once beside a daemon: exit {once.code}: {once.message}")
    waiting = complaint(second)
    if "another litestream" not in waiting:
        raise common.Mismatch(f"the second did not say why it waits: {waiting!r}")
    if kill:
        first.kill()
    elif (code := first.terminate()) != 0:
        raise common.Mismatch(f"first: exit {code}")
    wanted = scene.sources[0].value("SELECT max(n) FROM chain")
    if not common.wait_for(lambda: scene.judge()[1] >= wanted, 10):
        raise common.Mismatch("the second has not taken over within 10 s")
    wanted = scene.sources[0].value("SELECT max(n) FROM chain")
    if (code := second.terminate()) != 0:
        raise common.Mismatch(f"second: exit {code}")
    if (state := scene.judge()[1]) < wanted:
        raise common.Mismatch(f"after SIGTERM {state} of {wanted}")
    scene.end()
    return scene.restores, waiting


def two_on_one_replica(rig, databases):
    label = "two databases, one replica" if databases == 2 else "two directories, one replica"
    scene = Scene(rig, label, databases)
    configs = [write(rig, f"shared-{databases}-{n}.yml", scene.db(n % databases), scene.replica, scene.dir / f"meta{n}") for n in range(2)]
    daemons = [rig.bin.replicate_config(configs[n], scene.dir / f"d{n}.log") for n in range(2)]
    said, owners = [], []
    for turn in range(6):
        if turn:
            # Whoever starts tries to take the replica over. Who gets it is decided by who writes the next TXID first.
            again = rig.rng.randrange(2)
            # Whoever lost the replica ends with commits that are not there, and says so.
            if (code := daemons[again].terminate()) != int(again == lost[0]):
                raise common.Mismatch(f"SIGTERM: exit {code}, and {lost[0]} of {again} had lost")
            daemons[again] = rig.bin.replicate_config(configs[again], scene.dir / f"d{again}-{turn}.log")
        else:
            common.wait_for(lambda: common.ltx_files(scene.replica), 20)
        scene.watch(3)
        lost = [n for n in range(2) if "another writer" in complaint(daemons[n])]
        if len(lost) != 1:
            said = [complaint(daemon) for daemon in daemons]
            raise common.Mismatch(f"turn {turn}: {len(lost)} of two daemons say that they have lost the replica: {said}")
        owner, state = scene.judge()
        if databases == 2 and owner == lost[0]:
            raise common.Mismatch(f"turn {turn}: database {owner} at {state} is restored, but its daemon has lost")
        owners.append(1 - lost[0])
        said.append(complaint(daemons[lost[0]]))
    owner = owners[-1]
    wanted = scene.sources[owner % databases].value("SELECT max(n) FROM chain")
    for daemon, wanted_code in ((daemons[1 - owner], 1), (daemons[owner], 0)):
        if (code := daemon.terminate()) != wanted_code:
            raise common.Mismatch(f"SIGTERM: exit {code}, not {wanted_code}")
    whose, state = scene.judge()
    if whose != owner % databases or state < wanted:
        raise common.Mismatch(f"at the end database {whose} at {state}, wanted {owner} at {wanted}")
    scene.end()
    return scene.restores, said[-1]


def main():
    p = common.parser(__doc__)
    rig = common.Rig("exclusive", p.parse_args())
    for label, case in [("same directory, SIGTERM", lambda: one_database_one_directory(rig, False)),
                        ("same directory, kill -9", lambda: one_database_one_directory(rig, True)),
                        ("two directories, one replica", lambda: two_on_one_replica(rig, 1)),
                        ("two databases, one replica", lambda: two_on_one_replica(rig, 2))]:
        try:
            restores, said = case()
            rig.case(label, True, f"{restores} restores, 0 wrong; says: {said}")
        except common.Mismatch as e:
            rig.case(label, False, str(e))
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
