#!/bin/sh
# Runs a command beside real NATS servers on loopback, one for each way to log in:
#
#     tests/servers/nats.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_NATS tells the command where they are, one per line: <name> <url>. Names: password, token, nkey, jwt,
# tls. LITESTREAM_TEST_NATS_DIR is a directory with ca.pem, other-ca.pem, client.pem, client.key, user.creds, user.jwt,
# user.seed, nkey.seed, nkey.pub, and pid and start, to end the server with passwords and start it again. User ls with lsPass-1, token tokenTest-1; each server has the bucket litestream.
# nats-server is installed first where that is possible, the client that makes buckets comes from PyPI into
# target/servers.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/servers
if ! command -v nats-server >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nats-server openssl >/dev/null
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import nats, nkeys' 2>/dev/null ||
    "$venv/bin/pip" install --quiet --disable-pip-version-check nats-py==2.16.0 nkeys==0.2.1
dir=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    [ ! -f "$dir/pid" ] || kill "$(cat "$dir/pid")" 2>/dev/null || true
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    sleep 0.5
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM
base=$(python3 "$here/free_ports.py" 5)

for ca in ca other-ca; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$ca \
        -addext basicConstraints=critical,CA:TRUE -keyout "$dir/$ca.key" -out "$dir/$ca.pem" 2>/dev/null
done
for name in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout "$dir/$name.key" \
        -out "$dir/$name.csr" 2>/dev/null
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >"$dir/ext"
    openssl x509 -req -in "$dir/$name.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
        -extfile "$dir/ext" -out "$dir/$name.pem" 2>/dev/null
done
"$venv/bin/python" "$here/nats_setup.py" "$dir" "$base"
# Ended and started again by the rig.
cat >"$dir/start" <<EOF
nats-server -c "$dir/password.conf" >>"$dir/password.log" 2>&1 &
echo \$! >"$dir/pid"
EOF
sh "$dir/start"
for name in token nkey jwt tls; do
    nats-server -c "$dir/$name.conf" >"$dir/$name.log" 2>&1 &
    pids="$pids $!"
done
"$venv/bin/python" "$here/nats_setup.py" "$dir" "$base" buckets
LITESTREAM_TEST_NATS="password nats://127.0.0.1:$base
token nats://127.0.0.1:$((base + 1))
nkey nats://127.0.0.1:$((base + 2))
jwt nats://127.0.0.1:$((base + 3))
tls nats://localhost:$((base + 4))"
LITESTREAM_TEST_NATS_DIR=$dir
export LITESTREAM_TEST_NATS LITESTREAM_TEST_NATS_DIR
# A command that only wants the servers up: `tests/servers/nats.sh sleep 600`.
printf '%s\n' "$LITESTREAM_TEST_NATS" >"${LITESTREAM_TEST_NATS_FILE:-/dev/null}"
"$@"
