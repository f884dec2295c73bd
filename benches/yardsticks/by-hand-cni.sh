#!/usr/bin/env bash
# What `cnitool add` does in a loop: for each slot a namespace, and the plugins of the chain one after the other, each fed with
# the result of the one before. Prints the microseconds that the plugins alone have taken, of all slots together.
# Runs in the calling shell's network namespace: only ever start it in a throw-away one. benches/run.sh does.
#
#   by-hand-cni.sh SLOTS FIRST CONF...   a file for each plugin, without prevResult; FIRST is the number of the first slot
set -euo pipefail

slots=${1:?how many slots} first=${2:?number of the first}
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
