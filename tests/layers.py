#!/usr/bin/env python3
"""Who imports whom, asked from `cargo metadata`: the table in docs/architecture.md between the marks.

usage: layers.py             prints the table
       layers.py --write     puts it into the document
       layers.py --check     fails if the document says something else
       layers.py --packages  counts the packages that are compiled for each crate

All but the last fail if a crate imports one that is not below it, or reaches what it must not.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tests/layers.py: begin -->\n", "<!-- tests/layers.py: end -->\n"
# From above. A crate imports only crates below its own.
ORDER = ["litestream", "litestream-vfs-ext", "litestream-engine", "litestream-replica", "litestream-storage", "litestream-core"]
# Packages that a crate must not reach, by whatever way.
FORBIDDEN = {
    "litestream-vfs-ext": ["libsqlite3-sys", "rusqlite"],
    "litestream-replica": ["libsqlite3-sys", "rusqlite", "prometheus"],
    "litestream-storage": ["libsqlite3-sys", "rusqlite", "prometheus", "libyaml-safer"],
    "litestream-core": ["libsqlite3-sys", "rusqlite", "prometheus", "libyaml-safer", "hyper", "rustls"],
}
EVERY_BACKEND = "abs gs nats oss s3 sftp webdav"


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def packages(crate, *features):
    """What is compiled for a crate, itself included; tests aside."""
    tree = cargo("tree", "--locked", "-p", crate, "-e", "normal,build", "--prefix", "none", "--format", "{p}", *features)
    return {tuple(line.split()[:2]) for line in tree.splitlines() if line}


def ours():
    metadata = json.loads(cargo("metadata", "--locked", "--no-deps", "--format-version", "1"))
    return {package["name"]: package for package in metadata["packages"]}


def imports(package, names):
    return {d["name"] for d in package["dependencies"] if d["kind"] is None and d["name"] in names}


def modules(package):
    source = pathlib.Path(package["manifest_path"]).parent / "src"
    found = {path.stem for path in source.iterdir() if path.is_dir() or path.suffix == ".rs"} - {"lib", "main"}
    return " ".join(f"`{name}`" for name in sorted(found))


def table(crates):
    lines = ["| Crate | Imports | Modules |", "|---|---|---|"]
    for name in ORDER:
        below = [other for other in ORDER if other in imports(crates[name], crates)]
        imported = " ".join(f"`{other.removeprefix('litestream-')}`" for other in below) or "nothing"
        lines.append(f"| `{name}` | {imported} | {modules(crates[name])} |")
    return "\n".join(lines) + "\n"


def counts(crates):
    for name in ORDER:
        print(f"{name}: {len(packages(name))}")
        if name == "litestream":
            print(f"{name} without backends: {len(packages(name, '--no-default-features'))}")
        elif "s3" in crates[name]["features"]:
            print(f"{name} with every backend: {len(packages(name, '--features', EVERY_BACKEND))}")


def faults(crates):
    if sorted(crates) != sorted(ORDER):
        yield f"crates without a place in the order: {sorted(set(crates) ^ set(ORDER))}"
    for place, name in enumerate(ORDER):
        above = imports(crates[name], crates) & set(ORDER[: place + 1])
        if above:
            yield f"{name} imports {', '.join(above)}, which is not below it"
    for name, forbidden in FORBIDDEN.items():
        reached = {package for package, _ in packages(name)} & set(forbidden)
        if reached:
            yield f"{name} reaches {', '.join(reached)}"


def main():
    crates = ours()
    if "--packages" in sys.argv:
        return counts(crates)
    found = list(faults(crates))
    if found:
        sys.exit("\n".join(found))
    generated = table(crates)
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    updated = before + BEGIN + generated + END + after
    if "--write" in sys.argv:
        DOCUMENT.write_text(updated)
    elif "--check" in sys.argv:
        if text != updated:
            sys.exit("docs/architecture.md, who may import whom: run tests/layers.py --write")
    else:
        print(generated, end="")


if __name__ == "__main__":
    main()
