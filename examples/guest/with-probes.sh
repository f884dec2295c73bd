#!/bin/sh
# Builds an initial RAM file system with probes for the guest: the base one with a file /probes appended.
#
#   examples/guest/with-probes.sh BASE_INITRD PROBES OUT
#
# One probe per line; `#` starts a comment; NAME is any word:
#   ping  NAME ADDRESS            ok: an echo request is answered
#   tcp   NAME ADDRESS PORT       ok: a connection is accepted
#   spoof NAME SOURCE ADDRESS     ok: an echo request from a source address of another host is answered
# The guest repeats each about once a second and reports on its serial console when the result changes:
#   GUEST <hostname> <NAME> ok|blocked
set -eu
base=${1:?usage: with-probes.sh BASE_INITRD PROBES OUT}
probes=${2:?usage: with-probes.sh BASE_INITRD PROBES OUT}
out=${3:?usage: with-probes.sh BASE_INITRD PROBES OUT}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cp "$probes" "$dir/probes"
# The kernel unpacks archives one after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
{ cat "$base"; (cd "$dir" && echo probes | cpio --quiet -o -H newc -R 0:0); } > "$out.new"
mv "$out.new" "$out"
