#!/usr/bin/env python3
"""Three writers, a foreign checkpointer, a replicator killed every few seconds: is every restore some exact past state?

First the same crew runs without a replicator (`--baseline-seconds`), so that stalls can be compared. Then, for
`--seconds`, restores run all the time: the newest state, and a random earlier TXID. Each must be exactly the state
after some commit n (see chain.py); the newest must not go back; TXID order must be commit order; the same TXID must give
the same bytes. At the end: writers stop, SIGTERM, and the restore by both programs must equal the source.
"""

import sys
import time

import chain
import common


def show(label, figures):
    quantiles = lambda q: " ".join(f"{k} {v}" for k, v in q.items())
    print(f"  {label}: {figures['commits']} commits, {figures['rate']}/s, busy {figures['busy']}, over 50 ms {figures['over_50ms']}, "
          f"checkpoints done {figures['checkpoints']}\n    transaction ms: {quantiles(figures['total_ms'])}\n"
          f"    lock wait ms:   {quantiles(figures['lock_ms'])}\n    COMMIT ms:      {quantiles(figures['commit_ms'])}", flush=True)


class Live:
    def __init__(self, rig, args):
        self.rig, self.args, self.rng = rig, args, rig.rng
        self.dir = rig.dir / "live"
        self.dir.mkdir()
        self.db, self.replica = self.dir / "app.db", self.dir / "replica"
        self.model = chain.Model()
        self.newest = 0
        self.at = {}
        self.digest = {}
        self.wrong = []
        self.counts = {"newest": 0, "by txid": 0, "by the reference": 0, "kills": 0, "retried": 0}
        self.lag, self.age, self.samples = [], [], []
        chain.create(self.db, args.page_size)
        self.source = common.Db(self.db)
        self.config = common.write_config(self.dir / "litestream.yml", [{
            "path": str(self.db), **({"min-checkpoint-page-count": args.min_pages} if args.min_pages else {}),
            "monitor-interval": args.interval, "replica": {"url": common.url(self.replica), "sync-interval": args.interval}}])
        self.daemon = None

    def start(self):
        self.daemon = self.rig.bin.replicate_config(self.config, self.dir / "daemon.log")

    def source_n(self):
        return self.source.value("SELECT coalesce(max(n), 0) FROM chain")

    def fault(self, text):
        self.wrong.append((round(time.monotonic() - self.began, 1), text))
        print(f"  {self.wrong[-1][0]:7.1f} s  WRONG: {text}", flush=True)

    def one(self, program, txid=None):
        """Restores once and judges the result; returns n or None."""
        out = self.dir / "restored.db"
        result = None
        for attempt in range(3):
            # A list read while files come and go may name a file that is gone: asking again must help.
            result = common.restore_fresh(program, self.replica, out, txid=txid)
            if result.code == 0:
                break
            self.counts["retried"] += 1
            time.sleep(0.5)
        if result.code != 0:
            return self.fault(f"restore {txid or 'newest'}: {result.message}")
        try:
            return self.model.verify(out)
        except common.Mismatch as e:
            return self.fault(f"restore {txid or 'newest'}: {e}")

    def look(self):
        files = common.ltx_files(self.replica)
        if not files:
            time.sleep(0.2)
            return
        kind = self.rng.random()
        if kind < 0.65:
            program = self.rig.bin
            if kind < 0.1 and self.rig.reference:
                program = self.rig.reference
                self.counts["by the reference"] += 1
            self.counts["newest"] += 1
            behind = self.source_n()
            began = time.monotonic()
            self.samples.append((behind, began))
            n = self.one(program)
            if n is None:
                return
            self.lag.append(max(0, behind - n))
            while len(self.samples) > 1 and self.samples[1][0] <= n:
                self.samples.pop(0)
            age = began - self.samples[0][1] if behind > n else 0.0
            self.age.append(age)
            if age > self.args.max_lag:
                self.fault(f"the newest restore lacks commits that are {age:.0f} s old")
                self.samples.clear()
            if n < self.newest:
                self.fault(f"went back from {self.newest} to {n}")
            self.newest = max(self.newest, n)
            return
        # An earlier point that every retention rule still keeps.
        young = [high for _, high, path in files if time.time() - common.os.stat(path).st_mtime < 200]
        if not young:
            return
        txid = self.rng.choice(young)
        self.counts["by txid"] += 1
        n = self.one(self.rig.bin, txid)
        if n is None:
            return
        digest = common.sha256_file(self.dir / "restored.db")
        if self.at.setdefault(txid, n) != n or self.digest.setdefault(txid, digest) != digest:
            self.fault(f"TXID {txid} was {self.at[txid]}, is {n}: the same TXID gave two states")
        self.at[txid] = n
        for other, seen in self.at.items():
            if (other < txid and seen > n) or (other > txid and seen < n):
                self.fault(f"TXID {txid} holds commit {n}, TXID {other} holds {seen}: out of order")

    def play(self):
        args = self.args
        self.began = time.monotonic()
        self.start()
        crew = chain.Crew(self.db, self.dir, args.writers, args.rate, self.rig.seed, not args.no_foreign, args.autocheckpoint, mean_ms=args.mean_ms,
                          foreign_busy=args.foreign_busy)
        next_kill = self.began + args.kill_every
        while time.monotonic() - self.began < args.seconds and len(self.wrong) < args.max_wrong:
            if not self.daemon.alive():
                self.fault(f"daemon ended by itself: {self.daemon.log_text()[-300:]}")
                self.start()
            if args.kill_every and time.monotonic() > next_kill:
                self.daemon.kill()
                self.counts["kills"] += 1
                if self.rng.random() < 0.5:
                    time.sleep(self.rng.random() * 2)
                self.start()
                next_kill = time.monotonic() + args.kill_every * self.rng.uniform(0.6, 1.4)
            self.look()
            time.sleep(args.pause)
        figures = crew.stop()
        show("with the replicator", figures)
        self.rig.figures["with"] = figures
        for error in figures["errors"]:
            self.fault(f"application: {error}")
        self.finish()

    def finish(self):
        code = self.daemon.terminate()
        if code != 0:
            self.fault(f"SIGTERM: exit {code}: {self.daemon.log_text()[-300:]}")
        want, rows = self.source_n(), common.rows_sha256_of(self.source)
        self.model.verify_open(self.source)
        for program in {self.rig.bin.path: self.rig.bin, **({self.rig.reference.path: self.rig.reference} if self.rig.reference else {})}.values():
            n = self.one(program)
            if n is None:
                continue
            if n != want or common.restored_rows(self.dir / "restored.db") != rows:
                self.fault(f"after SIGTERM the restore by {program.path} holds {n} of {want}")
            elif pages := common.differing_pages(common.folded(self.db, self.dir / "fold"), self.dir / "restored.db"):
                self.fault(f"rows equal, pages differ: {pages}")
        self.source.close()


