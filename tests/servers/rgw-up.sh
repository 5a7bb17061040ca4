#!/bin/bash
# usage: rgw-up.sh DIR HTTP_PORT TLS_PORT MON_PORT ACCESS_KEY SECRET_KEY CERT KEY   (pids: DIR/{mon,osd,rgw}.pid)
set -e
D=$1 P=$2 T=$3 M=$4 AK=$5 SK=$6; rm -rf "$D"; mkdir -p "$D"/{mon,osd,rgw,run}
cat > "$D/ceph.conf" <<CF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$M/0,v1:127.0.0.1:$((M+1))/0]
public network = 127.0.0.0/8
ms bind port min = $((M+2))
ms bind port max = $((M+20))
keyring = $D/keyring
run dir = $D/run
admin socket = $D/run/\$name.asok
pid file = $D/run/\$name.pid
log file = $D/\$name.log
crash dir = $D/run
mon data avail warn = 1
mon data avail crit = 0
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon.a]
mon data = $D/mon
[osd.0]
osd data = $D/osd
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw data = $D/rgw
rgw frontends = beast endpoint=127.0.0.1:$P ssl_endpoint=127.0.0.1:$T ssl_certificate=$7 ssl_private_key=$8

rgw crypt require ssl = false
rgw thread pool size = 32
CF
C="-c $D/ceph.conf"; A=ceph-authtool
$A --create-keyring "$D/monkr" --gen-key -n mon. --cap mon 'allow *' >/dev/null
$A --create-keyring "$D/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' >/dev/null
$A "$D/keyring" --gen-key -n client.rgw --cap mon 'allow *' --cap osd 'allow *' >/dev/null
$A "$D/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' >/dev/null
$A "$D/monkr" --import-keyring "$D/keyring" >/dev/null
monmaptool --create --fsid "$(awk '/^fsid/{print $3}' "$D/ceph.conf")" --addv a "[v2:127.0.0.1:$M,v1:127.0.0.1:$((M+1))]" "$D/monmap" >/dev/null
ceph-mon $C -i a --mkfs --monmap "$D/monmap" --keyring "$D/monkr"
setsid ceph-mon $C -i a --public-addr 127.0.0.1:$M -f >"$D/mon.out" 2>&1 & echo $! >"$D/mon.pid"
U=$(cat /proc/sys/kernel/random/uuid)
until timeout 10 ceph $C osd new "$U" >/dev/null 2>&1; do sleep 0.1; done
ceph-osd $C -i 0 --mkfs --osd-uuid "$U" >/dev/null 2>&1
setsid ceph-osd $C -i 0 -f >"$D/osd.out" 2>&1 & echo $! >"$D/osd.pid"
setsid radosgw $C -n client.rgw -f >"$D/rgw.out" 2>&1 & echo $! >"$D/rgw.pid"
for i in $(seq 300); do curl -sf -o /dev/null "http://127.0.0.1:$P/" && break; sleep 0.2; done
radosgw-admin $C user create --uid=ls --display-name=ls --access-key="$AK" --secret-key="$SK" >/dev/null 2>&1
