#!/usr/bin/env bash
# Watches of programs: 200 of them at rest, one change that they receive, and many that 50 of them receive.
#   benches/watch.sh [SLOTS]     default: 250, with four changes each
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

slots=${1:-250}
command -v python3 >/dev/null || {
  echo 'watches skipped: python3 not found'
  exit 1
}

policy() { # NUMBER
  echo "config: {hypervisor: none, host_groups: [
    {name: bench, count: $slots, vcpu: 1, ram_mb: 128,
     network: {mode: isolated, range: 169.254.100.0/22, drop: [\"192.168.$1.0/24\"]}},
    {name: fan, count: 0, vcpu: 1, ram_mb: 128, network: {mode: isolated, range: 169.254.104.0/22}}]}" >"$work/m.yaml"
}

life() {
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock
  mkdir -p /run/groups.d
  begin
  policy 1
  slicectl apply -f "$work/m.yaml" --wait=300s >/dev/null
  python3 benches/watch.py rest "$daemon" 200
  python3 benches/watch.py fanout "$daemon" 200 50
  local turn
  for turn in 1 2 3; do
    policy $((2 * turn))
    python3 benches/watch.py changes "$daemon" 0 slicectl apply -f "$work/m.yaml" --wait=300s | sed 's/^/nobody_/'
    policy $((2 * turn + 1))
    python3 benches/watch.py changes "$daemon" 50 slicectl apply -f "$work/m.yaml" --wait=300s | sed 's/^/all_/'
  done
  kill "$daemon"
  wait "$daemon"
}

export slots
export -f life policy
measured=$(fresh bash -euc life)
value() { of "$measured" "$1"; }

lines=$(value all_lines)
per_line=$(awk "BEGIN { printf \"%.1f\", ($(value all_cpu) - $(value nobody_cpu)) / 1000 / 50 / $lines }")
printf '%s changes in %s s with 50 watches, %s s without\n' "$lines" \
  "$(per "$(value all_command)" 1000000)" "$(per "$(value nobody_command)" 1000000)"
printf 'one change until the first of 200 watches has it: %s ms\n' "$(value fanout_first)"
report '200 watches at rest: ns of CPU in 10 s, without the store' "$(value rest_with)" 0 '=='
report '200 watches at rest: wake-ups in 10 s, without the store' "$(value runs_with)" 0 '=='
# Most of it is the reader's own time: one process reads all of them.
report 'one change until the last of 200 watches has it: ms' "$(value fanout_last)" 25 '<'
# On top of the CPU time without watches; the readers take most of the other time.
report 'changes that 50 watches receive: us of CPU per line' "$per_line" 20 '<'
exit "$failed"
