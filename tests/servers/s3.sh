#!/bin/sh
# Runs a command beside real S3 services on loopback, with authentication and signature checks on:
#
#     tests/servers/s3.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_S3 tells the command where they are, one service per line:
#     <name> <endpoint> <bucket> <access key> <secret key>
# LITESTREAM_TEST_S3_TLS is Ceph's endpoint with TLS, LITESTREAM_TEST_S3_CA the certificate to trust there.
# moto comes from PyPI into target/servers; Ceph's gateway is used when it is installed (Debian: radosgw ceph-mon
# ceph-osd ceph-common), and installed first where that is possible. Everything ends with the command.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/servers
bucket=litestream
dir=$(mktemp -d)
moto=
stop() {
    [ -z "$moto" ] || kill "$moto" 2>/dev/null || true
    [ ! -f "$dir/rgw/rgw.pid" ] || sh "$here/rgw-down.sh" "$dir/rgw" || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM

if [ ! -x "$venv/bin/moto_server" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'moto[s3]==5.2.5' flask flask-cors boto3
fi
if ! command -v radosgw >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        radosgw ceph-mon ceph-osd ceph-common >/dev/null
fi

# Two free ports above the range that outgoing connections use, and a block for Ceph's own.
base=$("$venv/bin/python" "$here/free_ports.py" 24)
port=$base
INITIAL_NO_AUTH_ACTION_COUNT=4 "$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$dir/moto.out" 2>&1 &
moto=$!
for _ in $(seq 100); do
    "$venv/bin/python" -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null && break
    sleep 0.1
done
keys=$("$venv/bin/python" "$here/moto_boot.py" "$port" $bucket)
LITESTREAM_TEST_S3="moto http://127.0.0.1:$port $bucket $keys"

if command -v radosgw >/dev/null; then
    access=AKTEST0123456789 secret=secretTEST0123456789abcdef
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null
    bash "$here/rgw-up.sh" "$dir/rgw" $((base + 1)) $((base + 2)) $((base + 3)) $access $secret \
        "$dir/cert.pem" "$dir/key.pem"
    "$venv/bin/python" - "$((base + 1))" $bucket $access $secret <<'PY'
import sys, boto3
port, bucket, access, secret = sys.argv[1:]
boto3.client('s3', endpoint_url=f'http://127.0.0.1:{port}', aws_access_key_id=access, aws_secret_access_key=secret,
             region_name='us-east-1').create_bucket(Bucket=bucket)
PY
    LITESTREAM_TEST_S3="$LITESTREAM_TEST_S3
ceph http://127.0.0.1:$((base + 1)) $bucket $access $secret"
    LITESTREAM_TEST_S3_TLS=https://127.0.0.1:$((base + 2))
    LITESTREAM_TEST_S3_CA=$dir/cert.pem
    export LITESTREAM_TEST_S3_TLS LITESTREAM_TEST_S3_CA
fi
export LITESTREAM_TEST_S3
# A command that only wants the servers up: `tests/servers/s3.sh sleep 600`.
printf '%s\n' "$LITESTREAM_TEST_S3" >"${LITESTREAM_TEST_S3_FILE:-/dev/null}"
"$@"
