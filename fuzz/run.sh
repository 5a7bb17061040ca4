#!/bin/sh
# Fuzzes every target for SECONDS each (default 1800), JOBS side by side (default: as many as there are processors), and
# prints a table. What is found goes to OUT/art, new inputs to OUT/corpus (default: target/fuzz). Arguments: only these targets.
# Needs nightly and cargo-fuzz: rustup toolchain install nightly && cargo install cargo-fuzz --locked
set -eu
cd "$(dirname "$0")"
SECONDS_EACH="${SECONDS_EACH:-1800}"
JOBS="${JOBS:-$(nproc)}"
OUT="${OUT:-../target/fuzz}"
mkdir -p "$OUT/corpus" "$OUT/art" "$OUT/log"
cargo +nightly fuzz build
BIN="$(pwd)/target/$(rustc +nightly -vV | sed -n 's/^host: //p')/release"
[ $# -gt 0 ] || set -- $(sed -n 's/^    ("\([a-z0-9_]*\)", [a-z0-9_]*),$/\1/p' targets.rs)
export SECONDS_EACH OUT BIN
printf '%s\n' "$@" | xargs -P "$JOBS" -I '{}' sh -c '
    mkdir -p "$OUT/corpus/{}" "$OUT/art/{}"
    "$BIN/{}" "$OUT/corpus/{}" "corpus/{}" -max_total_time="$SECONDS_EACH" -rss_limit_mb=1024 -timeout=120 \
        -artifact_prefix="$OUT/art/{}/" -print_final_stats=1 >"$OUT/log/{}" 2>&1 || true'
bad=0
echo "| Target | Runs | Edges, features | Inputs kept | Most memory, MB | Found |"
echo "|---|---|---|---|---|---|"
for name in "$@"; do
    log="$OUT/log/$name"
    stat() { sed -n "s/^stat::$1: *//p" "$log"; }
    last=$(grep -E '^#[0-9]+' "$log" | tail -1)
    found=$(find "$OUT/art/$name" -type f | wc -l)
    bad=$((bad + found))
    echo "| \`$name\` | $(stat number_of_executed_units) | $(echo "$last" | sed -n 's/.*cov: \([0-9]*\) ft: \([0-9]*\).*/\1, \2/p') |" \
        "$(echo "$last" | sed -n 's/.*corp: \([0-9]*\).*/\1/p') | $(stat peak_rss_mb) | $found |"
done
[ "$bad" -eq 0 ]
