#!/usr/bin/env python3
"""Loads the extension into SQLite and looks at what it exports and links.

usage: load.py <liblitestream_vfs.so>

Needs `nm`, and a SQLite that may load extensions: Python's module, or else the command-line shell.
"""

import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile

ENTRY_POINTS = ["sqlite3_extension_init", "sqlite3_litestream_init", "sqlite3_litestreamvfs_init"]


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return sorted(line.split()[-1] for line in lines.splitlines())


def wanted(library):
    lines = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in lines.splitlines()]


def by_module(file, entry):
    db = sqlite3.connect(":memory:")
    db.enable_load_extension(True)
    db.execute("SELECT load_extension(?, ?)", (file, entry)) if entry else db.load_extension(file)
    return db.execute("SELECT sqlite_version()").fetchone()[0]


def by_shell(file, entry):
    load = f".load {file} {entry}" if entry else f".load {file}"
    ran = subprocess.run(["sqlite3", "-bail", ":memory:", load, "SELECT sqlite_version();"], capture_output=True, text=True)
    if ran.returncode or ran.stderr:
        sys.exit(f"{load}: {ran.stderr or ran.returncode}")
    return ran.stdout.strip()


def main():
    library = sys.argv[1]
    names = exported(library)
    assert names == ENTRY_POINTS, f"exported: {names}"
    linked = [name for name in wanted(library) if name.startswith("sqlite3")]
    assert not linked, f"takes from a SQLite it links: {linked}"
    loads = by_module if hasattr(sqlite3.Connection, "enable_load_extension") else by_shell
    if loads is by_shell and not shutil.which("sqlite3"):
        sys.exit("neither Python's sqlite3 nor a shell can load extensions here")
    with tempfile.TemporaryDirectory() as dir:
        # SQLite derives names of entry points from the name of the file.
        for name in ["liblitestream_vfs.so", "litestream.so", "other.so"]:
            file = str(pathlib.Path(dir) / name)
            shutil.copy(library, file)
            for entry in [None, *ENTRY_POINTS]:
                version = loads(file, entry)
    print(f"loaded into SQLite {version} by {loads.__name__}, by every name")


if __name__ == "__main__":
    main()
