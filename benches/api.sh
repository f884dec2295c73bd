#!/usr/bin/env bash
# The REST API: lists of 1,000 VMs, the time of a create, and 1,000 creates and deletes by 32 clients, in groups of isolated slots.
#   benches/api.sh [VMS]     default: 1000; a multiple of 250
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

vms=${1:-1000}
command -v python3 >/dev/null || {
  echo 'API skipped: python3 not found'
  exit 1
}

group() { # NUMBER COUNT
  echo "  {name: bench$1, count: $2, vcpu: 1, ram_mb: 128, network: {mode: isolated, range: 169.254.$((100 + 4 * $1)).0/22}},"
}

life() {
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock SLICE_API_PORT=8080
  mkdir -p /run/groups.d
  begin
  # Those of the last group are created by requests, with tags.
  local number groups=$((vms / 250))
  {
    echo 'config: {hypervisor: none, host_groups: ['
    for ((number = 1; number < groups; number++)); do group "$number" 250; done
    group 0 0
    echo ']}'
  } >"$work/m.yaml"
  slicectl apply -f "$work/m.yaml" --wait=300s >/dev/null
  python3 benches/api.py create "$daemon" 250
  python3 benches/api.py lists "$daemon" 300
  python3 benches/api.py delete "$daemon"
  python3 benches/api.py answers "$daemon" 100
  python3 benches/api.py rounds "$daemon" 10 $((vms / 2)) 32
  kill "$daemon"
  wait "$daemon"
}

export vms
export -f life group
measured=$(fresh bash -euc life)
value() { of "$measured" "$1"; }

printf 'milliseconds, p50 and p99, %s VMs (%s KB):' "$vms" "$(value kilobytes)"
for list in nodes_unix nodes_tcp tag_unix tag_tcp objects_unix objects_tcp; do
  printf ' %s %s %s;' "$list" "$(value "$list"_p50)" "$(value "$list"_p99)"
done
echo
printf 'milliseconds of CPU of the daemon: /nodes %s, with tag= %s, /v1/objects/vm %s\n' \
  "$(value nodes_cpu)" "$(value tag_cpu)" "$(value objects_cpu)"
printf 'milliseconds, p99, of 4 ms of CPU alone: %s\n' "$(value burnt_p99)"
for list in nodes tag; do
  for socket in unix tcp; do
    name="GET /nodes, $vms VMs, $socket"
    [ $list = nodes ] || name="GET /hostgroup/G/nodes?tag=, $socket"
    report "$name: ms, p50" "$(value ${list}_${socket}_p50)" 10 '<'
    report "$name: ms, p99" "$(value ${list}_${socket}_p99)" 10 '<'
  done
done
# The same with all conditions and settings, several times as long.
report "GET /v1/objects/vm, $vms VMs, unix: ms, p50" "$(value objects_unix_p50)" 100 '<'
printf 'milliseconds: create to answer %s; vm add to answer %s, to Ready %s\n' \
  "$(value create)" "$(value added)" "$(value reconciled)"
report 'create to answer, beyond the reconcile time of vm add: ms' "$(value beyond)" 2 '<='
printf '%s creates and deletes a round, 32 clients: %s a second; MB resident after each round: %s\n' \
  "$((vms / 2))" "$(value rate)" "$(awk '$1 ~ /^resident_/ { printf "%.1f ", $2 / 1024 }' <<<"$measured")"
report 'rounds: requests that failed' "$(value errors)" 0 '=='
report 'rounds: namespaces, links, leases, files, sockets left' "$(value left)" 0 '=='
report 'rounds: descriptors of the daemon, on top of the first' "$(value descriptors)" 0 '<='
report 'KB resident, growth a round (linear regression)' "$(value growth)" 512 '<='
report 'last round: KB of the state directory, on top' "$(value state_growth)" 2048 '<='
exit "$failed"
