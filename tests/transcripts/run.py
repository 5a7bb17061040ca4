#!/usr/bin/env python3
"""Replays recorded command lines against a binary. See README.md."""
import argparse
import concurrent.futures
import fnmatch
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMEOUT = 60

DURATION = r"-?(?:\d+h)?(?:\d+m)?\d+(?:\.\d+)?(?:ns|us|µs|ms|s)"
# Times that are part of the recorded data or of a message stay as they are.
FIXED_TIMES = r"(?!2026-01-01T00:00:0\d|2000-01-01T00:00:00Z)"
VOLATILE = [
    (FIXED_TIMES + r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", "<TIME>"),
    (r"\b(elapsed|remaining|duration)=" + DURATION, r"\1=<DUR>"),
    (r'("duration_ms": ?|duration_ms: )\d+', r"\1<MS>"),
    (r'("pid": ?|PID:        )\d+', r"\1<PID>"),
    (r'("uptime_seconds": ?)\d+', r"\1<N>"),
    (r"(Uptime:     )\S+", r"\1<DUR>"),
    (
        r'(msg=litestream version=|^Litestream |"msg":"litestream","version":"|\{\s*"version": ?")\d+\.\d+\.\d+[^"\s]*',
        r"\1<VERSION>",
    ),
    (r"\bsize=\d+", "size=<N>"),
    # What `restore -json` tells besides.
    (r',\n  "restored": \{\n(?:   .*\n)*  \}', ""),
]
VOLATILE = [(re.compile(pattern, re.M), text) for pattern, text in VOLATILE]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


class Scratch:
    """A directory with a path of 13 characters, and what scripts need to find it."""

    def __init__(self, binary):
        while True:
            self.dir = Path("/tmp/lsc-" + secrets.token_hex(2))
            try:
                self.dir.mkdir()
                break
            except FileExistsError:
                continue
        self.names = {
            "TMP": str(self.dir),
            "BIN": str(binary),
            "DATA": str(HERE / "data"),
            "PORT1": free_port(),
            "PORT2": free_port(),
        }
        path = f"{binary.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        self.env = {"PATH": path, "HOME": f"{self.dir}/home", "TZ": "UTC", "LANG": "C", **self.names}

    def fill(self, text):
        for name, value in self.names.items():
            text = text.replace("{{%s}}" % name, value)
        return text

    def shell(self, script, prepared=True):
        if prepared:
            script = ". $DATA/prep.sh\n" + script
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=self.dir, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT,
        )

    def must(self, script, what):
        ran = self.shell(script)
        if ran.returncode != 0:
            raise RuntimeError(f"{what} failed: {ran.stdout}{ran.stderr}")

    def normal(self, text):
        for name in ("TMP", "DATA", "BIN"):
            text = text.replace(self.names[name], "{{%s}}" % name)
        for name in ("PORT1", "PORT2"):
            text = re.sub(r"(?<=:)%s\b" % self.names[name], "{{%s}}" % name, text)
        for pattern, replacement in VOLATILE:
            text = pattern.sub(replacement, text)
        return text


def run(case, binary):
    """What came of it: exit code, stdout, stderr, output of the last script; normalised."""
    scratch = Scratch(binary)
    daemon = None
    try:
        for name, text in case.get("files", {}).items():
            path = scratch.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(scratch.fill(text))
        if "setup" in case:
            scratch.must(case["setup"], "setup")
        if "daemon" in case:
            with open(scratch.dir / "daemon.out", "w") as log:
                argv = [str(binary), *map(scratch.fill, case["daemon"]["argv"])]
                daemon = subprocess.Popen(
                    argv, cwd=scratch.dir, env=scratch.env, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT,
                )
            time.sleep(case["daemon"].get("wait", 2.5))
        if "before" in case:
            scratch.must(case["before"], "before")
        env = scratch.env | {name: scratch.fill(value) for name, value in case.get("env", {}).items()}
        out, err = scratch.dir / ".out", scratch.dir / ".err"
        with open(out, "w") as stdout, open(err, "w") as stderr:
            child = subprocess.Popen(
                [str(binary), *map(scratch.fill, case["argv"])], cwd=scratch.dir / case.get("cwd", ""), env=env,
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )
        for action in case.get("actions", []):
            time.sleep(action.get("sleep", 0))
            if "signal" in action and child.poll() is None:
                child.send_signal(getattr(signal, "SIG" + action["signal"]))
            if "shell" in action:
                scratch.shell(action["shell"])
        try:
            code = child.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = "timeout"
        texts = [scratch.normal(path.read_text(errors="replace")) for path in (out, err)]
        out.unlink()
        err.unlink()
        post = None
        if "post" in case:
            ran = scratch.shell(case["post"]["shell"], prepared=False)
            post = scratch.normal(ran.stdout + ran.stderr)
        return code, *texts, post
    finally:
        if daemon and daemon.poll() is None:
            daemon.terminate()
            try:
                daemon.wait(timeout=40)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(scratch.dir, ignore_errors=True)


