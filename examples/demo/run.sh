#!/usr/bin/env bash
# `make demo`: runs six guests in a private lab on this machine and checks their isolation.
#
#   examples/demo/run.sh             installs what is missing, builds, runs, cleans up
#   KEEP=1 examples/demo/run.sh      keeps the lab and prints how to enter it
#   BIN=DIR examples/demo/run.sh     uses sliced and slicectl from DIR instead of building them, and the static agent from
#                                    target/guest if it exists
#
# The lab has network, mount and PID namespaces of its own. This machine's links, addresses, routes, firewall and /run are never
# changed, and the whole lab ends with the process that holds its namespaces.
# Exit status: 0 if every check passes, otherwise 1.
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
        env PATH="$bin:$PATH" SLICE_GUEST_AGENT="$agent" KEEP="${KEEP:-}" LAB_HOLDER="$inside" bash "$demo/story.sh" "$guest" || status=$?
    exit "$status"
}

ask_for_root() {
    [ "$(id -u)" = 0 ] && return
    echo 'The demo creates network namespaces and installs Debian packages: run it as root.' >&2
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
    agent=$guest/slice-agent
    # Optimisation at link time would take longer than the demo.
    [ -x "$agent" ] || CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 examples/guest/agent.sh "$agent"
}

# A process that holds the lab's namespaces, as the init of its PID namespace: when it ends, the kernel kills all processes inside and
# removes the namespaces. Without KEEP it ends with this script, in whatever way this script ends.
open_the_lab() {
    local leash=(setpriv --pdeathsig KILL)
    if [ -n "${KEEP:-}" ]; then leash=(setsid); fi
    # Bash, because an init must reap orphaned processes.
    "${leash[@]}" unshare --net --mount --pid --fork --kill-child --mount-proc \
        bash -c 'trap "exit 0" TERM; while :; do sleep 1000 & wait; done' sliced-demo-lab \
        </dev/null >/dev/null 2>&1 &
    local outside=$! tries=100
    until inside=$(the_child_of "$outside") && is_bash "$inside"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { echo 'FAIL  this kernel cannot create the private lab (unshare failed)' >&2; exit 1; }
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

# unshare has done all its work when it executes bash.
is_bash() { # PID
    [ "$(cat "/proc/$1/comm" 2>/dev/null)" = bash ]
}

main
