#!/usr/bin/env python3
"""Checks what the program is made of against deny.toml, without a network: licences, banned crates, where crates come from.

`cargo deny check` does the same and asks for advisories as well; this one needs nothing but Cargo and Python 3.11.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def allowed(expression, allow):
    """Whether an SPDX expression can be met with these licences. A slash is an old way to write OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def term():
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "(":
            value = either()
            at += 1
            return value
        if at < len(tokens) and tokens[at] == "WITH":
            token = f"{token} WITH {tokens[at + 1]}"
            at += 2
        return token in allow

    def both():
        nonlocal at
        value = term()
        while at < len(tokens) and tokens[at] == "AND":
            at += 1
            value = term() and value
        return value

    def either():
        nonlocal at
        value = both()
        while at < len(tokens) and tokens[at] == "OR":
            at += 1
            value = both() or value
        return value

    return either()


def main():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allow = set(rules["licenses"]["allow"])
    clarified = {c["crate"]: c["expression"] for c in rules["licenses"].get("clarify", [])}
    banned = {ban["crate"] for ban in rules["bans"]["deny"]}
    metadata = subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], cwd=ROOT, check=True, capture_output=True, text=True)
    packages = json.loads(metadata.stdout)["packages"]
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"] or clarified.get(package["name"])
        if not licence or not allowed(licence, allow):
            wrong.append(f"{name}: licence {licence}")
        if package["name"] in banned:
            wrong.append(f"{name}: banned")
        if package["source"] not in (None, CRATES_IO):
            wrong.append(f"{name}: from {package['source']}")
    print("\n".join(wrong), end="\n" if wrong else "")
    print(f"{len(packages)} packages, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    # The check itself: what must pass, and what must not.
    assert allowed("MIT OR GPL-3.0", {"MIT"}) and not allowed("MIT AND GPL-3.0", {"MIT"})
    assert allowed("(MIT/GPL-3.0) AND BSD-3-Clause", {"MIT", "BSD-3-Clause"}) and not allowed("Apache-2.0 WITH X", {"Apache-2.0"})
    main()
