#!/usr/bin/env python3
"""Two programs take turns on one live database and one path of a bucket: A, B, A, B …

A is the program under test, B the reference. Run below `tests/servers/s3.sh`, which starts the services. Compaction,
snapshots and retention run all the time (levels of a second or two). At each change SIGTERM; then both programs restore; the
two must be the same bytes, an exact past state, and no older than the source was at the signal. A blob larger than a part goes
in at the start, so uploads go in parts; on Ceph the whole is repeated under a customer key (SSE-C).
"""

import base64
import os
import sys
import time

import chain
import common


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
                                 levels=[{"interval": "1s"}, {"interval": "2s"}], snapshot={"interval": "3s", "retention": "1h"})
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


def main():
    p = common.parser(__doc__, rounds=2)
    p.add_argument("--turn-seconds", type=float, default=5.0, help="how long each program runs")
    p.add_argument("--blob-mb", type=int, default=13, help="size of the blob; 110 for uploads of more than 100 MB")
    rig = common.Rig("s3_interop", args := p.parse_args())
    if not rig.reference:
        sys.exit("the reference program is needed")
    # The reference cannot start with it.
    os.environ.pop("AWS_CA_BUNDLE", None)
    services = os.environ.get("LITESTREAM_TEST_S3") or sys.exit("run this below tests/servers/s3.sh")
    for line in services.splitlines():
        name = line.split(" ")[0]
        path = f"interop-{rig.seed}"
        take_turns(rig, name, replica_of(line, path))
        if name == "ceph":
            key = base64.b64encode(bytes(range(32))).decode()
            take_turns(rig, "ceph-sse-c", replica_of(line, path + "-sse", **{"sse-customer-key": key}))
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
