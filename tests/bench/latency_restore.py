#!/usr/bin/env python3
"""Restores from a store that is far away, beside the reference in one run: one large snapshot, and many small files.

Run below `tests/servers/s3.sh`. Every request waits `--latency-ms` in a proxy (`tests/rigs/proxy.py`) before it goes on to the store. Each
case is restored `--rounds` times by both programs in turn; the median counts. Without latency the same is done once, which tells
the store's own part.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rigs"))
import common  # noqa: E402
from proxy import Proxy, address  # noqa: E402
from restore import timed_command  # noqa: E402


class Scene:
    def __init__(self, line, work):
        _, self.endpoint, self.bucket, self.access, self.secret = line.split(" ")
        self.work = work

    def config(self, name, endpoint, **more):
        db = self.work / f"{name}.db"
        return db, common.write_config(self.work / f"{name}-{endpoint.rsplit(':', 1)[1]}.yml", [{
            "path": str(db), "monitor-interval": "10ms", "replica": {
                "type": "s3", "bucket": self.bucket, "path": f"far-{os.getpid()}-{name}", "endpoint": endpoint, "region": "us-east-1",
                "access-key-id": self.access, "secret-access-key": self.secret, "sync-interval": "10ms"}}], **more)


def large(scene, program, megabytes):
    db, config = scene.config("large", scene.endpoint)
    conn = common.Db(db)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB)")
    for _ in range(megabytes // 20):
        conn.execute("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000) INSERT INTO t (a) SELECT randomblob(1000) FROM c")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    result = common.run([program.path, "replicate", "-once", "-config", config], 900)
    if result.code != 0:
        sys.exit(f"replicate -once: {result.message}")


def many(scene, program, files):
    proxy = Proxy(address(scene.endpoint))
    db, config = scene.config("many", proxy.url, levels=[{"interval": "10h"}], snapshot={"interval": "100h", "retention": "200h"}, **{"l0-retention": "10h"})
    conn = common.Db(db)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    daemon = program.replicate_config(config, scene.work / "many.log")
    common.wait_for(lambda: proxy.counts["PUT"] > 1, 30, 0.01)
    before = proxy.counts["PUT"]
    for n in range(files):
        conn.execute("INSERT INTO t (v) VALUES (printf('%0200d', ?))", (n,))
        if not common.wait_for(lambda n=n: proxy.counts["PUT"] > before + n, 20, 0.001):
            sys.exit(f"commit {n} was not uploaded: {daemon.log_text()[-300:]}")
    conn.close()
    daemon.terminate()
    proxy.close()


def measure(name, scene, programs, latency, rounds, rate=None):
    proxy = Proxy(address(scene.endpoint), latency)
    proxy.rate = rate
    db, config = scene.config(name, proxy.url)
    out = scene.work / "out.db"
    figures, digests, requests = {}, set(), {}
    for _ in range(rounds):
        for who, program in programs.items():
            for suffix in ("", "-wal", "-shm"):
                Path(f"{out}{suffix}").unlink(missing_ok=True)
            proxy.forget()
            argv = [program.path, "restore", "-config", str(config), "-o", str(out), str(db)]
            figures.setdefault(who, []).append(timed_command(f"{name} {who}", argv))
            requests[who] = dict(proxy.counts)
            digests.add(common.sha256_file(out))
    proxy.close()
    if len(digests) != 1:
        sys.exit(f"{name}: the results differ")
    summary = {who: {"seconds": round(statistics.median(s for s, _ in runs), 2), "rss_mb": round(max(r for _, r in runs) / 1024, 1), "requests": requests[who]}
               for who, runs in figures.items()}
    if len(summary) == 2:
        summary["times_faster"] = round(summary["reference"]["seconds"] / summary["ours"]["seconds"], 2)
    summary["bytes"] = out.stat().st_size
    return summary


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--reference", default=common.default_reference())
    p.add_argument("--megabytes", type=int, default=500)
    p.add_argument("--files", type=int, default=1000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--latency-ms", type=float, default=30)
    p.add_argument("--service", default="ceph")
    p.add_argument("--tmp", default=None)
    args = p.parse_args()
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    line = next(line for line in services.splitlines() if line.startswith(f"{args.service} "))
    os.environ.pop("AWS_CA_BUNDLE", None)
    programs = {"ours": common.Litestream(args.bin)}
    if args.reference:
        programs["reference"] = common.Litestream(args.reference)
    work = Path(tempfile.mkdtemp(prefix="bench-far-", dir=args.tmp))
    scene, report = Scene(line, work), {"service": args.service, "latency_ms": args.latency_ms}
    try:
        began = time.monotonic()
        if args.files:
            many(scene, programs["ours"], args.files)
            report["many"] = measure("many", scene, programs, args.latency_ms / 1000, args.rounds)
            report["many_without_latency"] = measure("many", scene, programs, 0, 1)
        if args.megabytes:
            large(scene, programs["ours"], args.megabytes)
            report["large"] = measure("large", scene, programs, args.latency_ms / 1000, args.rounds)
            # What one connection to a real store gives.
            report["large_at_80_mb_per_second_and_connection"] = measure("large", scene, programs, args.latency_ms / 1000, args.rounds, 80e6)
            report["large_without_latency"] = measure("large", scene, programs, 0, 1)
        report["took_seconds"] = round(time.monotonic() - began)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
