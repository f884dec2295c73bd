#!/bin/sh
# Builds the tiny guest: OUTDIR/tiny. Takes a quarter of a second; needs gcc and nothing else.
#
#   tests/guest/build.sh OUTDIR
set -eu
out=${1:?usage: build.sh OUTDIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")"

# No vectors: nobody has enabled them. No red zone: an interrupt would write into it.
# The new one is renamed over the old one, so that a guest that boots meanwhile reads one or the other; the same one is not replaced,
# because sliced restarts a VM if its kernel file is another one.
new=$(mktemp "$out/tiny.XXXXXX")
trap 'rm -f "$new"' EXIT
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-stack-protector -fcf-protection=none \
    -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mno-red-zone -mgeneral-regs-only \
    -nostdlib -static -no-pie -Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096,--no-warn-rwx-segments \
    -T link.ld -o "$new" start.S main.c machine.c power.c acpi.c virtio.c card.c net.c vsock.c words.c
chmod 755 "$new"
cmp -s "$new" "$out/tiny" || mv "$new" "$out/tiny"
