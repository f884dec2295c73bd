#!/bin/sh
# All tests: what `make test` runs. Root, or a user in a user namespace where the kernel allows it.
set -eu
cd "$(dirname "$0")/.."

SLICE_GUEST_DIR="$(realpath -m "${CARGO_TARGET_DIR:-target}/guest")"
export SLICE_GUEST_DIR
export SLICE_AGENT_BIN="$SLICE_GUEST_DIR/slice-agent"

build_guests() {
    # Optimisation at link time takes longer than the tests of the result.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 examples/guest/agent.sh "$SLICE_AGENT_BIN"
    examples/guest/build.sh "$SLICE_GUEST_DIR"
    examples/debian/build.sh "$SLICE_GUEST_DIR/debian" "$SLICE_AGENT_BIN" ||
        echo 'run.sh: there is no Debian guest: the tests with one will fail' >&2
}

if [ "$(id -u)" != 0 ]; then
    if unshare --user --map-root-user --net --mount true 2>/dev/null; then
        echo "run.sh: not root: going on as root of a user namespace"
        # What must be downloaded is downloaded first: there is no network inside.
        cargo fetch --locked
        tests/setup.sh
        build_guests
        export SLICE_TESTS_INSIDE=1 CARGO_NET_OFFLINE=true
        exec unshare --user --map-root-user --net --mount tests/run.sh
    fi
    cat >&2 <<'WHY'
*******************************************************************************
run.sh: CANNOT RUN THE TESTS THAT NEED A KERNEL: we are not root, and this kernel
lets no plain user make namespaces. Run as root, or as root allow it:
    sysctl -w kernel.unprivileged_userns_clone=1                (older Debian)
    sysctl -w kernel.apparmor_restrict_unprivileged_userns=0    (Ubuntu)
The tests that need no privileges run now.
*******************************************************************************
WHY
    [ -z "${CI:-}" ] || exit 1
    exec cargo test --locked --no-fail-fast --lib --bins --test pure
fi

# Root of a user namespace can install nothing.
if [ -z "${SLICE_TESTS_INSIDE:-}" ]; then
    tests/setup.sh
    build_guests
fi
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
# A comment that links to what does not exist, or not any more, is an error.
RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --quiet --locked --no-deps --document-private-items --lib
cargo test --locked
