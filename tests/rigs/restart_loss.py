#!/usr/bin/env python3
"""Does a restart lose commits?

Each round is one database that lives through up to three downtimes of the replicator. Up: the application writes, then
the replicator is stopped with SIGTERM or killed. Down: the application writes on and checkpoints 0 to 3 times in random
modes, closes, crashes or stays connected. Up again: sync, restore, compare with the source. A round is right only if
every restore equals the source: same rows, integrity_check ok, and byte for byte when the source is quiet.
"""

import sys
import time

import app as application
import common


class Lost(Exception):
    pass


class Round:
    def __init__(self, rig, number, rng):
        self.rig, self.rng = rig, rng
        self.dir = rig.dir / f"round-{number}"
        self.dir.mkdir()
        self.db, self.replica = self.dir / "app.db", self.dir / "replica"
        self.log = self.dir / "daemon.log"
        self.story = []
        self.daemon = self.app = None
        r = rng.random
        self.page_size = rng.choice((512, 1024, 4096, 4096, 4096, 4096, 16384, 65536))
        self.auto_vacuum = rng.choice((0, 0, 0, 1, 2))
        self.autocheckpoint = rng.choice((None, None, None, 0, 5, 50, 200))
        self.size_limit = rng.choice((None, None, None, 0, 65536))
        self.once = r() < 0.35
        self.rows = rng.choice((0, 20, 200, 800))
        self.config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.db), "monitor-interval": "50ms", "checkpoint-interval": rng.choice(("1m", "300ms")),
            "min-checkpoint-page-count": rng.choice((1000, 1000, 30)),
            "replica": {"url": common.url(self.replica), "sync-interval": "50ms"}}])
        self.told(f"page {self.page_size}", f"auto_vacuum {self.auto_vacuum}", f"autocheckpoint {self.autocheckpoint}",
                  f"size limit {self.size_limit}", "once" if self.once else "daemon", f"{self.rows} rows")

    def told(self, *words):
        self.story.extend(words)

    # -- the application

    def open_app(self, first=False):
        self.app = common.App(self.db)
        pragmas = ["synchronous = NORMAL"]
        if first:
            pragmas = [f"page_size = {self.page_size}", f"auto_vacuum = {self.auto_vacuum}", *pragmas]
        if self.autocheckpoint is not None:
            pragmas.append(f"wal_autocheckpoint = {self.autocheckpoint}")
        if self.size_limit is not None:
            pragmas.append(f"journal_size_limit = {self.size_limit}")
        self.app.call("open", pragmas=pragmas, **({"seed": self.rng.getrandbits(30), "rows": self.rows} if first else {}))

    def write(self, commits):
        self.told(f"{commits} commits")
        self.app.call("write", commits=commits, seed=self.rng.getrandbits(30))

    def down(self):
        """What happens while nobody replicates."""
        rng = self.rng
        checkpoints = rng.choice((0, 1, 1, 2, 3))
        steps = ["checkpoint"] * checkpoints + ["write"] * (checkpoints + rng.choice((0, 1, 1, 2)))
        rng.shuffle(steps)
        if rng.random() < 0.3:
            # The everyday case that is hardest to see: unseen commits, a reset of the WAL, then fewer frames than before.
            steps = ["write", "RESTART", "little"] + steps[:rng.randrange(2)]
        for step in steps:
            if step == "write":
                self.write(rng.choice((1, 1, 2, 3, 5, 8, 20, 60, 200)))
            elif step == "little":
                self.write(rng.choice((1, 1, 2, 3)))
            else:
                mode = rng.choice(application.CHECKPOINTS) if step == "checkpoint" else step
                self.told(mode)
                self.app.call("checkpoint", mode=mode)
            event = rng.random()
            if event < 0.06:
                self.told("app closes")
                self.app.close()
                self.open_app()
            elif event < 0.12:
                self.told("app crashes")
                self.app.crash()
                self.open_app()
            elif event < 0.15:
                self.told("VACUUM")
                self.app.call("sql", sql="VACUUM")
            elif event < 0.17:
                self.told("journal DELETE and back")
                self.app.call("sql", sql="PRAGMA journal_mode = DELETE")
                self.app.call("write", commits=rng.randrange(3), seed=rng.getrandbits(30))
                self.app.call("sql", sql="PRAGMA journal_mode = WAL")

    # -- the replicator

    def start(self):
        self.daemon = self.rig.bin.replicate_config(self.config, self.log)

    def restored(self, exact):
        """Restores and compares once: '' when equal, else what is wrong."""
        out = self.dir / "restored.db"
        result = common.restore_fresh(self.rig.bin, self.replica, out)
        if result.code != 0:
            return f"restore fails: {result.message}"
        try:
            rows = common.restored_rows(out)
        except common.Mismatch as e:
            return str(e)
        if rows != self.app.call("rows"):
            return "other rows, integrity_check ok"
        if exact:
            pages = common.differing_pages(common.folded(self.db, self.dir / "fold"), out)
            if pages:
                return f"rows equal, pages differ: {pages}"
        return ""

    def must_equal(self, exact):
        wrong = self.restored(exact)
        if wrong:
            raise Lost(wrong)

    def poll(self):
        """Without an acknowledgement to ask for, wait until the restore equals the source."""
        wrong = "never looked"
        deadline = time.monotonic() + self.rig.args.poll_seconds
        while wrong and time.monotonic() < deadline:
            if not self.daemon.alive():
                raise Lost(f"daemon ended by itself: {self.daemon.log_text()[-300:]}")
            wrong = self.restored(False)
            if wrong:
                time.sleep(0.15)
        if wrong:
            raise Lost(f"not equal after {self.rig.args.poll_seconds} s: {wrong}")

    def stop(self):
        # The reference flushes only databases it has already looked at once; and before it handles signals, SIGTERM kills it.
        time.sleep(max(0.0, self.rig.args.settle - (time.monotonic() - self.daemon.started)))
        self.told("SIGTERM")
        code = self.daemon.terminate()
        if code != 0:
            raise Lost(f"SIGTERM: exit {code}: {self.daemon.log_text()[-300:]}")

    def sync_once(self):
        self.told("-once")
        result = self.rig.bin.once(self.db, self.replica)
        if result.code != 0:
            raise Lost(f"-once: exit {result.code}: {result.message}")
        self.must_equal(True)

    def play(self):
        rng = self.rng
        self.open_app(first=True)
        if self.once:
            self.sync_once()
        else:
            self.start()
            self.poll()
            if rng.random() < 0.5:
                # Let a first snapshot exist: one made after the restart would heal what the restart lost.
                common.wait_for(lambda: common.ltx_files(self.replica, 9), 1.2)
        for _ in range(rng.choice((1, 1, 2, 3))):
            self.write(rng.choice((0, 1, 3, 10, 40, 120)))
            if self.once:
                self.sync_once()
            else:
                if rng.random() < 0.5:
                    self.poll()
                if rng.random() < 0.5:
                    self.stop()
                    self.must_equal(True)
                else:
                    self.told("kill -9")
                    self.daemon.kill()
            self.told("|")
            self.down()
            self.told("|")
            if self.once:
                self.sync_once()
                continue
            self.start()
            if rng.random() < 0.5:
                self.write(rng.choice((1, 5, 30)))
            if rng.random() < 0.6:
                self.stop()
                self.must_equal(True)
                self.start()
            else:
                self.poll()
        if not self.once:
            self.stop()
            self.must_equal(True)
        if self.rig.reference and self.rig.reference.path != self.rig.bin.path:
            out = self.dir / "restored-reference.db"
            result = common.restore_fresh(self.rig.reference, self.replica, out)
            if result.code != 0 or common.sha256_file(out) != common.sha256_file(self.dir / "restored.db"):
                raise Lost(f"the reference restores something else: {result.message}")

    def end(self):
        if self.daemon:
            self.daemon.kill()
        if self.app:
            self.app.crash()


