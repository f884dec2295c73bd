#!/usr/bin/env bash
# `make demo`: six real guests in a private lab on this machine, and everything they must not do.
#
#   examples/demo/run.sh             installs what is missing, builds, runs, cleans up
#   KEEP=1 examples/demo/run.sh      leaves the lab up and says how to look around
#   BIN=DIR examples/demo/run.sh     takes sliced and slicectl from DIR, builds nothing
#
# The lab is a network, mount and process namespace of its own. This machine's links, addresses, routes, firewall and
# /run are never touched, and all of the lab ends with the process that holds it.
# Exit status: 0 when every line says PASS, else 1.
set -euo pipefail
demo=$(cd "$(dirname "$0")" && pwd)
cd "$demo/../.."

main() {
    ask_for_root
    install_what_is_missing
    build
    open_the_lab
    local status=0
    nsenter --target "$inside" --net --mount --pid \
        env PATH="$bin:$PATH" KEEP="${KEEP:-}" LAB_HOLDER="$inside" bash "$demo/story.sh" "$guest" || status=$?
    exit "$status"
}

ask_for_root() {
    [ "$(id -u)" = 0 ] && return
    echo 'The demo makes network namespaces and installs Debian packages: run it as root.' >&2
    exit 1
}

install_what_is_missing() {
    local missing=()
    lacks qemu-system-x86_64 && missing+=(qemu-system-x86)
    lacks ip && missing+=(iproute2)
    lacks iptables && missing+=(iptables)
    lacks cpio && missing+=(cpio)
    [ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || missing+=(containernetworking-plugins)
    # Debian's plain busybox has fewer applets and needs a C library.
    { lacks busybox || ldd "$(command -v busybox)" >/dev/null 2>&1; } && missing+=(busybox-static)
    [ -n "${BIN:-}" ] || { lacks cc && missing+=(gcc libc6-dev); }
    [ ${#missing[@]} = 0 ] && return
    echo "Installing ${missing[*]} ..."
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

lacks() { # PROGRAM
    ! command -v "$1" >/dev/null
}

build() {
    if [ -n "${BIN:-}" ]; then
        bin=$(cd "$BIN" && pwd)
    else
        cargo build --release --locked --bins
        bin=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
    fi
    guest=$(realpath -m "${CARGO_TARGET_DIR:-target}/guest")
    examples/guest/build.sh "$guest"
}

# A process that holds the lab's namespaces, as init of its process namespace: when it ends, the kernel ends and
# removes everything inside. Without KEEP it ends with this script, however this script ends.
open_the_lab() {
    local leash=(setpriv --pdeathsig KILL)
    if [ -n "${KEEP:-}" ]; then leash=(setsid); fi
    # Bash, because an init must reap what others leave behind.
    "${leash[@]}" unshare --net --mount --pid --fork --kill-child --mount-proc \
        bash -c 'trap "exit 0" TERM; while :; do sleep 1000 & wait; done' sliced-demo-lab \
        </dev/null >/dev/null 2>&1 &
    local outside=$! tries=100
    until inside=$(the_child_of "$outside") && is_bash "$inside"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo 'FAIL  this kernel makes no private lab (unshare)' >&2; exit 1; }
        sleep 0.05
    done
    if [ -z "${KEEP:-}" ]; then
        # shellcheck disable=SC2064
        trap "kill -KILL $outside 2>/dev/null; wait $outside 2>/dev/null || true" EXIT
    fi
}

the_child_of() { # PID
    local children
    children=$(cat "/proc/$1/task/$1/children" 2>/dev/null)
    echo "${children%% *}"
}

# unshare does all its work before it becomes bash.
is_bash() { # PID
    [ "$(cat "/proc/$1/comm" 2>/dev/null)" = bash ]
}

main
