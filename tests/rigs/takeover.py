#!/usr/bin/env python3
"""Takes over the state that a real Litestream 0.5.17 left behind, in twenty situations.

For each directory of tests/fixtures/takeover: copy, `replicate -once`, then restore with the program under test and
with the reference. Both must hold the rows of the live database. An error exit is counted as wrong, but told apart
from a silent loss (exit 0 and other rows).
"""

import json
import os
import shutil
import sys
from pathlib import Path

import common
import ltxfile


def set_times(directory):
    """File replicas list by mtime, which version control does not keep: take it from the header."""
    for path in Path(directory).rglob("*.ltx"):
        try:
            stamp = ltxfile.read_header(path).timestamp_ms * 1_000_000
            os.utime(path, ns=(stamp, stamp))
        except ltxfile.LtxError:
            pass


def check(rig, source, work):
    expected = json.loads((source / "expected.json").read_text())
    shutil.copytree(source / "data", work / "data")
    shutil.copytree(source / "replica", work / "replica")
    set_times(work)
    before = {p for level in range(10) for _, _, p in common.ltx_files(work / "replica", level)}
    synced = rig.bin.once(work / "data" / "db", work / "replica")
    if synced.code != 0:
        return False, f"error exit {synced.code}: {synced.message}"
    wanted, notes = expected["live_rows_sha256"], []
    for program in (rig.bin, rig.reference):
        if program is None:
            continue
        label = "itself" if program is rig.bin else "reference"
        out = work / f"restored-{label}.db"
        restored = program.restore(work / "replica", out)
        if restored.code != 0:
            return False, f"exit 0 but restore by {label} fails: {restored.message}"
        try:
            rows = common.restored_rows(out)
        except common.Mismatch as e:
            return False, f"SILENT: restore by {label}: {e}"
        if rows != wanted:
            return False, f"SILENT: restore by {label} has other rows"
    # Page-exact as well: the source is quiet, so the folded source is the only right answer.
    pages = common.differing_pages(common.folded(work / "data" / "db", work / "fold"), work / "restored-itself.db")
    if pages:
        return False, f"rows equal, pages differ: {pages}"
    for level in range(10):
        for low, high, path in common.ltx_files(work / "replica", level):
            if path not in before:
                head, content = ltxfile.read_pages(path)
                if (head.min_txid, head.max_txid) != (low, high):
                    return False, f"{path}: header says {head.min_txid}-{head.max_txid}"
                notes.append(f"L{level} {low}-{high}: {len(content)}/{head.commit} pages")
    tidy = common.leftovers(work / "data") + common.leftovers(work / "replica")
    if tidy:
        return False, f"left {tidy}"
    return True, "; ".join(notes) or "nothing new"


def main():
    p = common.parser(__doc__)
    p.add_argument("--fixtures", default=str(common.ROOT / "tests" / "fixtures" / "takeover"))
    p.add_argument("--only", default=None, help="one fixture")
    rig = common.Rig("takeover", args := p.parse_args())
    silent = 0
    for source in sorted(Path(args.fixtures).iterdir()):
        if not (source / "expected.json").exists() or args.only not in (None, source.name):
            continue
        work = rig.dir / source.name
        work.mkdir()
        try:
            ok, detail = check(rig, source, work)
        except ltxfile.LtxError as e:
            ok, detail = False, f"wrote a file that is not valid: {e}"
        silent += "SILENT" in detail
        rig.case(source.name, ok, detail)
    rig.figures["silent_losses"] = silent
    rig.finish()


if __name__ == "__main__":
    sys.exit(main())
