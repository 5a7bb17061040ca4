#!/usr/bin/env python3
"""Figures side by side in one run: no replicator, the program under test, the reference.

throughput   commits/s of a full-speed writer, its stalls, CPU per commit of the daemon, peak RSS, peak WAL size
paced        the same with a writer that commits at a fixed rate
restore      a large database: first `-once`, restore (each program from its own replica and from the other's), `cp` as a floor
many         restore of many small L0 files
idle         CPU, RSS, threads, descriptors with 1 and with many databases
start        time from start to the first LTX file in the replica
latency      time from a commit to its file in the replica, single commits on an otherwise idle database
large        one large transaction: time until it is in the replica, peak RSS

Every figure is printed raw, then as a factor: above 1 the program under test is better. Programs take turns within each
measurement; medians over `--repeat`. `--quick` needs less than a minute.
"""

import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rigs"))
import common  # noqa: E402

CACHE = common.ROOT / "target" / "bench-tools"


def build_writer():
    """The C writer against the newest SQLite amalgamation of the cargo registry (fallback: the system's library)."""
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    found = sorted(glob.glob(f"{home}/registry/src/*/libsqlite3-sys-*/sqlite3/sqlite3.c"))
    CACHE.mkdir(parents=True, exist_ok=True)
    writer = CACHE / "writer"
    source = Path(__file__).resolve().parent / "writer.c"
    if found:
        base = Path(found[-1]).parent
        library = CACHE / (base.parent.name + ".o")
        if not library.exists():
            print(f"compiling {found[-1]} once …", flush=True)
            made = common.run(["cc", "-O2", "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-c", found[-1], "-o", library], 600)
            if made.code != 0:
                sys.exit(made.message)
        flags = ["-I", base, library, "-lm"]
    else:
        print("no SQLite source in the cargo registry: the system's library is used; older than 3.51.3 it has the WAL-reset bug", flush=True)
        flags = ["-lsqlite3"]
    made = common.run(["cc", "-O2", "-Wall", "-o", writer, source, *flags], 120)
    if made.code != 0:
        sys.exit(f"cannot build the writer: {made.message}")
    return writer


def cpu_ns(pid):
    """CPU time of a process with all its threads, also ended ones (the kernel's per-process clock)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def status(pid):
    """(peak RSS KiB, current RSS KiB, threads) of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]), int(fields["VmRSS"].split()[0]), int(fields["Threads"])


