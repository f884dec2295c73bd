#!/usr/bin/env bash
# A shell loop that starts VMs with the command lines that `sliced` has run, on existing TAPs.
# Prints the microseconds from the first start until every guest has reported that its gateway responds.
# Runs in the calling shell's namespaces: start it only in temporary ones, as benches/vmm.sh does.
set -euo pipefail

vms=${1:?directory with a subdirectory per VM: argv, dir, tap}
gateway=${2:?the address of the bridge}

ip link add hand0 type bridge
ip addr add "$gateway" dev hand0
ip link set hand0 up
for vm in "$vms"/*; do
  tap=$(<"$vm/tap") dir=$(<"$vm/dir")
  ip tuntap add "$tap" mode tap
  ip link set "$tap" master hand0 up
  mkdir -p "$dir"
done

cool_down
pids=()
trap 'kill "${pids[@]}" 2>/dev/null' EXIT
begin=$(date +%s%N)
for vm in "$vms"/*; do
  mapfile -d '' -t argv <"$vm/argv"
  cd "$(<"$vm/dir")"
  "${argv[@]}" >>console.log 2>&1 </dev/null &
  pids+=($!)
done
all_ready "${#pids[@]}"
echo $((($(date +%s%N) - begin) / 1000))
