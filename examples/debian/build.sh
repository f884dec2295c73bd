#!/bin/sh
# Builds root disks with Debian 12 and systemd: OUTDIR/disk.img, OUTDIR/disk-agent.img, OUTDIR/vmlinuz and OUTDIR/initrd.
#
#   examples/debian/build.sh OUTDIR AGENT
#
# All files are from Debian's packages. `disk-agent.img` also has AGENT (see examples/guest/agent.sh) as a systemd unit, for `agent: baked`;
# `disk.img` has no agent, for `agent: inject`. Both are raw ext4 images. The user is `ubuntu` (1000), with bash; root logs in on the
# console without a password.
#
# It needs mmdebstrap and mke2fs, and fakeroot if the user is not root; as root, missing packages are installed with apt-get. Mounts are in
# a namespace of its own. MIRROR names another mirror than that of /etc/apt/sources.list. Existing files are not built again.
set -eu
out=${1:?usage: build.sh OUTDIR AGENT}
agent=${2:?usage: build.sh OUTDIR AGENT}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)

current() { # FILE: whether it is newer than what it is made of
    [ -e "$out/$1" ] && [ ! "$here/build.sh" -nt "$out/$1" ] && [ ! "$here/customize.sh" -nt "$out/$1" ]
}
if current disk.img && current disk-agent.img && [ ! "$agent" -nt "$out/disk-agent.img" ]; then
    exit 0
fi

need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] || { echo "build.sh: $2 is not installed: apt-get install $2" >&2; exit 1; }
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$2" >/dev/null
}
PATH=$PATH:/usr/sbin:/sbin
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
if [ "$(id -u)" = 0 ]; then
    private='unshare --mount --propagation private'
    as_root=
else
    need fakeroot fakeroot
    private=
    as_root='fakeroot --'
fi

work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Documentation and translations are a third of the size. With `update_initramfs=no` one initrd is made at the end, and not one for each
# package.
# shellcheck disable=SC2016 # $1 is for the shell of mmdebstrap
# shellcheck disable=SC2086 # lists of words
$private mmdebstrap --variant=minbase --format=tar \
    --include=usr-is-merged,systemd-sysv,udev,kmod,initramfs-tools,linux-image-cloud-amd64,iproute2,dbus \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='force-confold' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf"' \
    --customize-hook="$here"/customize.sh \
    bookworm "$work/root.tar" ${MIRROR:-} >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

# Device nodes are not needed: the kernel provides them.
cat > "$work/images.sh" <<'IMAGES'
set -eu
cd "$1"
mkdir root
tar -C root -xf root.tar --exclude='./dev/*'
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd
rm -rf root/boot/* root/vmlinuz* root/initrd.img*
image() { mke2fs -q -t ext4 -O "^has_journal" -m 0 -L "$1" -d root "$1.img" 640M >/dev/null; }
image disk
install -D -m 755 "$2" root/usr/local/bin/slice-agent
install -D -m 644 "$3" root/etc/systemd/system/slice-agent.service
mkdir -p root/etc/systemd/system/sysinit.target.wants
ln -s /etc/systemd/system/slice-agent.service root/etc/systemd/system/sysinit.target.wants/
image disk-agent
IMAGES
# shellcheck disable=SC2086 # a list of words
$as_root sh "$work/images.sh" "$work" "$agent" "$here/slice-agent.service"
chmod 644 "$work"/vmlinuz "$work"/initrd "$work"/*.img
for file in vmlinuz initrd disk.img disk-agent.img; do
    mv "$work/$file" "$out/$file"
done