def missing(wanted, text, ordered):
    lines, at, absent = text.split("\n"), 0, []
    for want in wanted:
        for i in range(at if ordered else 0, len(lines)):
            if want in lines[i]:
                at = i + 1
                break
        else:
            absent.append(want)
    return absent


def faults(case, got):
    code, stdout, stderr, post = got
    wrong = []
    if code != case["exit_code"]:
        wrong.append(f"exit code: want {case['exit_code']!r}, got {code!r}\nstderr: {stderr}")
    for stream, text in (("stdout", stdout), ("stderr", stderr)):
        if stream in case and case[stream] != text:
            wrong.append(f"{stream}: want\n{case[stream]}--- got\n{text}")
        for key, ordered in ((stream + "_lines", True), (stream + "_any_order", False)):
            if absent := missing(case.get(key, []), text, ordered):
                wrong.append(f"{key}: {absent!r} not in\n{text}")
        for unwanted in case.get(stream + "_not", []):
            if unwanted in text:
                wrong.append(f"{stream}: unexpected {unwanted!r}")
    # `or`: what else is right, where two tasks of the program race and the reference is slower.
    if "post" in case and post not in (case["post"]["stdout"], *case["post"].get("or", [])):
        wrong.append(f"afterwards: want {case['post']['stdout']!r}\ngot {post!r}")
    return wrong


def attempt(case, binary):
    try:
        return faults(case, run(case, binary))
    except Exception as error:  # a broken case must not hide the others
        return [f"could not be run: {error}"]


def excluded(all_names):
    """Names of cases that are listed, by themselves or by a pattern such as group/*, with the reason."""
    names = {}
    for line in (HERE / "excluded.txt").read_text().splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            name, _, reason = line.partition("  ")
            if not reason.strip():
                sys.exit(f"excluded.txt: {name} has no reason")
            matching = fnmatch.filter(all_names, name)
            if not matching:
                sys.exit(f"excluded.txt: no case is called {name}")
            names |= dict.fromkeys(matching, reason.strip())
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", type=Path)
    parser.add_argument("-k", default="", metavar="TEXT", help="only names that contain this (comma: any of)")
    parser.add_argument("-j", type=int, default=8, metavar="N", help="cases at a time")
    parser.add_argument("-v", action="store_true", help="show what differs")
    parser.add_argument("--excluded", action="store_true", help="run those in excluded.txt, and nothing else")
    args = parser.parse_args()
    binary = args.binary.resolve()
    cases = [json.loads(line) for line in (HERE / "cases.jsonl").read_text().splitlines()]
    skipped = excluded([case["name"] for case in cases])
    wanted = [
        case for case in cases
        if any(text in case["name"] for text in args.k.split(",")) and (case["name"] in skipped) == args.excluded
    ]
    # A second try, alone, tells what is wrong from what was slow.
    with concurrent.futures.ThreadPoolExecutor(args.j) as pool:
        results = list(pool.map(lambda case: attempt(case, binary), wanted))
    failed = 0
    for case, wrong in zip(wanted, results):
        if wrong and not args.excluded:
            wrong = attempt(case, binary)
        if wrong:
            failed += 1
            print("FAIL", case["name"])
            if args.v or not args.excluded:
                print("    " + "\n    ".join("\n".join(wrong).split("\n")))
        elif args.v or args.excluded:
            print("ok  ", case["name"])
    print(f"{len(wanted)} cases, {failed} failed, {len(cases) - len(wanted)} not run")
    sys.exit(bool(failed) and not args.excluded)


if __name__ == "__main__":
    main()
