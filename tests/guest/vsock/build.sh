#!/bin/sh
# Appends servers on vsock ports to the initial RAM file system of a Linux guest. Needs gcc and the static C library.
#
#   tests/guest/vsock/build.sh BASE_INITRD OUT
set -eu
base=${1:?usage: build.sh BASE_INITRD OUT}
out=${2:?usage: build.sh BASE_INITRD OUT}
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/start"
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -s -o "$dir/start/vsock" "$here/server.c"
# The kernel unpacks archives one after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
{ cat "$base"; (cd "$dir" && find start | cpio --quiet -o -H newc -R 0:0); } > "$out.new"
mv "$out.new" "$out"
