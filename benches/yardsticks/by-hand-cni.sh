#!/usr/bin/env bash
# A loop of `cnitool add`: for each slot a namespace, and the plugins of the list one after the other, each with the result of the
# previous one. Prints the total microseconds of the plugins alone for all slots.
# Runs in the calling shell's network namespace: start it only in a temporary one, as benches/run.sh does.
#
#   by-hand-cni.sh SLOTS FIRST CONF...   a file for each plugin, without prevResult; FIRST is the number of the first slot
set -euo pipefail

slots=${1:?number of slots} first=${2:?number of the first slot}
shift 2
export CNI_COMMAND=ADD CNI_IFNAME=eth0 CNI_PATH=${CNI_PATH:-/opt/cni/bin:/usr/lib/cni}

plugin() { # CONF
  local name found
  name=$(sed -n 's/.*"type": *"\([a-z-]*\)".*/\1/p' "$1" | head -n 1)
  found=$(PATH=$CNI_PATH command -v "$name")
  echo "$found"
}

plugins=() confs=()
for conf in "$@"; do
  plugins+=("$(plugin "$conf")")
  confs+=("$(<"$conf")")
done

spent=0
for ((slot = first; slot < first + slots; slot++)); do
  ip netns add "cni$slot"
  ip -n "cni$slot" link set lo up
  export CNI_CONTAINERID=hand-$slot CNI_NETNS=/run/netns/cni$slot
  result=
  for ((n = 0; n < ${#plugins[@]}; n++)); do
    conf=${confs[n]}
    if [ -n "$result" ]; then conf="{\"prevResult\": $result, ${conf#\{}"; fi
    began=${EPOCHREALTIME/./}
    result=$("${plugins[n]}" <<<"$conf")
    spent=$((spent + ${EPOCHREALTIME/./} - began))
  done
done
echo "$spent"
