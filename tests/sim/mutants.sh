#!/bin/sh
# Gives the engine each of its deliberate defects in turn and counts the seeds until the simulator notices,
# two at a time. Exits non-zero if one survives LIMIT seeds (default 20000). Arguments: only these.
set -eu
cd "$(dirname "$0")/../.."
export LIMIT="${LIMIT:-20000}"
# shellcheck disable=SC2086
BIN=$(${CARGO:-cargo} test --locked ${FEATURES:-} --test sim --no-run 2>&1 | sed -n 's/.*(\(.*deps.sim-.*\))$/\1/p')
export BIN
names=$(grep -rho 'mutant("[a-z0-9-]*")' src | sed 's/mutant("\(.*\)")/\1/' | sort -u)
[ $# -eq 0 ] || names=$*
printf '%s\n' $names | xargs -P 2 -I '{}' sh -c '
    # Defects of store and follow mode show only where the whole program runs.
    case {} in store-* | follow-*) name=whole ;; *) name=no_commit ;; esac
    found=$(MUTANT={} SEEDS=$LIMIT WHOLE_SEEDS=$LIMIT FAILURES=1 "$BIN" --nocapture $name 2>&1 | grep -m1 "^seed " || true)
    [ -n "$found" ] || { echo "{} SURVIVED $LIMIT seeds"; exit 1; }
    printf "%-38s %s\n" {} "$found"'
