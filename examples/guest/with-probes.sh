#!/bin/sh
# Tells a guest what to try: the base initial RAM file system with a file /probes appended.
#
#   examples/guest/with-probes.sh BASE_INITRD PROBES OUT
#
# One probe a line; `#` starts a comment; NAME is a word of your choice:
#   ping  NAME ADDRESS            an echo is answered
#   tcp   NAME ADDRESS PORT       a connection is accepted
#   spoof NAME SOURCE ADDRESS     an echo from a source that is not the guest's is answered
# The guest tries each about once a second and says so on its serial console whenever the answer changes:
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
