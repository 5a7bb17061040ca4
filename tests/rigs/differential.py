#!/usr/bin/env python3
"""The other rigs, each against the program and then against the reference: results side by side.

A case that only one of the two gets right is listed by name. Prints a Markdown table; the exit code says only whether the
program under test was right in everything, for what the reference does is not ours to mend. `--only NAME` (several times) picks
rigs, `--scale` stretches the rounds and seconds of each.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import common

HERE = Path(__file__).resolve().parent
CASE = re.compile(r"^  (ok|FAILED|skipped)\s{2,}(.+?)(?:\s{2,}.*)?$")
# Options with a number behind the name: scaled. The same for both programs.
RIGS = {
    "takeover": [],
    "restart_loss": [("--rounds", 30), ("--quiet",)],
    "live": [("--seconds", 45), ("--baseline-seconds", 0)],
    "kill_points": [("--points", 60)],
    "faults": [],
    "exclusive": [],
    "follow": [("--seconds", 45)],
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True, help="program under test")
    p.add_argument("--reference", default=common.default_reference(), help="the real Litestream 0.5.17")
    p.add_argument("--only", action="append", choices=sorted(RIGS), help="one rig (may be given again)")
    p.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="the same for both programs")
    p.add_argument("--scale", type=float, default=1, help="factor for rounds, points and seconds")
    p.add_argument("--limit", type=float, default=1800, help="seconds that one rig may take")
    return p.parse_args()


def play(rig, binary, args):
    """(summary, {case: word}) of one rig with one program."""
    options = []
    for name, *value in RIGS[rig]:
        options += [name, *(str(max(1, round(v * args.scale))) if v else "0" for v in value)]
    argv = [sys.executable, HERE / f"{rig}.py", "--bin", binary, "--seed", str(args.seed), *options]
    result = common.run(argv, args.limit)
    lines = result.out.splitlines()
    cases = {m[2]: m[1] for m in map(CASE.match, lines) if m}
    for line in reversed(lines):
        if line.startswith("{"):
            return json.loads(line), cases
    # A rig that ends early leaves no summary, which is a result too.
    return {"passed": 0, "failed": 1, "skipped": 0, "seconds": round(result.seconds, 1), "broke": result.message[-200:]}, cases


def cell(summary):
    text = f"{summary['passed']} right, {summary['failed']} wrong"
    if summary["skipped"]:
        text += f", {summary['skipped']} skipped"
    if "broke" in summary:
        text = f"ended early: {summary['broke']}"
    return text


def main():
    args = arguments()
    ours, reference = common.resolve_binary(args.bin), common.resolve_binary(args.reference)
    versions = [subprocess.run([b, "version"], capture_output=True, text=True, timeout=20).stdout.strip() for b in (ours, reference)]
    print(f"differential: {ours} ({versions[0]}) beside {reference} ({versions[1]}), seed {args.seed}", flush=True)
    rows, differing, wrong, passed = [], [], 0, 0
    for rig in args.only or RIGS:
        results = []
        for binary in (ours, reference):
            print(f"  {rig}: {binary} …", flush=True)
            results.append(play(rig, binary, args))
        (mine, my_cases), (theirs, their_cases) = results
        wrong, passed = wrong + mine["failed"], passed + mine["passed"]
        rows.append(f"| `{rig}` | {cell(mine)} | {cell(theirs)} |")
        print("  " + rows[-1], flush=True)
        for case in {**my_cases, **their_cases}:
            words = my_cases.get(case, "-"), their_cases.get(case, "-")
            if words[0] != words[1] and "FAILED" in words:
                differing.append(f"| `{rig}` | {case} | {words[0]} | {words[1]} |")
    print(f"\n| Rig | {versions[0]} | reference {versions[1]} |\n|---|---|---|")
    print("\n".join(rows))
    if differing:
        print("\n| Rig | Case | program | reference |\n|---|---|---|---|")
        print("\n".join(differing))
    print(json.dumps({"rig": "differential", "seed": args.seed, "passed": passed, "failed": wrong, "differing": len(differing)}))
    sys.exit(0 if passed and not wrong else 1)


if __name__ == "__main__":
    main()
