#!/bin/sh
# Runs a command beside fakes of Google Cloud Storage on loopback: one like an emulator, that asks for no credentials, and one that
# wants a bearer token.
#
#     tests/servers/gs.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_GS tells the command where they are, in one line:
#     <host:port> <bucket> <host:port of the one with tokens> <port> <folder>
# `$(cat <folder>/pid)` is the first server's process; a command may end it and start it again with `sh <folder>/start`: what was
# stored is kept. Everything ends with the command. Needs nothing but Python.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
strict=
stop() {
    [ ! -f "$dir/pid" ] || kill "$(cat "$dir/pid")" 2>/dev/null || true
    [ -z "$strict" ] || kill "$strict" 2>/dev/null || true
    for _ in $(seq 50); do
        [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        sleep 0.1
    done
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM

bucket=litestream
port=$(python3 "$here/free_ports.py" 2)
cat >"$dir/start" <<EOF
python3 '$here/gs_fake.py' $port '$dir/data' $bucket >>'$dir/out' 2>&1 &
echo \$! >'$dir/pid'
python3 '$here/wait_port.py' $port 20
EOF
sh "$dir/start"
python3 "$here/gs_fake.py" $((port + 1)) "$dir/strict" $bucket the-token >>"$dir/out" 2>&1 &
strict=$!
python3 "$here/wait_port.py" $((port + 1)) 20
LITESTREAM_TEST_GS="127.0.0.1:$port $bucket 127.0.0.1:$((port + 1)) $port $dir"
export LITESTREAM_TEST_GS
"$@"