def main():
    p = common.parser(__doc__, rounds=100)
    p.add_argument("--poll-seconds", type=float, default=8)
    p.add_argument("--settle", type=float, default=0.5, help="seconds a daemon runs at least before SIGTERM")
    p.add_argument("--only", type=int, default=None, help="replay one round of a seed")
    p.add_argument("--quiet", action="store_true", help="print only rounds that fail")
    rig = common.Rig("restart_loss", args := p.parse_args())
    silent = 0
    for number in range(args.rounds):
        rng = common.random.Random(f"{rig.seed}/{number}")
        if args.only not in (None, number):
            continue
        this = Round(rig, number, rng)
        try:
            this.play()
            ok, detail = True, ""
        except (Lost, common.Mismatch) as e:
            ok, detail = False, " / ".join(str(e).split("\n"))[:400]
        finally:
            this.end()
        silent += not ok and any(x in detail for x in ("other rows", "pages differ", "integrity_check", "malformed"))
        if ok and args.quiet:
            rig.cases.append((f"round {number}", True, ""))
        else:
            rig.case(f"round {number}", ok, detail if ok else f"{detail}  [{', '.join(this.story)}]")
        if ok and not args.keep:
            common.shutil.rmtree(this.dir, ignore_errors=True)
    rig.figures["silent_losses"] = silent
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
