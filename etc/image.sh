#!/bin/sh
# Builds the image of the Dockerfile from a binary built here, so that no registry is asked for anything:
#
#     etc/image.sh docker build -t litestream        # or: buildah build -t litestream
#
# The static binary and the files around it take the place of the Dockerfile's build stage.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- docker build -t litestream
cargo rustc --locked --release --bin litestream -- -C target-feature=+crt-static
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/empty/tmp" "$stage/empty/data" "$stage/empty/etc" "$stage/etc/ssl/certs"
chmod 1777 "$stage/empty/tmp"
echo 'litestream:x:10001:10001::/data:/none' >"$stage/empty/etc/passwd"
echo 'litestream:x:10001:' >"$stage/empty/etc/group"
[ "$(id -u)" != 0 ] || chown 10001:10001 "$stage/empty/data"
cp /etc/ssl/certs/ca-certificates.crt "$stage/etc/ssl/certs/"
strip -o "$stage/litestream" target/release/litestream
"$@" --build-context "build=$stage" .
