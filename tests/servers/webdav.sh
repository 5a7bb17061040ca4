#!/bin/sh
# Runs a command beside real WebDAV servers on loopback, with authentication on:
#
#     tests/servers/webdav.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_WEBDAV tells the command where they are, one per line: <name> <url> <user> <password>. Names: basic,
# digest, tls, untrusted (Apache), nginx, rclone. SSL_CERT_FILE holds the certificate of tls, and not that of untrusted. In
# LITESTREAM_TEST_WEBDAV_DIR lie pid and start, to end Apache and start it again.
# All are installed first where that is possible.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if ! command -v apache2 >/dev/null || ! command -v nginx >/dev/null || ! command -v rclone >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        apache2 apache2-utils nginx-light libnginx-mod-http-dav-ext rclone openssl >/dev/null
fi
dir=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    [ ! -f "$dir/pid" ] || kill "$(cat "$dir/pid")" 2>/dev/null || true
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    sleep 0.3
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM
user=dav password=davPass-1
base=$(python3 "$here/free_ports.py" 6)

chmod 755 "$dir"
mkdir -p "$dir/basic" "$dir/digest" "$dir/tls" "$dir/untrusted" "$dir/nginx" "$dir/rclone" "$dir/lock" "$dir/body"
sum=$(printf '%s:dav:%s' $user $password | md5sum | cut -d' ' -f1)
printf '%s:dav:%s\n' $user "$sum" >"$dir/htdigest"
htpasswd -bc "$dir/htpasswd" $user $password 2>/dev/null
for name in tls untrusted; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
        -keyout "$dir/$name.key" -out "$dir/$name.pem" 2>/dev/null
done

{
    cat <<EOF
ServerRoot /usr/lib/apache2
ServerName localhost
PidFile $dir/apache.pid
ErrorLog $dir/apache.log
DocumentRoot $dir
DavLockDB $dir/lock/db
Mutex file:$dir/lock default
EOF
    for module in mpm_event authn_core authn_file authz_core authz_user auth_basic auth_digest dav dav_fs ssl socache_shmcb; do
        echo "LoadModule ${module}_module modules/mod_$module.so"
    done
    if [ "$(id -u)" = 0 ]; then
        printf 'User www-data\nGroup www-data\n'
        chown www-data "$dir/basic" "$dir/digest" "$dir/tls" "$dir/untrusted" "$dir/nginx" "$dir/lock" "$dir/body"
    fi
    port=$base
    for name in basic digest tls untrusted; do
        echo "Listen 127.0.0.1:$port"
        echo "<VirtualHost 127.0.0.1:$port>"
        echo "DocumentRoot $dir/$name"
        case $name in
            tls | untrusted)
                printf 'SSLEngine on\nSSLCertificateFile %s\nSSLCertificateKeyFile %s\n' "$dir/$name.pem" "$dir/$name.key" ;;
        esac
        printf '<Directory %s>\nDav On\nAuthName dav\nRequire valid-user\n' "$dir/$name"
        if [ $name = digest ]; then
            # Numbers that are used up soon: being asked again must be no failure.
            printf 'AuthType Digest\nAuthUserFile %s\nAuthDigestNonceLifetime 2\n' "$dir/htdigest"
        else
            printf 'AuthType Basic\nAuthUserFile %s\n' "$dir/htpasswd"
        fi
        printf '</Directory>\n</VirtualHost>\n'
        port=$((port + 1))
    done
} >"$dir/apache.conf"
# Ended and started again by the rig.
cat >"$dir/start" <<EOF
rm -f "$dir/apache.pid"
apache2 -DFOREGROUND -f "$dir/apache.conf" >>"$dir/apache.out" 2>&1 &
echo \$! >"$dir/pid"
EOF
sh "$dir/start"

owner=
[ "$(id -u)" != 0 ] || owner='user www-data;'
cat >"$dir/nginx.conf" <<EOF
$owner
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
pid $dir/nginx.pid;
error_log $dir/nginx.log;
worker_processes 1;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path $dir/body;
    client_max_body_size 0;
    server {
        listen 127.0.0.1:$((base + 4));
        root $dir/nginx;
        location / {
            dav_methods PUT DELETE MKCOL COPY MOVE;
            dav_ext_methods PROPFIND OPTIONS;
            auth_basic dav;
            auth_basic_user_file $dir/htpasswd;
        }
    }
}
EOF
nginx -c "$dir/nginx.conf" -p "$dir" >"$dir/nginx.out" 2>&1 &
pids="$pids $!"

rclone serve webdav "$dir/rclone" --addr "127.0.0.1:$((base + 5))" --user $user --pass $password --disable-dir-list \
    --config /dev/null >"$dir/rclone.out" 2>&1 &
pids="$pids $!"

for port in $(seq "$base" $((base + 5))); do
    for _ in $(seq 100); do
        python3 -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null && break
        sleep 0.1
    done
done
LITESTREAM_TEST_WEBDAV="basic http://127.0.0.1:$base $user $password
digest http://127.0.0.1:$((base + 1)) $user $password
tls https://localhost:$((base + 2)) $user $password
untrusted https://localhost:$((base + 3)) $user $password
nginx http://127.0.0.1:$((base + 4)) $user $password
rclone http://127.0.0.1:$((base + 5)) $user $password"
SSL_CERT_FILE=$dir/tls.pem
LITESTREAM_TEST_WEBDAV_DIR=$dir
export LITESTREAM_TEST_WEBDAV LITESTREAM_TEST_WEBDAV_DIR SSL_CERT_FILE
# A command that only wants the servers up: `tests/servers/webdav.sh sleep 600`.
printf '%s\n' "$LITESTREAM_TEST_WEBDAV" >"${LITESTREAM_TEST_WEBDAV_FILE:-/dev/null}"
"$@"
