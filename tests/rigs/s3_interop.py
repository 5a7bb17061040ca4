#!/usr/bin/env python3
"""Two programs take turns on one live database and one path of a bucket: A, B, A, B …

A is the program under test, B the reference. Run below `tests/servers/s3.sh`, which starts the services. Compaction,
snapshots and retention run all the time (levels of a second or two). At each change SIGTERM; then both programs restore; the
two must be the same bytes, an exact past state, and no older than the source was at the signal. A blob larger than a part goes
in at the start, so uploads go in parts; on Ceph the whole is repeated under a customer key (SSE-C). Last, a replica of `--files` level-0
objects, more than a page of a listing: both programs list and restore the same, and B goes on where A ended.
"""

import base64
import os
import sys
import time

import chain
import common
from proxy import Proxy, address


def replica_of(line, path, **more):
    _, endpoint, bucket, access, secret = line.split(" ")
    return {"type": "s3", "bucket": bucket, "path": path, "endpoint": endpoint, "access-key-id": access, "secret-access-key": secret,
            "region": "us-east-1", "sync-interval": "200ms", **more}


def take_turns(rig, label, replica):
    where = rig.dir / label
    where.mkdir()
    db = where / "app.db"
    chain.create(db)
    source = common.Db(db)
    source.execute("CREATE TABLE blob (x)")
    source.execute(f"INSERT INTO blob VALUES (randomblob({rig.args.blob_mb * 1_000_000}))")
    config = common.write_config(where / "litestream.yml", [{"path": str(db), "monitor-interval": "200ms", "replica": replica}],
                                 levels=[{"interval": "1s"}, {"interval": "2s"}], snapshot={"interval": f"{rig.args.snapshot_seconds}s", "retention": "1h"})
    crew = chain.Crew(db, where, 2, 50, rig.seed, False, 0)
    model = chain.Model()
    newest = 0
    common.wait_for(lambda: source.value("SELECT count(*) FROM chain"), 10)
    for turn in range(2 * rig.args.rounds):
        program, name = (rig.bin, "A") if turn % 2 == 0 else (rig.reference, "B")
        case = f"{label}: round {turn // 2} {name}"
        daemon = program.replicate_config(config, where / f"daemon-{name}.log")
        time.sleep(rig.args.turn_seconds)
        if not daemon.alive():
            rig.case(case, False, f"ended by itself: {daemon.log_text()[-600:]}")
            break
        wanted = source.value("SELECT max(n) FROM chain")
        code = daemon.terminate()
        try:
            if code != 0:
                raise common.Mismatch(f"SIGTERM: exit {code}: {daemon.log_text()[-300:]}")
            states = []
            for reader, who in ((rig.bin, "A"), (rig.reference, "B")):
                out = where / f"restored-{who}.db"
                out.unlink(missing_ok=True)
                result = common.run([reader.path, "restore", "-config", config, "-o", out, db], 120)
                if result.code != 0:
                    raise common.Mismatch(f"restore by {who}: {result.message}")
                states.append((model.verify(out), common.sha256_file(out)))
            if states[0] != states[1]:
                raise common.Mismatch(f"the two programs restore different states: {states}")
            if states[0][0] < max(wanted, newest):
                raise common.Mismatch(f"restored {states[0][0]}, wanted at least {max(wanted, newest)}")
            newest = states[0][0]
            rig.case(case, True, f"commit {newest}")
        except common.Mismatch as e:
            rig.case(case, False, str(e))
    crew.stop()
    source.close()


def many_files(rig, label, line, files):
    where = rig.dir / f"{label}-many"
    where.mkdir()
    db = where / "app.db"
    source = common.Db(db)
    source.execute("PRAGMA journal_mode = WAL")
    source.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    counting = Proxy(address(line.split(" ")[1]))
    replica = replica_of(line, f"interop-{rig.seed}-many", **{"sync-interval": "10ms"})

    def config(name, endpoint):
        return common.write_config(where / name, [{"path": str(db), "monitor-interval": "10ms", "replica": {**replica, "endpoint": endpoint}}],
                                   levels=[{"interval": "10h"}], snapshot={"interval": "100h", "retention": "200h"}, **{"l0-retention": "10h"})

    direct = config("direct.yml", replica["endpoint"])
    daemon = rig.bin.replicate_config(config("counting.yml", counting.url), where / "daemon.log")
    common.wait_for(lambda: counting.counts["PUT"] > 1, 20, 0.01)
    before = counting.counts["PUT"]
    try:
        for n in range(files):
            source.execute("INSERT INTO t (v) VALUES (?)", (n,))
            if not common.wait_for(lambda n=n: counting.counts["PUT"] > before + n, 20, 0.001):
                raise common.Mismatch(f"commit {n} was not uploaded: {daemon.log_text()[-300:]}")
        if daemon.terminate() != 0:
            raise common.Mismatch("A did not end well")
        # B goes on: one more commit, from its own process, in the same place.
        source.execute("INSERT INTO t (v) VALUES ('B')")
        once = common.run([rig.reference.path, "replicate", "-once", "-config", direct], 120)
        if once.code != 0:
            raise common.Mismatch(f"B: {once.message}")
        listed, states = [], []
        for reader, who in ((rig.bin, "A"), (rig.reference, "B")):
            rows = common.run([reader.path, "ltx", "-config", direct, "-level", "0", db], 120).out
            listed.append(sum(".ltx" in row or row[:1].isdigit() for row in rows.splitlines()))
            out = where / f"restored-{who}.db"
            result = common.run([reader.path, "restore", "-config", direct, "-o", out, db], 300)
            if result.code != 0:
                raise common.Mismatch(f"restore by {who}: {result.message}")
            states.append((common.restored_rows(out), common.sha256_file(out)))
        want = common.rows_sha256_of(source)
        if states[0] != states[1] or states[0][0] != want:
            raise common.Mismatch(f"not the same: {states}, source {want}")
        if listed[0] != listed[1] or listed[0] < files * 0.98:
            raise common.Mismatch(f"listed {listed}")
        rig.case(f"{label}: many files", True, f"{listed[0]} level-0 objects listed and restored by both")
    except common.Mismatch as e:
        daemon.kill()
        rig.case(f"{label}: many files", False, str(e))
    counting.close()
    source.close()


def main():
    p = common.parser(__doc__, rounds=2)
    p.add_argument("--turn-seconds", type=float, default=5.0, help="how long each program runs")
    p.add_argument("--blob-mb", type=int, default=13, help="size of the blob; 110 for uploads of more than 100 MB")
    p.add_argument("--snapshot-seconds", type=float, default=3, help="how often snapshots are made")
    p.add_argument("--files", type=int, default=5000, help="level-0 objects of the large listing")
    p.add_argument("--service", action="append", help="only this one of the services")
    rig = common.Rig("s3_interop", args := p.parse_args())
    if not rig.reference:
        sys.exit("the reference program is needed")
    # The reference cannot start with it.
    os.environ.pop("AWS_CA_BUNDLE", None)
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    for line in services.splitlines():
        name = line.split(" ")[0]
        if args.service and name not in args.service:
            continue
        path = f"interop-{rig.seed}"
        take_turns(rig, name, replica_of(line, path))
        if name == "ceph":
            key = base64.b64encode(bytes(range(32))).decode()
            take_turns(rig, "ceph-sse-c", replica_of(line, path + "-sse", **{"sse-customer-key": key}))
            many_files(rig, name, line, args.files)
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
