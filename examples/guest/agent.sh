#!/bin/sh
# Builds slice-agent, the program in the guest, as a static binary: OUT.
#
#   examples/guest/agent.sh OUT
#
# It needs cargo and the static C library (package libc6-dev), and runs in every Linux guest of this architecture. The build has a
# directory of its own, because other flags of the compiler would cause a new build of everything in the usual one.
set -eu
out=${1:?usage: agent.sh OUT}
here=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$here/target}/guest-agent
host=$(rustc -vV | sed -n 's/^host: //p')

# With --target, the flags do not apply to build scripts and macros, which cannot be static.
(cd "$here" && RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_RELEASE_STRIP=true \
    "${CARGO:-cargo}" build --quiet --locked --release --no-default-features --target "$host" --bin slice-agent --target-dir "$target")
install -D -m 755 "$target/$host/release/slice-agent" "$out"
