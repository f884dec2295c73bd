#!/bin/sh
# Installs what the tests need, when we are root on a system with apt-get; else says what is missing.
set -eu

# PROGRAM PACKAGE
needs='iptables iptables
iptables-legacy iptables
nft nftables
ip iproute2
tc iproute2
conntrack conntrack
qemu-system-x86_64 qemu-system-x86
busybox busybox-static
cpio cpio
ping iputils-ping
tcpdump tcpdump
socat socat
jq jq
curl curl
git git
vim vim-tiny
ps procps
nsenter util-linux
losetup mount
mkfs.ext4 e2fsprogs
gcc gcc
host-local containernetworking-plugins
make make'

missing=$(echo "$needs" | while read -r program package; do
    # vim-tiny brings vi alone.
    [ "$program" = vim ] && program=vi
    # CNI plugins are in a folder of their own.
    command -v "$program" >/dev/null || [ -x "/usr/lib/cni/$program" ] || echo "$package"
done | sort -u | tr '\n' ' ')
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup.sh: installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of words
    apt-get -qq -y --no-install-recommends install $missing >/dev/null
else
    echo "setup.sh: missing: $missing- some tests will fail; as root: apt-get install $missing" >&2
    [ -z "${CI:-}" ]
fi
