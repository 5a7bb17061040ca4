#!/bin/sh
# Gives the program each of its deliberate defects in turn and counts the seeds until the simulator notices,
# two at a time. What no seed notices some other test must. Exits non-zero if one survives LIMIT seeds (default 20000) and
# all tests. Arguments: only these.
set -eu
cd "$(dirname "$0")/../.."
export LIMIT="${LIMIT:-20000}"
# shellcheck disable=SC2086
BUILT=$(${CARGO:-cargo} test --locked --workspace ${FEATURES:-} --lib --test sim --test compaction --test restore --test store --test engine --no-run 2>&1)
path_of() { echo "$BUILT" | sed -n "s/.*(\(.*deps.$1-.*\))\$/\1/p"; }
BIN=$(path_of sim)
TESTS="$(path_of litestream) $(path_of litestream_core) $(path_of litestream_storage) $(path_of litestream_replica)
    $(path_of litestream_engine) $(path_of compaction) $(path_of restore) $(path_of store) $(path_of engine)"
export BIN TESTS
names=$(grep -rho 'mutant("[a-z0-9-]*")' src crates/*/src | sed 's/mutant("\(.*\)")/\1/' | sort -u)
[ $# -eq 0 ] || names=$*
printf '%s\n' $names | xargs -P 2 -I '{}' sh -c '
    # Defects of store and follow mode show only where the whole program runs.
    case {} in store-* | follow-*) name=whole ;; *) name=no_commit ;; esac
    found=$(MUTANT={} SEEDS=$LIMIT WHOLE_SEEDS=$LIMIT FAILURES=1 "$BIN" --nocapture $name 2>&1 | grep -m1 "^seed " || true)
    for tests in $TESTS; do
        [ -z "$found" ] || break
        found=$(MUTANT={} "$tests" 2>&1 | sed -n "s/^test \(.*\) \.\.\. FAILED$/\1/p" | head -1)
    done
    [ -n "$found" ] || { echo "{} SURVIVED $LIMIT seeds and all tests"; exit 1; }
    printf "%-38s %s\n" {} "$found"'
