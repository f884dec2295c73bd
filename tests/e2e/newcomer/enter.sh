#!/bin/sh
# The newcomer's machine: a bare Debian with network, mount, PID, IPC and UTS namespaces of its own. Runs SESSION/script in it, as its
# first process. Everything that is written in it is in memory, and ends with it.
#
#   enter.sh BASE SESSION SOURCE BINARIES      outside: makes the namespaces
#
# BASE is from prepare.sh. SOURCE is the repository that `git clone $URL` clones. BINARIES has the programs that `cargo build` provides; or
# it is empty, and cargo, the one of this machine with its downloaded crates, compiles.
set -eu
[ "${1:-}" = inside ] || exec unshare --mount --propagation private --net --pid --ipc --uts --fork --kill-child "$0" inside "$@"
base=$2 session=$3 source=$4 binaries=$5

main() {
    compose_root
    provide cargo
    host_network
    cd "$root"
    pivot_root . mnt
    cd /root
    umount -l /mnt
    exec env -i HOME=/root URL=/srv/source LANG=C.UTF-8 TERM=dumb SESSION=/srv/session CARGO_NET_OFFLINE=true DEBIAN_FRONTEND=noninteractive \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        bash /srv/session/script
}

compose_root() {
    # Below a file system of its own, so that the machine's directories are only read.
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    root=/mnt/root
    mount -t overlay overlay -o "lowerdir=$base,upperdir=/mnt/upper,workdir=/mnt/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
    mkdir -p "$root/srv/session" "$root/srv/source" "$root/opt/rust"
    mount --bind "$session" "$root/srv/session"
    mount --bind -o ro "$source" "$root/srv/source"
    printf '[safe]\n\tdirectory = *\n' >"$root/root/.gitconfig"
    hostname newcomer
}

# Compilers are no part of Debian: the newcomer has Rust by other means.
provide() { # cargo
    if [ -n "$binaries" ]; then
        mkdir -p "$root/opt/rust/bin" "$root/srv/binaries"
        mount --bind -o ro "$binaries" "$root/srv/binaries"
        printf '%s\n' '#!/bin/sh -e' \
            '[ "$*" = "build --release --locked" ] || { echo "this cargo only builds: $*" >&2; exit 1; }' \
            'mkdir -p target/release && ln -s /srv/binaries/sliced /srv/binaries/slicectl target/release' \
            >"$root/opt/rust/bin/$1"
        chmod 755 "$root/opt/rust/bin/$1"
    else
        mount --bind -o ro "$(rustc --print sysroot)" "$root/opt/rust"
        mkdir "$root/root/.cargo" /mnt/cargo /mnt/cargo.work
        mount -t overlay overlay -o "lowerdir=${CARGO_HOME:-$HOME/.cargo},upperdir=/mnt/cargo,workdir=/mnt/cargo.work" "$root/root/.cargo"
    fi
}

# As after a boot: lo, and a network card with a default route that leads nowhere.
host_network() {
    ip link set lo up
    ip link add eth0 type veth peer name wire
    ip link set wire up
    ip addr add 203.0.113.1/24 dev eth0
    ip link set eth0 up
    ip route add default via 203.0.113.10
}

main
