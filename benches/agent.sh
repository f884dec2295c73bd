#!/usr/bin/env bash
# Speed of guest access: a Linux guest in QEMU, with slice-agent. The floor is a plain connection through the same vsock device.
#   benches/agent.sh [REQUESTS]     default: 50
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

requests=${1:-50}
for program in qemu-system-x86_64 gcc python3; do
  command -v "$program" >/dev/null || {
    echo "guest access skipped: $program not found"
    exit 1
  }
done

# The guest of the examples with the agent, an echo server and a server that only reads.
examples/guest/build.sh "$target/guest"
[ -x "$target/guest/slice-agent" ] || examples/guest/agent.sh "$target/guest/slice-agent"
mkdir -p "$work/root/start" "$work/root/bin"
gcc -std=gnu11 -O2 -static -s -o "$work/root/bin/vsock-servers" tests/guest/vsock/server.c
cp "$target/guest/slice-agent" "$work/root/bin/slice-agent"
printf '#!/bin/sh\n/bin/vsock-servers &\nexec /bin/slice-agent serve\n' >"$work/root/start/agent"
chmod 755 "$work/root/start/agent"
touch "$work/root/no-agent"
{
  cat "$target/guest/initrd"
  (cd "$work/root" && find . | cpio --quiet -o -H newc -R 0:0)
} >"$work/initrd"

life() {
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock SLICE_IMAGES=$work
  mkdir -p /run/groups.d
  cp "$target/guest/vmlinuz" "$work/vmlinuz"
  begin
  cat >"$work/m.yaml" <<YAML
config: {hypervisor: qemu, kernel_file: $work/vmlinuz, initrd_file: $work/initrd, host_groups: [
  {name: bench, count: 0, vcpu: 1, ram_mb: 512, network: {mode: isolated, range: 169.254.100.0/22}}]}
YAML
  slicectl apply -f "$work/m.yaml" --wait=60s >/dev/null
  python3 benches/agent.py "$requests" "$work/file"
  local before
  sleep 1
  before=$(busy)
  sleep 10
  echo "rest $(($(busy) - before))"
  slicectl delete hostgroup/bench --wait=60s >/dev/null
  kill "$daemon"
  wait "$daemon"
}

# Nanoseconds of CPU of the daemon, without the threads of the store: these wait with a timeout of a second, whatever happens.
busy() {
  local task
  for task in /proc/"$daemon"/task/*; do
    grep -q "^sled" "$task/comm" || cat "$task/schedstat"
  done | awk '{ all += $1 } END { print all }'
}

export target requests
export -f life busy
measured=$(fresh bash -euc life)
value() { awk -v key="$1" '$1 == key { print $2 }' <<<"$measured"; }

printf 'milliseconds, p50: connect and echo %s; exec of true at the agent %s, through sliced %s, with slicectl %s (slicectl version: %s)\n' \
  "$(value echo)" "$(value direct)" "$(value through)" "$(value command)" "$(value version)"
# A plain copy is that of a file, by a program in the guest that reads and writes; a stream is of bytes in memory, and is not written.
printf 'MB/s: stream into the guest %s, out of it %s; plain copy %s, %s; cp %s, %s\n' \
  "$(value stream_in)" "$(value stream_out)" "$(value plain_in)" "$(value plain_out)" "$(value cp_in)" "$(value cp_out)"
printf 'seconds until the agent answers %s, of which it has run for %s; KB of the process beside QEMU: %s private, %s with file pages\n' \
  "$(value until_agent)" "$(value agent_age)" "$(value back_end_private)" "$(value back_end_rss)"
on_top=$(value on_top)
report 'exec of true: on top of the time of the guest, ms' "$on_top" 5 '<'
report 'exec of true: the same, in connections with an echo' "$(per "$on_top" "$(value echo)")" 3 '<='
report 'cp into the guest: ratio to a plain copy' "$(per "$(value cp_in)" "$(value plain_in)")" 0.5 '>='
report 'cp out of the guest: ratio to a plain copy' "$(per "$(value cp_out)" "$(value plain_out)")" 0.5 '>='
report 'cp into the guest: ratio to a stream' "$(per "$(value cp_in)" "$(value stream_in)")" 0.5 '>='
report 'cp out of the guest: ratio to a stream' "$(per "$(value cp_out)" "$(value stream_out)")" 0.5 '>='
report 'vm add until the agent answers: ratio to its start' \
  "$(awk "BEGIN { printf \"%.2f\", $(value until_agent) / ($(value until_agent) - $(value agent_age)) }")" 1.1 '<='
report 'an agent that answers: ns of CPU in 10 s, without the store' "$(value rest)" 0 '=='
exit "$failed"
