#!/usr/bin/env bash
# Speed with real VMs: tiny guests (tests/guest) in QEMU, compared with a shell loop that runs the same command lines.
#   benches/vmm.sh [VMS]     default: 32
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

vms=${1:-32}
gateway=10.64.0.1/22

command -v qemu-system-x86_64 >/dev/null || {
  echo 'VMs skipped: QEMU not found (apt-get install qemu-system-x86)'
  exit 1
}
tests/guest/build.sh "$work" && cc -O2 -static -o "$work/instant" benches/yardsticks/instant.c

guests() { # COUNT
  echo "config: {hypervisor: qemu, kernel_file: $work/tiny, host_groups: [{name: bench, count: $1, vcpu: 1, ram_mb: 32,
    network: {bridge: bench0, tap_prefix: b-, gateway: $gateway}}]}"
}

# Waits until this number of guests have reported that their gateway responds.
all_ready() { # COUNT
  local i
  for ((i = 0; i < 3000; i++)); do
    [ "$({ grep -rls --include=console.log '^ready ' /run/slice/vm || true; } | wc -l)" -lt "$1" ] || return 0
    sleep 0.01
  done
  echo 'vmm.sh: not all guests are ready' >&2
  return 1
}

# A machine that is itself a VM returns freed memory to its host after a while, and the next use of that memory is slower. Both sides wait
# for this: otherwise the side that starts sooner after the end of the other one saves up to a third of its time.
cool_down() { sleep 4; }

settle() { # starts the daemon of a private host, with its directories
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock SLICE_IMAGES=$work
  mkdir -p /run/groups.d
  begin
}

# VMMs outlive the daemon: the groups are deleted before it ends.
leave() {
  slicectl delete hostgroup/bench --wait=60s >/dev/null
  kill "$daemon"
  wait "$daemon"
}

# Saves what a script needs to start the same VMs.
remember() {
  local pid vm
  rm -rf "$work/vms"
  for pid in $(slicectl get vms -o json | jq '.items[].status.vmm.pid'); do
    vm=$work/vms/$pid
    mkdir -p "$vm"
    cp "/proc/$pid/cmdline" "$vm/argv"
    readlink "/proc/$pid/cwd" >"$vm/dir"
    tr '\0,' '\n\n' <"$vm/argv" | sed -n 's/^ifname=//p' >"$vm/tap"
  done
}

# Measures from apply until all VMs are ready, then the adoption by a new daemon.
many() {
  settle
  # Whether KVM works is checked once per boot, with the first VM.
  guests 1 >"$work/m.yaml"
  slicectl apply -f "$work/m.yaml" --wait=60s >/dev/null
  slicectl delete hostgroup/bench --wait=60s >/dev/null
  guests "$vms" >"$work/m.yaml"
  cool_down
  local t i
  t=$(now)
  slicectl apply -f "$work/m.yaml" >/dev/null
  all_ready "$vms"
  echo "ours $(since "$t")"
  slicectl wait hostgroup/bench --for ready --timeout 60s >/dev/null
  remember
  kill -9 "$daemon"
  wait "$daemon" 2>/dev/null || true
  : >"$work/log"
  begin
  for ((i = 0; i < 500; i++)); do
    grep -q 'initial sync done' "$work/log" && break
    sleep 0.02
  done
  sed -n 's/.*initial sync done.*actions=\([0-9]*\) milliseconds=\([0-9]*\).*/actions \1\nadopt \2/p' "$work/log"
  leave
}

# Microseconds for which the daemon has run (1) or has waited on a run queue (2), see sched-stats.rst.
processor() { cat /proc/"$daemon"/task/*/schedstat | awk -v field="$1" '{ all += $field } END { printf "%d", all / 1000 }'; }

# Adds one VM, twenty-one times, with a VMM that starts instantly: from the start of slicectl to its end.
one_more() {
  mount --bind "$work/instant" "$(readlink -f "$(command -v qemu-system-x86_64)")"
  settle
  local t count ran waited
  for ((count = 1; count <= 22; count++)); do
    ran=$(processor 1) waited=$(processor 2)
    guests "$count" >"$work/m.yaml"
    t=$(now)
    slicectl apply -f "$work/m.yaml" --wait=10s >/dev/null
    # The first one creates the bridge, too.
    [ "$count" = 1 ] || echo "one $(since "$t")"
    echo "ran $(($(processor 1) - ran))"
    echo "waited $(($(processor 2) - waited))"
    t=$(now)
    slicectl version >/dev/null
    echo "slicectl $(since "$t")"
    sleep 0.1
  done
  leave
}

ours() { fresh bash -euc many; }
hand() { echo "hand $(fresh bash benches/yardsticks/by-hand-vmm.sh "$work/vms" "$gateway")"; }

export vms gateway
export -f guests all_ready cool_down settle leave remember many one_more processor

built=$(by_turns 5 ours hand)
hand=$(of "$built" hand) ours=$(of "$built" ours)
printf '%s VMs, milliseconds from apply until every guest reaches its gateway: shell script %s, sliced %s\n' \
  "$vms" "$(per "$hand" 1000)" "$(per "$ours" 1000)"
report "VMs: ratio to a shell loop on existing TAPs" "$(per "$ours" "$hand")" 1.25 '<='
report "VMs: restart: initial sync done, seconds" "$(per "$(of "$built" adopt)" 1000)" 0.3 '<='
report "VMs: restart: actions executed" "$(of "$built" actions)" 0 '=='

built=$(fresh bash -euc one_more)
printf '\none additional VM, milliseconds, with a VMM that starts instantly: %s, of which %s to start slicectl\n' \
  "$(per "$(of "$built" one)" 1000)" "$(per "$(of "$built" slicectl)" 1000)"
printf '  all threads of the daemon: %s running, %s on a run queue\n' \
  "$(per "$(of "$built" ran)" 1000)" "$(per "$(of "$built" waited)" 1000)"
report "VM: start without the time of slicectl, p50, ms" \
  "$(per "$(($(of "$built" one) - $(of "$built" slicectl)))" 1000)" 15 '<'
exit "$failed"
