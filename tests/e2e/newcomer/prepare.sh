#!/bin/sh
# What a newcomer's machine has before the first command of the README, and the Debian packages that it would download: OUTDIR/base is a
# bare Debian 12, whose only package source is the directory /srv/packages in it. Both are kept until the list of packages changes.
#
#   tests/e2e/newcomer/prepare.sh OUTDIR PACKAGE...
#
# Needs root and the network. Nothing is installed on this machine.
set -eu
out=${1:?usage: prepare.sh OUTDIR PACKAGE...}
shift
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
mkdir -p "$out"
out=$(cd "$out" && pwd)

main() {
    local key
    key=$(echo "$@" | cat - "$0" | sha256sum)
    if [ "$(cat "$out/key" 2>/dev/null)" = "$key" ]; then return; fi
    echo "prepare.sh: a bare Debian 12 in $out/base"
    rm -rf "$out/key" "$out/base"
    # The kernel refuses to make devices in a user namespace; debootstrap says why it fails.
    debootstrap --variant=minbase bookworm "$out/base" "$mirror" >"$out/log" 2>&1 || { tail "$out/log" >&2; exit 1; }
    download "$@" >>"$out/log" 2>&1 || { tail "$out/log" >&2; exit 1; }
    echo 'deb [trusted=yes] file:/srv/packages ./' >"$out/base/etc/apt/sources.list"
    rm -rf "$out/base/var/lib/apt/lists" "$out/base/etc/resolv.conf"
    echo "$key" >"$out/key"
}

# The kernel of the guest is downloaded by examples/guest/build.sh, without its dependencies.
download() {
    # A mirror's index is needed here only.
    unshare --mount sh -ec '
        base=$1
        shift
        mount --rbind /dev "$base/dev"
        mount -t proc proc "$base/proc"
        cp /etc/resolv.conf "$base/etc/resolv.conf"
        inside() { chroot "$base" env DEBIAN_FRONTEND=noninteractive "$@"; }
        inside apt-get -qq update
        inside apt-get -qq -y --no-install-recommends --download-only install "$@"
        kernel=$(inside apt-cache depends linux-image-cloud-amd64 | awk "/Depends: linux-image/ {print \$2; exit}")
        mkdir -p "$base/srv/packages"
        mv "$base"/var/cache/apt/archives/*.deb "$base/srv/packages"
        inside sh -c "cd /srv/packages && apt-get -qq -o APT::Sandbox::User=root download linux-image-cloud-amd64 $kernel"
    ' sh "$out/base" "$@"
    index >"$out/base/srv/packages/Packages"
}

# The index of a package source, as dpkg-scanpackages makes it.
index() {
    for package in "$out"/base/srv/packages/*.deb; do
        dpkg-deb -f "$package"
        echo "Filename: ./$(basename "$package")"
        echo "Size: $(stat -c %s "$package")"
        echo "SHA256: $(sha256sum "$package" | cut -d ' ' -f 1)"
        echo
    done
}

main "$@"
