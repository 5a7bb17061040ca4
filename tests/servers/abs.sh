#!/bin/sh
# Runs a command beside a blob service of Azure's kind (Azurite) on loopback, with signatures checked:
#
#     tests/servers/abs.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_ABS tells the command where it is, in one line:
#     <endpoint> <account> <account key> <container> <SAS token for the container> <port of the service> <folder>
# Azurite comes from npm into target/servers. `$(cat <folder>/pid)` is the server's process; a command may end it and
# start it again with `sh <folder>/start`: what was stored is kept. Everything ends with the command.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
servers=$root/target/servers
account=litestream
key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
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

main=$servers/azurite/node_modules/azurite/dist/src/blob/main.js
if [ ! -f "$main" ]; then
    mkdir -p "$servers/azurite"
    npm install --prefix "$servers/azurite" --no-audit --no-fund --silent azurite@3.37.0 >"$dir/npm.out" 2>&1 ||
        { cat "$dir/npm.out" >&2; exit 1; }
fi

port=$(python3 "$here/free_ports.py" 1)
mkdir "$dir/data"
cat >"$dir/start" <<EOF
AZURITE_ACCOUNTS='$account:$key' node '$main' --blobHost 127.0.0.1 --blobPort $port --location '$dir/data' \\
    --disableTelemetry --silent --skipApiVersionCheck >>'$dir/out' 2>&1 &
echo \$! >'$dir/pid'
python3 '$here/wait_port.py' $port 20
EOF
sh "$dir/start"
sas=$(python3 "$here/abs_boot.py" "http://127.0.0.1:$port/$account" $account $key litestream)
LITESTREAM_TEST_ABS="http://127.0.0.1:$port/$account $account $key litestream $sas $port $dir"
export LITESTREAM_TEST_ABS
"$@"
