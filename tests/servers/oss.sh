#!/bin/sh
# Runs a command beside a fake of Alibaba Cloud OSS on loopback that checks signatures (there is no emulator to be had):
#
#     tests/servers/oss.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_OSS tells the command where it is, in one line:
#     <endpoint> <bucket> <access key id> <secret> <region> <port> <folder>
# `$(cat <folder>/pid)` is the server's process; a command may end it and start it again with `sh <folder>/start`: what was
# stored is kept. Everything ends with the command. Needs nothing but Python.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
stop() {
    [ ! -f "$dir/pid" ] || kill "$(cat "$dir/pid")" 2>/dev/null || true
    for _ in $(seq 50); do
        [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        sleep 0.1
    done
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM

access=LTAITEST0123456789 secret=secretTEST0123456789abcdef region=cn-hangzhou bucket=litestream
port=$(python3 "$here/free_ports.py" 1)
cat >"$dir/start" <<EOF
python3 '$here/oss_fake.py' $port '$dir/data' $access $secret $region $bucket >>'$dir/out' 2>&1 &
echo \$! >'$dir/pid'
python3 '$here/wait_port.py' $port 20
EOF
sh "$dir/start"
LITESTREAM_TEST_OSS="http://127.0.0.1:$port $bucket $access $secret $region $port $dir"
export LITESTREAM_TEST_OSS
"$@"
