#!/usr/bin/env python3
"""What replication asks of an object store, and what that costs: requests per hour, this program beside the reference.

Run below `tests/servers/s3.sh`. Each program replicates one database through its own counting proxy (`tests/rigs/proxy.py`), all of them
at the same time, with the default configuration: one that never changes and one with a commit a second. The first
`--settle` seconds (first upload, first snapshot) are left out; what follows is scaled to an hour. Snapshots are daily by default,
so the money counts one a day, and its retention.
"""

import argparse
import json
import os
import sys
import tempfile
import shutil
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rigs"))
import common  # noqa: E402
from proxy import Proxy, address  # noqa: E402

# US dollars per request: S3 Standard, us-east-1, list price (aws.amazon.com/s3/pricing). DELETE is free.
PRICES = {"PUT": 0.005 / 1000, "LIST": 0.005 / 1000, "GET": 0.0004 / 1000, "HEAD": 0.0004 / 1000, "DELETE": 0.0}
HOURS_PER_MONTH = 730


class Case:
    def __init__(self, name, program, line, where, busy):
        _, endpoint, bucket, access, secret = line.split(" ")
        self.name, self.busy = name, busy
        self.proxy = Proxy(address(endpoint))
        self.db = where / f"{name}.db"
        self.source = common.Db(self.db)
        self.source.execute("PRAGMA journal_mode = WAL")
        self.source.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        self.source.execute("INSERT INTO t (v) VALUES (randomblob(200))")
        config = common.write_config(where / f"{name}.yml", [{"path": str(self.db), "replica": {
            "type": "s3", "bucket": bucket, "path": f"requests-{os.getpid()}-{name}", "endpoint": self.proxy.url, "region": "us-east-1",
            "access-key-id": access, "secret-access-key": secret}}])
        self.daemon = program.replicate_config(config, where / f"{name}.log")

    def commit(self):
        if self.busy:
            self.source.execute("INSERT INTO t (v) VALUES (randomblob(200))")

    def end(self):
        alive = self.daemon.alive()
        self.daemon.terminate()
        self.source.close()
        self.proxy.close()
        if not alive:
            sys.exit(f"{self.name} ended by itself: {self.daemon.log_text()[-400:]}")


def money(per_hour):
    return sum(per_hour.get(op, 0) * price for op, price in PRICES.items()) * HOURS_PER_MONTH


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True)
    p.add_argument("--reference", default=common.default_reference())
    p.add_argument("--seconds", type=float, default=600)
    p.add_argument("--settle", type=float, default=45)
    p.add_argument("--service", default="ceph")
    p.add_argument("--tmp", default=None)
    args = p.parse_args()
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    line = next(line for line in services.splitlines() if line.startswith(f"{args.service} "))
    os.environ.pop("AWS_CA_BUNDLE", None)
    programs = {"ours": common.Litestream(args.bin)}
    if args.reference:
        programs["reference"] = common.Litestream(args.reference)
    work = Path(tempfile.mkdtemp(prefix="bench-requests-", dir=args.tmp))
    try:
        cases = [Case(f"{who}-{load}", program, line, work, load == "busy") for who, program in programs.items() for load in ("idle", "busy")]
        began, counted = time.monotonic(), None
        while time.monotonic() - began < args.settle + args.seconds:
            time.sleep(1)
            if counted is None and time.monotonic() - began >= args.settle:
                counted = time.monotonic()
                for case in cases:
                    case.proxy.forget()
            for case in cases:
                case.commit()
        seconds = time.monotonic() - counted
        found = {case.name: dict(case.proxy.counts) for case in cases}
        for case in cases:
            case.end()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report = {"seconds": round(seconds), "prices_usd": PRICES, "per_hour": {}, "usd_per_month": {}}
    for name, counts in found.items():
        per_hour = {op: round(n * 3600 / seconds, 1) for op, n in sorted(counts.items())}
        report["per_hour"][name] = per_hour
        report["usd_per_month"][name] = {"1 database": round(money(per_hour), 4), "1,000 databases": round(1000 * money(per_hour), 2)}
    if "reference" in programs:
        # None at all is taken for less than one in the time measured.
        lists = {name: max(counts.get("LIST", 0), 1) for name, counts in found.items()}
        report["times_fewer_lists_at_least"] = {load: round(lists[f"reference-{load}"] / lists[f"ours-{load}"], 1) for load in ("idle", "busy")}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
