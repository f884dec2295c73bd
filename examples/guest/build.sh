#!/bin/sh
# Builds a small Linux guest from Debian packages: OUTDIR/vmlinuz, OUTDIR/initrd and OUTDIR/initrd-agent.
#
#   examples/guest/build.sh OUTDIR
#
# It consists of Debian's cloud kernel and busybox; nothing is compiled. Existing files are not built again; missing packages are
# installed with apt-get if the user is root. Boots in about 2.5 s under QEMU without KVM.
# The behaviour of the guest in `initrd`: see init and with-probes.sh. In `initrd-agent` the init is slice-agent, as in
# docs/guest-access.md; it is built only if OUTDIR/slice-agent exists (examples/guest/agent.sh OUTDIR/slice-agent).
set -eu
out=${1:?usage: build.sh OUTDIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Drivers in the order of their dependencies: virtio over MMIO and PCI, disks, the network, the power button, vsock.
modules='virtio_ring virtio virtio_mmio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci
virtio_blk failover net_failover virtio_net evdev button pvpanic pvpanic-mmio
vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport'

need() { # PROGRAM|"" PACKAGE
    [ -n "$1" ] && command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] || { echo "build.sh: $2 is not installed: apt-get install $2" >&2; exit 1; }
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$2" >/dev/null
}

static_busybox() {
    command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1
}

fetch_kernel() {
    package() { apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}'; }
    [ -n "$(package)" ] || apt-get -qq update
    (cd "$out" && rm -f ./*.deb && apt-get -qq -o APT::Sandbox::User=root download "$(package)")
    rm -rf "$out/kernel.new" "$out/kernel"
    dpkg-deb -x "$out"/linux-image-*.deb "$out/kernel.new"
    mv "$out/kernel.new" "$out/kernel"
    rm -f "$out"/*.deb
}

make_initrd() { # NAME INIT
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    (cd "$root" && mkdir bin dev proc sys etc modules)
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$2" "$root/init"
    chmod 755 "$root" "$root/init" "$root/bin/busybox"
    if [ "$1" = initrd-agent ]; then
        # The init of `initrd` makes these links itself.
        for applet in $("$root/bin/busybox" --list); do
            [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
        done
    fi
    number=10
    for module in $modules; do
        cp "$(find "$out/kernel/lib/modules" -name "$module.ko*" | head -n 1)" "$root/modules/$number-$module.ko"
        number=$((number + 1))
    done
    (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) > "$out/$1.new"
    mv "$out/$1.new" "$out/$1"
    rm -rf "$root"
    trap - EXIT
}

# Whether an initrd is missing or older than what it is made of.
outdated() { # NAME INIT
    [ ! -e "$out/$1" ] || [ "$2" -nt "$out/$1" ] || [ "$here/build.sh" -nt "$out/$1" ]
}

# Debian's plain busybox needs a C library, which the guest does not have.
static_busybox || need '' busybox-static
need cpio cpio
[ -d "$out/kernel" ] || fetch_kernel
[ -e "$out/vmlinuz" ] || { cp "$out"/kernel/boot/vmlinuz-* "$out/vmlinuz.new"; mv "$out/vmlinuz.new" "$out/vmlinuz"; }
if outdated initrd "$here/init"; then
    make_initrd initrd "$here/init"
fi
if [ -e "$out/slice-agent" ] && outdated initrd-agent "$out/slice-agent"; then
    make_initrd initrd-agent "$out/slice-agent"
fi
