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
make make
mmdebstrap mmdebstrap
ssh openssh-client
rsync rsync
python3 python3-venv
debootstrap debootstrap
chromium chromium
node nodejs
npm npm'

missing=$(echo "$needs" | while read -r program package; do
    # vim-tiny brings vi alone.
    [ "$program" = vim ] && program=vi
    # CNI plugins are in a folder of their own.
    command -v "$program" >/dev/null || [ -x "/usr/lib/cni/$program" ] || echo "$package"
done | sort -u | tr '\n' ' ')
if [ -z "$missing" ]; then
    :
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup.sh: installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # shellcheck disable=SC2086 # a list of words
    apt-get -qq -y --no-install-recommends install $missing >/dev/null
else
    echo "setup.sh: missing: $missing- some tests will fail; as root: apt-get install $missing" >&2
    [ -z "${CI:-}" ]
fi

# What builds the web page, and what drives it in a browser. No script of a package is run.
web=${SLICE_WEB_DIR:-target/web}
for part in page:src/wire/ui/page tests:tests/e2e/web; do
    from=${part#*:} to=$web/${part%%:*}
    if ! cmp -s "$from/package-lock.json" "$to/node_modules/.installed" && command -v npm >/dev/null; then
        echo "setup.sh: installing packages of npm into $to"
        mkdir -p "$to"
        cp "$from/package.json" "$from/package-lock.json" "$to"
        (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
        cp "$from/package-lock.json" "$to/node_modules/.installed"
    fi
done

# The network managers and firewalls that tests run are unpacked and not installed: a package that is installed is started, here or at the
# next boot. Below target/managers/root lies what tests put over /usr, /etc and /var of a private host.
managers=${SLICE_MANAGERS_DIR:-target/managers}
if [ ! -e "$managers/done" ] && command -v apt-get >/dev/null; then
    echo "setup.sh: unpacking firewalld, network-manager and ufw into $managers"
    mkdir -p "$managers/debs" "$managers/root"
    packages=$(apt-get -s install --no-install-recommends dbus systemd firewalld network-manager ufw 2>/dev/null |
        awk '$1 == "Inst" && $3 !~ /^\[/ && $2 != "udev" && $2 != "libudev1" { print $2 }')
    # An index that is old names packages that are there no more.
    # shellcheck disable=SC2086 # a list of words
    (cd "$managers/debs" && { apt-get -qq download $packages 2>/dev/null || { apt-get -qq update && apt-get -qq download $packages; }; })
    for package in "$managers"/debs/*.deb; do
        dpkg-deb -x "$package" "$managers/root"
    done
    # In a package /lib is not yet a link.
    [ ! -d "$managers/root/lib" ] || cp -a "$managers/root/lib/." "$managers/root/usr/lib/"
    touch "$managers/done"
fi

# etcd, unpacked for the same reason.
etcd=${SLICE_ETCD_DIR:-target/etcd}
if [ ! -e "$etcd/done" ] && command -v apt-get >/dev/null; then
    echo "setup.sh: unpacking etcd-server and etcd-client into $etcd"
    mkdir -p "$etcd/debs" "$etcd/root"
    packages='etcd-server etcd-client'
    # shellcheck disable=SC2086 # a list of words
    (cd "$etcd/debs" && { apt-get -qq download $packages 2>/dev/null || { apt-get -qq update && apt-get -qq download $packages; }; })
    for package in "$etcd"/debs/*.deb; do
        dpkg-deb -x "$package" "$etcd/root"
    done
    touch "$etcd/done"
fi

# schemathesis sends requests by the OpenAPI document; it is a program of Python, in an environment of its own.
requirements=tests/e2e/contract/schemathesis/requirements.txt
environment=target/schemathesis
if ! cmp -s "$requirements" "$environment/requirements.txt"; then
    echo "setup.sh: installing schemathesis into $environment"
    if python3 -m venv "$environment" && "$environment/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"; then
        cp "$requirements" "$environment/requirements.txt"
    else
        echo "setup.sh: cannot install schemathesis: its test will fail; it needs python3-venv and PyPI" >&2
        [ -z "${CI:-}" ]
    fi
fi