def main():
    p = common.parser(__doc__, seconds=300)
    p.add_argument("--baseline-seconds", type=float, default=20, help="first, the crew without a replicator (0: leave out)")
    p.add_argument("--no-daemon", action="store_true", help="only the baseline, for --seconds")
    p.add_argument("--writers", type=int, default=3)
    p.add_argument("--rate", type=float, default=200, help="commits per second and writer (0: as fast as it goes)")
    p.add_argument("--kill-every", type=float, default=10, help="seconds (0: never)")
    p.add_argument("--no-foreign", action="store_true", help="no foreign checkpointer")
    p.add_argument("--autocheckpoint", type=int, default=None, help="of the writers (default: SQLite's)")
    p.add_argument("--mean-ms", type=float, default=80, help="mean pause of the foreign checkpointer")
    p.add_argument("--foreign-busy", default="0,20,200", help="its busy timeouts in ms. A FULL, RESTART or TRUNCATE checkpoint that waits for a "
                   "reader keeps the write lock meanwhile, so these show up as stalls of the writers beside any replicator; 0 leaves only our own")
    p.add_argument("--interval", default="1s", help="monitor and sync interval")
    p.add_argument("--min-pages", type=int, default=None, help="min-checkpoint-page-count")
    p.add_argument("--page-size", type=int, default=4096)
    p.add_argument("--max-lag", type=float, default=60, help="seconds a commit may be missing from the newest restore")
    p.add_argument("--pause", type=float, default=0.3, help="seconds between restores")
    p.add_argument("--max-wrong", type=int, default=5, help="stop after so many wrong results")
    rig = common.Rig("live", args := p.parse_args())
    if args.no_daemon:
        args.baseline_seconds = args.seconds
    if args.baseline_seconds:
        where = rig.dir / "baseline"
        where.mkdir()
        chain.create(where / "app.db", args.page_size)
        crew = chain.Crew(where / "app.db", where, args.writers, args.rate, rig.seed, not args.no_foreign, args.autocheckpoint, mean_ms=args.mean_ms,
                          foreign_busy=args.foreign_busy)
        time.sleep(args.baseline_seconds)
        rig.figures["without"] = crew.stop()
        show("without a replicator", rig.figures["without"])
        common.shutil.rmtree(where)
    if args.no_daemon:
        rig.case("baseline", not rig.figures["without"]["errors"])
        rig.finish()
    live = Live(rig, args)
    live.play()
    counts = live.counts
    looked = counts["newest"] + counts["by txid"]
    lag = common.quantiles(live.lag)
    rig.figures.update(restores=counts, wrong=len(live.wrong), first_wrong=live.wrong[:1], lag_commits=lag,
                       lag_seconds_max=round(max(live.age, default=0), 1))
    rig.case("restores", not live.wrong and looked > 0, f"{looked} looked at, {len(live.wrong)} wrong, {counts}, commits behind {lag}, at most {max(live.age, default=0):.1f} s")
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
