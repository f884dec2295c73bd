#!/usr/bin/env bash
# `make fleet-demo`: three members of etcd and three nodes in a private lab on this machine. It applies 12 VMs, kills the leader of etcd,
# cuts a node off, heals it, drains a node and deletes everything: one PASS or FAIL line per step, in under two minutes.
#
#   examples/fleet/run.sh            unpacks etcd if it is missing, builds, runs, cleans up
#   BIN=DIR examples/fleet/run.sh    uses sliced and slicectl from DIR instead of building them
#
# The lab has network, mount and PID namespaces of its own. This machine's links, addresses, routes, firewall and /run are never
# changed, and the whole lab ends with this script.
# Exit status: 0 if every step passes, otherwise 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

main() {
    [ "$(id -u)" = 0 ] || {
        echo 'The demo creates network namespaces and installs Debian packages: run it as root.' >&2
        exit 1
    }
    install_what_is_missing
    if [ -n "${BIN:-}" ]; then
        bin=$(cd "$BIN" && pwd)
    else
        cargo build --release --locked --bins
        bin=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
    fi
    unpack_etcd
    # Its init: when it ends, the kernel kills all processes inside and removes the namespaces.
    exec unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
        env PATH="$bin:$etcd:$PATH" bash "$here/story.sh"
}

install_what_is_missing() {
    local missing=()
    command -v ip >/dev/null || missing+=(iproute2)
    command -v iptables >/dev/null || missing+=(iptables)
    command -v openssl >/dev/null || missing+=(openssl)
    [ -n "${BIN:-}" ] || { command -v cc >/dev/null || missing+=(gcc libc6-dev); }
    [ ${#missing[@]} = 0 ] && return
    echo "Installing ${missing[*]} ..."
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

# Not installed: Debian's package would start a member of etcd on this machine.
unpack_etcd() {
    if command -v etcd etcdctl >/dev/null; then
        etcd=$(dirname "$(command -v etcd)")
        return
    fi
    local dir=${CARGO_TARGET_DIR:-target}/etcd
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    etcd=$dir/root/usr/bin
    [ -x "$etcd/etcd" ] && return
    echo 'Unpacking etcd ...'
    local work
    work=$(mktemp -d)
    (
        cd "$work"
        apt-get -qq download etcd-server etcd-client
        for package in ./*.deb; do dpkg-deb --extract "$package" "$dir/root"; done
    )
    rm -rf "$work"
}

main
