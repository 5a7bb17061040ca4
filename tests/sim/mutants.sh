#!/bin/sh
# Builds the engine with each of its deliberate defects in turn and counts the seeds until the simulator
# notices. Exits non-zero if one survives LIMIT seeds (default 20000).
set -eu
cd "$(dirname "$0")/../.."
limit=${LIMIT:-20000}
${CARGO:-cargo} test --locked --features mutants --test sim --no-run 2>/dev/null
bin=$(ls -t target/debug/deps/sim-* | grep -v '\.d$' | head -1)
names=$(grep -rho 'mutant("[a-z-]*")' src | sed 's/mutant("\(.*\)")/\1/' | sort -u)
[ $# -eq 0 ] || names=$*
survived=0
for name in $names; do
    found=$(MUTANT=$name SEEDS=$limit FAILURES=1 "$bin" --nocapture no_commit 2>&1 | grep -m1 '^seed ' || true)
    if [ -n "$found" ]; then
        printf '%-38s %s\n' "$name" "$found"
    else
        printf '%-38s SURVIVED %s seeds\n' "$name" "$limit"
        survived=1
    fi
done
exit $survived
