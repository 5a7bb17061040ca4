#!/usr/bin/env python3
"""Two programs take turns on one live database: A, B, A, B … with writes going on all the time.

A is the program under test, B the reference. At each change: SIGTERM (exit 0 = everything committed before it is safe) or,
with `--kill`, sometimes kill -9. Then both programs restore; each result must be an exact past state, both the same
bytes, and after SIGTERM no older than the source was at the signal. Every L0 file is decoded independently; full images
are counted. By default the application does not checkpoint, so the WAL always proves continuity and the only full image
allowed is the first file (`--count-full-images`: they are only counted, for a log that a checkpoint left fully copied may be
overwritten in the pause, and then there is no proof). With `--autocheckpoint` the reference can fail by itself: a commit that the
application made and checkpointed in the pause is lost to it (defect D1), and the rig says so.
"""

import sys
import time

import chain
import common
import ltxfile


def main():
    p = common.parser(__doc__, rounds=10)
    p.add_argument("--turn-seconds", type=float, default=2.0, help="how long each program runs")
    p.add_argument("--gap-seconds", type=float, default=0.3, help="pause between two programs, writes going on")
    p.add_argument("--rate", type=float, default=100, help="commits per second and writer")
    p.add_argument("--writers", type=int, default=2)
    p.add_argument("--autocheckpoint", type=int, default=0, help="of the application; with others full images are only counted")
    p.add_argument("--count-full-images", action="store_true", help="full images are no failure")
    p.add_argument("--min-pages", type=int, default=200, help="min-checkpoint-page-count: low, so that both really checkpoint")
    p.add_argument("--kill", action="store_true", help="end a third of the turns with kill -9")
    p.add_argument("--foreign", action="store_true", help="with a foreign checkpointer")
    rig = common.Rig("handover", args := p.parse_args())
    if not rig.reference:
        sys.exit("the reference program is needed")
    db, replica = rig.dir / "app.db", rig.dir / "replica"
    chain.create(db)
    source = common.Db(db)
    config = common.write_config(rig.dir / "litestream.yml", [{
        "path": str(db), "monitor-interval": "200ms", "min-checkpoint-page-count": args.min_pages,
        "replica": {"url": common.url(replica), "sync-interval": "200ms"}}])
    crew = chain.Crew(db, rig.dir, args.writers, args.rate, rig.seed, args.foreign, args.autocheckpoint)
    model = chain.Model()
    seen, fulls, newest, allowed = set(), [], 0, not (args.autocheckpoint or args.foreign or args.count_full_images)
    common.wait_for(lambda: source.value("SELECT count(*) FROM chain"), 10)

    for turn in range(2 * args.rounds):
        program, name = (rig.bin, "A") if turn % 2 == 0 else (rig.reference, "B")
        label = f"round {turn // 2} {name}"
        daemon = program.replicate_config(config, rig.dir / f"daemon-{name}.log")
        time.sleep(args.turn_seconds)
        if not daemon.alive():
            rig.case(label, False, f"ended by itself: {daemon.log_text()[-300:]}")
            break
        wanted = source.value("SELECT max(n) FROM chain")
        killed = args.kill and rig.rng.random() < 0.33
        code = 0
        if killed:
            daemon.kill()
            wanted = 0
        else:
            code = daemon.terminate()
        if code != 0:
            rig.case(label, False, f"SIGTERM: exit {code}: {daemon.log_text()[-300:]}")
            continue
        try:
            notes, states = [], []
            for reader, who in ((rig.bin, "A"), (rig.reference, "B")):
                out = rig.dir / f"restored-{who}.db"
                result = common.restore_fresh(reader, replica, out)
                if result.code != 0:
                    raise common.Mismatch(f"restore by {who}: {result.message}")
                states.append((model.verify(out), common.sha256_file(out)))
            if states[0] != states[1]:
                raise common.Mismatch(f"the two programs restore different states: {states}")
            if states[0][0] < max(wanted, newest):
                raise common.Mismatch(f"restored {states[0][0]}, wanted at least {max(wanted, newest)}")
            newest = states[0][0]
            for low, high, path in common.ltx_files(replica):
                if (low, high) in seen:
                    continue
                seen.add((low, high))
                header, pages = ltxfile.read_pages(path)
                if ltxfile.is_full_image(path) and header.commit > 20:
                    fulls.append((label, low, header.commit))
                    notes.append(f"FULL at TXID {low} ({header.commit} pages)")
                    if allowed and low > 1:
                        raise common.Mismatch(f"full image at TXID {low} although the WAL proves continuity")
            rig.case(label, True, f"{'killed' if killed else 'SIGTERM'}, commit {newest}, {len(seen)} L0 files {'; '.join(notes)}")
        except (common.Mismatch, ltxfile.LtxError) as e:
            rig.case(label, False, str(e))
        time.sleep(args.gap_seconds)

    figures = crew.stop()
    for error in figures["errors"]:
        rig.case("application", False, error)
    rig.figures.update(l0_files=len(seen), full_images=len(fulls), commits=figures["commits"], checkpoints=figures["checkpoints"])
    source.close()
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
