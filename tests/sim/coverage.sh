#!/bin/sh
# What of the core the simulator runs through, by itself: lines and branches of each module. Needs a nightly
# toolchain with llvm-tools (branches are counted by nothing else). Arguments: seeds of the engine, of the whole program.
set -eu
cd "$(dirname "$0")/../.."
TOOLCHAIN="${TOOLCHAIN:-nightly}"
OUT="${CARGO_TARGET_DIR:-target}/coverage"
TOOLS=$(dirname "$(find "$(rustc "+$TOOLCHAIN" --print sysroot)" -name llvm-cov -path '*bin*' | head -1)")
[ -x "$TOOLS/llvm-cov" ] || {
    echo "rustup component add llvm-tools --toolchain $TOOLCHAIN" >&2
    exit 1
}
mkdir -p "$OUT"
rm -f "$OUT"/*.profraw
# Build scripts and macros are instrumented, too, and would leave their counts wherever they run.
LLVM_PROFILE_FILE=/dev/null RUSTFLAGS="-C instrument-coverage -Z coverage-options=branch" CARGO_TARGET_DIR="$OUT/build" \
    cargo "+$TOOLCHAIN" test --locked --no-default-features --test sim --no-run 2>"$OUT/build.log" || {
    tail -20 "$OUT/build.log" >&2
    exit 1
}
BIN=$(sed -n 's/.*(\(.*deps.sim-.*\))$/\1/p' "$OUT/build.log")
export LLVM_PROFILE_FILE="$OUT/%p.profraw"
SEEDS="${1:-2000}" FIRST=1 "$BIN" no_commit >/dev/null
WHOLE_SEEDS="${2:-1000}" WHOLE_FIRST=1 "$BIN" whole >/dev/null
"$BIN" scenario >/dev/null
"$TOOLS/llvm-profdata" merge -sparse "$OUT"/*.profraw -o "$OUT/sim.profdata"
# One file after the other: llvm-cov 22 crashes on a file without code, which then counts for nothing.
rm -rf "$OUT/summary"
mkdir "$OUT/summary"
for module in compaction db ltx restore sqlite store sys types wal; do
    git ls-files "crates/*/src/$module/*.rs" | while read -r file; do
        name=$(echo "$file" | tr / _)
        "$TOOLS/llvm-cov" export "$BIN" -instr-profile "$OUT/sim.profdata" --summary-only "$PWD/$file" \
            >"$OUT/summary/$name.json" 2>/dev/null || rm "$OUT/summary/$name.json"
    done
done
python3 - "$OUT"/summary/*.json <<'PYTHON'
import collections, json, sys

files = [file for name in sys.argv[1:] for file in json.load(open(name))["data"][0]["files"]]
sums = collections.defaultdict(lambda: [0, 0, 0, 0])
for file in files:
    path = file["filename"].split("/src/", 1)[-1]
    module = path.split("/")[0].removesuffix(".rs")
    lines, branches = file["summary"]["lines"], file["summary"]["branches"]
    for n, value in enumerate((lines["covered"], lines["count"], branches["covered"], branches["count"])):
        sums[module][n] += value
        sums["/" + path][n] += value
print("| Module | Lines | Branches |\n|---|---|---|")
share = lambda part, whole: f"{100 * part / whole:.1f} % of {whole:,}" if whole else "–"
for name, (lines, of_lines, branches, of_branches) in sorted(sums.items()):
    if not name.startswith("/"):
        print(f"| `{name}` | {share(lines, of_lines)} | {share(branches, of_branches)} |")
    else:
        print(f"{name} {share(lines, of_lines)}; {share(branches, of_branches)}", file=sys.stderr)
PYTHON
