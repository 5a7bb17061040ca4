#!/bin/sh
# Runs a command beside a real OpenSSH server on loopback, with a user of its own:
#
#     tests/servers/sftp.sh COMMAND [ARGUMENT...]
#
# LITESTREAM_TEST_SFTP tells the command where it is: "<host:port> <user> <password> <directory> <keys>
# <folder>". In <folder> lie pid and start, to end the server and start it again; in <keys>
# host.pub (the server's), other.pub (another server's), id_ed25519, id_rsa (PEM), id_locked (with a passphrase),
# id_stranger (unknown to the server), agent.sock (an agent that holds id_ed25519). Needs root: logging in with
# a password does. OpenSSH is installed first where that is possible.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || { echo "$0 needs root: it makes a user that can log in with a password" >&2; exit 1; }
if ! command -v sshd >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server openssh-client >/dev/null
fi
dir=$(mktemp -d)
user=lssftp$$
password=sftp-Pass-1
agent=
stop() {
    [ ! -f "$dir/pid" ] || kill "$(cat "$dir/pid")" 2>/dev/null || true
    [ -z "$agent" ] || kill "$agent" 2>/dev/null || true
    # What is left of its sessions.
    for pid in $(ps -o pid= -U "$user" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
    sleep 0.2
    userdel "$user" 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 1' INT TERM

useradd -M -d "$dir" -s /usr/sbin/nologin "$user"
echo "$user:$password" | chpasswd
mkdir -p /run/sshd "$dir/keys" "$dir/data"
chmod 755 "$dir" "$dir/keys"
chown "$user" "$dir/data"
for name in host other; do ssh-keygen -q -t ed25519 -N '' -C $name -f "$dir/keys/$name"; done
# A second key of another kind: the one that is pinned must be asked for.
ssh-keygen -q -t ecdsa -N '' -f "$dir/keys/host_ecdsa"
ssh-keygen -q -t ed25519 -N '' -f "$dir/keys/id_ed25519"
ssh-keygen -q -t ed25519 -N '' -f "$dir/keys/id_stranger"
ssh-keygen -q -t ed25519 -N 'locked' -f "$dir/keys/id_locked"
ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f "$dir/keys/id_rsa"
cat "$dir/keys/id_ed25519.pub" "$dir/keys/id_rsa.pub" "$dir/keys/id_locked.pub" >"$dir/authorized_keys"

eval "$(ssh-agent -s -a "$dir/keys/agent.sock")" >/dev/null
agent=$SSH_AGENT_PID
ssh-add -q "$dir/keys/id_ed25519"
unset SSH_AUTH_SOCK SSH_AGENT_PID

port=$(python3 "$here/free_ports.py" 1)
# Ended and started again by the rig.
cat >"$dir/start" <<EOF
/usr/sbin/sshd -D -e -f /dev/null -p $port -h "$dir/keys/host" -h "$dir/keys/host_ecdsa" -o ListenAddress=127.0.0.1 \\
    -o PidFile=none -o AuthorizedKeysFile="$dir/authorized_keys" -o StrictModes=no -o UsePAM=no \\
    -o PasswordAuthentication=yes -o KbdInteractiveAuthentication=no -o AllowUsers=$user -o MaxStartups=200 \\
    -o 'Subsystem=sftp internal-sftp' -o ForceCommand=internal-sftp >>"$dir/sshd.log" 2>&1 &
echo \$! >"$dir/pid"
EOF
sh "$dir/start"
for _ in $(seq 100); do
    python3 -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null && break
    sleep 0.1
done
LITESTREAM_TEST_SFTP="127.0.0.1:$port $user $password $dir/data $dir/keys $dir"
export LITESTREAM_TEST_SFTP
# A command that only wants the server up: `tests/servers/sftp.sh sleep 600`.
printf '%s\n' "$LITESTREAM_TEST_SFTP" >"${LITESTREAM_TEST_SFTP_FILE:-/dev/null}"
"$@"
