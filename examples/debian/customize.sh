#!/bin/sh
# Configures the root file system ROOT of build.sh: a hook of mmdebstrap.
#
#   customize.sh ROOT
set -eu
root=$1

echo debian > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' > "$root/etc/hosts"
echo '/dev/vda / ext4 defaults 0 0' > "$root/etc/fstab"
chroot "$root" useradd --create-home --shell /bin/bash --uid 1000 ubuntu
chroot "$root" passwd -q -d root
# The network is that of `ip=` on the kernel command line, which names eth0: the link keeps that name.
chroot "$root" systemctl -q enable systemd-networkd.service systemd-network-generator.service
ln -sf /dev/null "$root/etc/systemd/network/99-default.link"
# What a guest of a few minutes does not need, and what would wait for a device that it does not have.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-tmpfiles-clean.timer getty@tty1.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Without nested virtualization, and without ciphers that nothing uses: their self-tests are a third of the time of a boot without KVM.
printf 'install %s /bin/true\n' kvm kvm_amd kvm_intel aesni_intel sha512_ssse3 sha256_ssse3 sha1_ssse3 ghash_clmulni_intel \
    > "$root/etc/modprobe.d/slice.conf"

# The disks of all VMMs, and the file system; no others.
cat > "$root/etc/initramfs-tools/conf.d/slice" <<'CONF'
MODULES=list
COMPRESS=gzip
CONF
printf '%s\n' virtio_mmio virtio_pci virtio_blk virtio_net ext4 > "$root/etc/initramfs-tools/modules"
echo update_initramfs=yes > "$root/etc/initramfs-tools/update-initramfs.conf"
chroot "$root" update-initramfs -c -k all >/dev/null
rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt"/*.bin "$root/var/cache/apt/archives"/*.deb "$root/var/log"/*.log