class WalWatch(threading.Thread):
    """Samples the size of a WAL by stat (never opens it)."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.peak, self.stop = path, 0, False
        self.start()

    def run(self):
        while not self.stop:
            try:
                self.peak = max(self.peak, os.stat(self.path).st_size)
            except FileNotFoundError:
                pass
            time.sleep(0.02)

    def end(self):
        self.stop = True
        self.join()
        return self.peak


class Bench:
    def __init__(self, rig, args):
        self.rig, self.args = rig, args
        self.programs = {"bin": rig.bin, **({"reference": rig.reference} if rig.reference else {})}
        self.results = {}
        self.serial = 0

    def fresh(self):
        self.serial += 1
        path = self.rig.dir / f"b{self.serial}"
        path.mkdir()
        return path

    def put(self, measure, who, key, value):
        self.results.setdefault((measure, key), {}).setdefault(who, []).append(value)

    def database(self, path, megabytes=0.2):
        """A WAL database of half-compressible rows."""
        db = common.Db(path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE IF NOT EXISTS big (id INTEGER PRIMARY KEY, a TEXT, b BLOB)")
        left = int(megabytes * 1e6 / 1000)
        while left > 0:
            now = min(left, 20000)
            db.execute(f"""WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {now})
                INSERT INTO big (a, b) SELECT printf('row %012d of a table with some text in it, %d ', i, i * 7919) || hex(zeroblob(180)), randomblob(520) FROM c""")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            left -= now
        db.close()

    def started(self, program, work):
        """A daemon with default settings that has replicated something once."""
        db, replica = work / "app.db", work / "replica"
        daemon = program.replicate(db, replica, work / "log")
        if not common.wait_for(lambda: common.ltx_files(replica), 15, 0.002):
            raise RuntimeError(f"no LTX file after 15 s: {daemon.log_text()[-500:]}")
        return daemon

    # -- measurements

    def throughput(self):
        self.writing("throughput", 0)

    def paced(self):
        self.writing("paced", self.args.rate)

    def writing(self, measure, rate):
        turns = ["none", *self.programs]
        for repeat in range(self.args.repeat):
            # Nobody always runs after the same one, and nobody pays for dirty pages of the one before.
            for who in turns[repeat % len(turns):] + turns[:repeat % len(turns)]:
                work = self.fresh()
                self.database(work / "app.db", 1)
                os.sync()
                daemon = self.started(self.programs[who], work) if who != "none" else None
                time.sleep(0.3)
                spent = cpu_ns(daemon.pid) if daemon else 0
                wal = WalWatch(work / "app.db-wal")
                ran = common.run([self.writer, work / "app.db", self.args.write_seconds, self.args.payload, rate], self.args.write_seconds + 60)
                if ran.code != 0:
                    raise RuntimeError(ran.message)
                out = json.loads(ran.out)
                self.rig.figures["writer_sqlite"] = out["sqlite"]
                put = lambda key, value: self.put(measure, who, key, value)
                put("commits/s", out["commits"] / out["seconds"])
                for key in ("p50", "p99", "p999", "max"):
                    put(f"stall {key} us", out[key])
                put("commits over 50 ms", out["over_50ms"])
                if daemon:
                    began = time.monotonic()
                    put("peak RSS KiB", status(daemon.pid)[0])
                    live = last = cpu_ns(daemon.pid)
                    put("CPU us per commit, while writing", (live - spent) / 1000 / max(out["commits"], 1))
                    daemon.signal(signal.SIGTERM)
                    while daemon.alive() and time.monotonic() - began < 120:
                        try:
                            last = cpu_ns(daemon.pid)
                        except OSError:
                            break
                        time.sleep(0.005)
                    put("SIGTERM to exit s", time.monotonic() - began)
                    put("CPU us per commit, until all is replicated", (last - spent) / 1000 / max(out["commits"], 1))
                    self.check(measure, daemon.terminate(5), work, out["commits"], who)
                put("WAL peak MiB", wal.end() / 2**20)
                shutil.rmtree(work)

    def check(self, measure, code, work, commits, who):
        """A fast figure for a wrong result is worth nothing."""
        result = common.restore_fresh(self.programs[who], work / "replica", work / "restored.db")
        found = None
        if result.code == 0:
            db = common.open_restored(work / "restored.db")
            found = db.value("SELECT count(*) FROM w")
            db.close()
        if code != 0 or found != commits:
            self.rig.case(f"{measure} {who}: everything restored", False, f"exit {code}, {found} of {commits} rows {result.message if result.code else ''}")
        else:
            self.rig.cases.append((f"{measure} {who}: everything restored", True, ""))

    def restore(self):
        work = self.fresh()
        self.database(work / "app.db", self.args.restore_mb)
        size = os.stat(work / "app.db").st_size
        for who, program in self.programs.items():
            os.sync()
            made = program.once(work / "app.db", work / f"replica-{who}", timeout=600)
            if made.code != 0:
                raise RuntimeError(made.message)
            self.put("restore", who, "first -once s", made.seconds)
            self.put("restore", who, "first -once peak RSS KiB", made.max_rss_kb)
            # The next program must see an untouched database.
            shutil.rmtree(work / ".app.db-litestream")
        for _ in range(self.args.repeat):
            os.sync()
            began = time.monotonic()
            subprocess.run(["cp", work / "app.db", work / "copy.db"], check=True, timeout=600)
            self.put("restore", "none", "restore s", time.monotonic() - began)
            (work / "copy.db").unlink()
            for who, program in self.programs.items():
                for origin in self.programs:
                    os.sync()
                    out = work / "restored.db"
                    result = common.restore_fresh(program, work / f"replica-{origin}", out, timeout=600)
                    if result.code != 0:
                        raise RuntimeError(result.message)
                    key = "" if origin == who else " (replica by the other)"
                    self.put("restore", who, f"restore s{key}", result.seconds)
                    self.put("restore", who, f"restore peak RSS KiB{key}", result.max_rss_kb)
                    out.unlink()
        self.rig.figures["restore_bytes"] = size
        shutil.rmtree(work)

    def many(self):
        """Many small L0 files, written by the reference if there is one; no other level beside them."""
        work = self.fresh()
        db, replica = work / "app.db", work / "replica"
        self.database(db, 0.1)
        maker = self.rig.reference or self.rig.bin
        config = common.write_config(work / "litestream.yml", [{
            "path": str(db), "monitor-interval": "2ms", "replica": {"url": common.url(replica), "sync-interval": "2ms"}}])
        daemon = maker.replicate_config(config, work / "log")
        source = common.Db(db)
        deadline, files = time.monotonic() + 120, 0
        while files < self.args.many and time.monotonic() < deadline:
            source.execute("INSERT INTO big (a) VALUES ('small')")
            before = files
            while files == before and time.monotonic() < deadline:
                time.sleep(0.003)
                files = len(common.ltx_files(work / ".app.db-litestream"))
        daemon.terminate()
        only = work / "only"
        shutil.copytree(replica / "ltx" / "0", only / "ltx" / "0")
        self.rig.figures["many_files"] = len(common.ltx_files(only))
        source.close()
        for _ in range(self.args.repeat * 3):
            for who, program in self.programs.items():
                result = common.restore_fresh(program, only, work / "restored.db")
                if result.code != 0:
                    raise RuntimeError(result.message)
                self.put("many", who, "restore s", result.seconds)
                self.put("many", who, "peak RSS KiB", result.max_rss_kb)
        shutil.rmtree(work)

    def idle(self):
        for count in self.args.idle_dbs:
            for who, program in self.programs.items():
                work = self.fresh()
                dbs = []
                for i in range(count):
                    self.database(work / f"{i}.db", 0.05)
                    dbs.append({"path": str(work / f"{i}.db"), "replica": {"url": common.url(work / f"replica-{i}")}})
                daemon = program.replicate_config(common.write_config(work / "litestream.yml", dbs), work / "log")
                if not common.wait_for(lambda: all(common.ltx_files(work / f"replica-{i}") for i in range(count)), 60):
                    raise RuntimeError(f"{who}: not all of {count} databases replicated in 60 s")
                time.sleep(self.args.settle)
                began, spent = time.monotonic(), cpu_ns(daemon.pid)
                time.sleep(self.args.idle_seconds)
                cpu = (cpu_ns(daemon.pid) - spent) / 1e6 / (time.monotonic() - began)
                peak, rss, threads = status(daemon.pid)
                label = f"idle, {count} databases"
                self.put(label, who, "CPU ms per s", cpu)
                self.put(label, who, "RSS KiB", rss)
                self.put(label, who, "peak RSS KiB", peak)
                self.put(label, who, "threads", threads)
                self.put(label, who, "descriptors", len(os.listdir(f"/proc/{daemon.pid}/fd")))
                daemon.terminate()
                shutil.rmtree(work)

    def start(self):
        for _ in range(self.args.starts):
            for who, program in self.programs.items():
                work = self.fresh()
                self.database(work / "app.db", 1)
                began = time.monotonic()
                daemon = self.started(program, work)
                self.put("start", who, "first LTX file ms", (time.monotonic() - began) * 1000)
                daemon.kill()
                shutil.rmtree(work)

    def latency(self):
        for who, program in self.programs.items():
            work = self.fresh()
            self.database(work / "app.db", 1)
            daemon = self.started(program, work)
            db = common.Db(work / "app.db")
            time.sleep(2)
            for _ in range(self.args.latency_samples):
                time.sleep(self.rig.rng.uniform(1.3, 2.6))
                before = len(common.ltx_files(work / "replica"))
                began = time.monotonic()
                db.execute("INSERT INTO big (a) VALUES ('now')")
                if not common.wait_for(lambda: len(common.ltx_files(work / "replica")) > before, 20, 0.0005):
                    raise RuntimeError("a commit was not replicated in 20 s")
                self.put("latency", who, "commit to file ms", (time.monotonic() - began) * 1000)
            db.close()
            daemon.kill()
            shutil.rmtree(work)

    def large(self):
        for who, program in self.programs.items():
            work = self.fresh()
            self.database(work / "app.db", 1)
            daemon = self.started(program, work)
            db = common.Db(work / "app.db")
            time.sleep(1)
            rows = int(self.args.large_mb * 1e6 / 1000)
            db.execute("BEGIN")
            db.execute(f"""WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
                INSERT INTO big (a, b) SELECT hex(zeroblob(200)), randomblob(520) FROM c""")
            before = sum(os.stat(p).st_size for _, _, p in common.ltx_files(work / "replica"))
            spent, began = cpu_ns(daemon.pid), time.monotonic()
            db.execute("COMMIT")
            want = before + rows * 520
            done = lambda: sum(os.stat(p).st_size for _, _, p in common.ltx_files(work / "replica")) > want
            if not common.wait_for(done, 120, 0.005):
                raise RuntimeError("the large transaction was not replicated in 120 s")
            self.put("large", who, "until replicated s", time.monotonic() - began)
            self.put("large", who, "CPU s", (cpu_ns(daemon.pid) - spent) / 1e9)
            self.put("large", who, "peak RSS KiB", status(daemon.pid)[0])
            db.close()
            daemon.kill()
            shutil.rmtree(work)

    # -- output

    def show(self):
        print(f"\n{'measurement':46}{'none':>12}{'bin':>12}{'reference':>12}{'factor':>9}")
        table = {}
        for (measure, key), who in self.results.items():
            middle = {w: statistics.median(v) for w, v in who.items()}
            factor = None
            if middle.get("bin") and middle.get("reference"):
                factor = middle["bin"] / middle["reference"] if key == "commits/s" else middle["reference"] / middle["bin"]
            cell = lambda w: f"{middle[w]:12,.2f}" if w in middle else f"{'':12}"
            print(f"{measure + ': ' + key:46}{cell('none')}{cell('bin')}{cell('reference')}" + (f"{factor:9.2f}" if factor else ""))
            table[f"{measure}: {key}"] = {w: [round(x, 4) for x in v] for w, v in who.items()} | ({"factor": round(factor, 3)} if factor else {})
        kept = table.get("throughput: commits/s", {})
        if kept.get("none"):
            base = statistics.median(kept["none"])
            for who in self.programs:
                share = statistics.median(kept[who]) / base
                print(f"commits kept beside {who}: {share:.0%} of {base:,.0f}/s")
                table[f"throughput: share kept, {who}"] = round(share, 3)
        print()
        self.rig.figures["results"] = table


MEASURES = ("throughput", "paced", "restore", "many", "idle", "start", "latency", "large")


def main():
    p = common.parser(__doc__)
    p.add_argument("--quick", action="store_true", help="small sizes, less than a minute")
    p.add_argument("--only", default=",".join(MEASURES))
    p.add_argument("--repeat", type=int, default=None, help="3, quick 1")
    p.add_argument("--write-seconds", type=float, default=None, help="8, quick 2")
    p.add_argument("--rate", type=float, default=2000, help="commits per second of the paced writer")
    p.add_argument("--payload", type=int, default=100, help="bytes per commit of the writer")
    p.add_argument("--restore-mb", type=float, default=None, help="700, quick 40")
    p.add_argument("--many", type=int, default=None, help="L0 files, 1000, quick 150")
    p.add_argument("--idle-seconds", type=float, default=None, help="20, quick 2")
    p.add_argument("--idle-dbs", type=lambda s: [int(x) for x in s.split(",")], default=None, help="1,100, quick 1,20")
    p.add_argument("--settle", type=float, default=None, help="seconds before idle is measured: 5, quick 1")
    p.add_argument("--starts", type=int, default=None, help="5, quick 2")
    p.add_argument("--latency-samples", type=int, default=None, help="15, quick 2")
    p.add_argument("--large-mb", type=float, default=None, help="256, quick 24")
    rig = common.Rig("bench", args := p.parse_args())
    for name, full, quick in (("repeat", 3, 1), ("write_seconds", 8, 2), ("restore_mb", 700, 40), ("many", 1000, 150), ("idle_seconds", 20, 2),
                              ("idle_dbs", [1, 100], [1, 20]), ("settle", 5, 1), ("starts", 5, 2), ("latency_samples", 15, 2), ("large_mb", 256, 24)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    bench = Bench(rig, args)
    only = args.only.split(",")
    if "throughput" in only or "paced" in only:
        bench.writer = build_writer()
    for name in MEASURES:
        if name not in only:
            continue
        began = time.monotonic()
        try:
            getattr(bench, name)()
            rig.case(name, True, f"{time.monotonic() - began:.0f} s")
        except (RuntimeError, common.Mismatch, subprocess.SubprocessError) as e:
            rig.case(name, False, e)
    bench.show()
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
