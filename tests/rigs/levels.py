#!/usr/bin/env python3
"""Compaction, snapshots and retention with short intervals, under a writing application.

Program and reference take turns (`--turn-seconds` each; 0 = the program alone). While they run, both programs restore:
the newest state, random transaction IDs and random times of files that are in the replica right then. Every result must be
an exact past state, the newest never older than the newest before, a later time never an older state; at the end everything.
A TXID may have been compacted away between looking and restoring: "no matching backup files" is fine for it, for nothing else.
Once the reference has run, and deleted, a time may be refused by the program under test; that is counted.
"""

import sys
import time

import chain
import common


GONE = ("non-contiguous ltx files", "no matching backup files")


def stamp(ms):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"


def main():
    p = common.parser(__doc__, seconds=120)
    p.add_argument("--turn-seconds", type=float, default=20, help="how long each program runs; 0 = only the one under test")
    p.add_argument("--reference-first", action="store_true", help="the reference begins")
    p.add_argument("--retention-seconds", type=int, default=60)
    p.add_argument("--rate", type=float, default=60, help="commits per second and writer")
    rig = common.Rig("levels", args := p.parse_args())
    db, replica = rig.dir / "app.db", rig.dir / "replica"
    chain.create(db)
    source = common.Db(db)
    config = common.write_config(rig.dir / "litestream.yml", [{
        "path": str(db), "monitor-interval": "100ms", "min-checkpoint-page-count": 200,
        "replica": {"url": common.url(replica), "sync-interval": "100ms"}}],
        levels=[{"interval": "1s"}, {"interval": "3s"}, {"interval": "10s"}],
        snapshot={"interval": "20s", "retention": f"{args.retention_seconds}s"},
        **{"l0-retention": "5s", "l0-retention-check-interval": "2s"})
    crew = chain.Crew(db, rig.dir, 2, args.rate, rig.seed, False, 1000)
    model = chain.Model()
    common.wait_for(lambda: source.value("SELECT count(*) FROM chain"), 10)
    programs = [rig.bin, rig.reference] if args.turn_seconds and rig.reference else [rig.bin]
    if args.reference_first:
        programs.reverse()
    counts = {"newest": 0, "txid": 0, "time": 0, "gone": 0, "refused": 0, "complaints": 0, "turns": 0}
    newest, started, turn, reference_has_run = 0, time.monotonic(), 0, False

    def restore(reader, options, what):
        out = rig.dir / "restored.db"
        result = common.restore_fresh(reader, replica, out, options=options)
        if result.code == 0:
            return model.verify(out)
        if reader is not rig.bin and "no such file or directory" in result.message:
            counts["gone"] += 1  # the reference does not plan anew when retention takes a file meanwhile
            return None
        if what == "txid" and "no matching backup files" in result.message:
            counts["gone"] += 1
            return None
        if what == "time" and reference_has_run and any(text in result.message for text in GONE):
            # The reference deletes level 0 from the old end, in the middle of what one level-1 file covers, and the
            # snapshot that the window starts from: some states of the window are gone then.
            counts["refused"] += 1
            return None
        raise common.Mismatch(f"restore {what} {options} by {reader.version}: {result.message}")

    while time.monotonic() - started < args.seconds:
        program = programs[turn % len(programs)]
        label = f"turn {turn} {program.version}"
        turn += 1
        reference_has_run |= program is not rig.bin
        daemon = program.replicate_config(config, rig.dir / f"daemon-{turn}.log")
        until = min(time.monotonic() + (args.turn_seconds or args.seconds), started + args.seconds)
        try:
            common.wait_for(lambda: common.ltx_files(replica), 20)
            while time.monotonic() < until:
                reader = rig.rng.choice([rig.bin, rig.reference] if rig.reference else [rig.bin])
                state = restore(reader, (), "newest")
                if state is not None and state < newest:
                    raise common.Mismatch(f"the newest state went back: {newest} -> {state}")
                newest, counts["newest"] = max(newest, state or 0), counts["newest"] + 1
                files = [f for level in range(10) for f in common.ltx_files(replica, level)]
                low, high, _ = rig.rng.choice(files)
                restore(reader, ("-txid", f"{high:016x}"), "txid")
                counts["txid"] += 1
                now = time.time()
                first = max(started_wall + 3, now - args.retention_seconds + 10)
                if now - 3 > first:
                    times = sorted(rig.rng.uniform(first, now - 3) for _ in range(2))
                    states = [restore(reader, ("-timestamp", stamp(int(t * 1000))), "time") for t in times]
                    counts["time"] += 2
                    # Between the two restores single syncs may have become one level-1 file: states closer to each other
                    # than such a file spans may change places.
                    if None not in states and times[1] - times[0] > 5 and states[0] > states[1]:
                        raise common.Mismatch(f"a later time gave an older state: {times} -> {states}")
            if not daemon.alive():
                raise common.Mismatch(f"ended by itself: {daemon.log_text()[-300:]}")
            wanted = source.value("SELECT max(n) FROM chain")
            if (code := daemon.terminate()) != 0:
                raise common.Mismatch(f"SIGTERM: exit {code}")
            for reader in ([rig.bin, rig.reference] if rig.reference else [rig.bin]):
                state = restore(reader, (), "newest")
                if state < wanted:
                    raise common.Mismatch(f"after SIGTERM {state} of {wanted}")
            levels = {level: len(common.ltx_files(replica, level)) for level in range(10)}
            text = daemon.log_text()
            noise = [line for line in text.splitlines() if "level=ERROR" in line or "level=WARN" in line]
            counts["complaints"] += len(noise) if program is rig.bin else 0
            rig.case(label, True, f"files by level {levels}{' ' + noise[0][:200] if noise else ''}")
        except common.Mismatch as e:
            daemon.kill()
            rig.case(label, False, str(e))
            break
    counts["turns"] = turn
    figures = crew.stop()
    for error in figures["errors"]:
        rig.case("application", False, error)
    rig.figures.update(counts, commits=figures["commits"])
    source.close()
    rig.finish()


started_wall = time.time()

if __name__ == "__main__":
    sys.exit(main())
