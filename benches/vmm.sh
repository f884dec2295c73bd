#!/usr/bin/env bash
# Speed with real VMs: tiny guests (tests/guest) in QEMU, against a shell loop that runs the same command lines.
#   benches/vmm.sh [VMS]     32 unless told
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

vms=${1:-32}
gateway=10.64.0.1/22

command -v qemu-system-x86_64 >/dev/null || {
  echo 'VMs are left out: there is no QEMU here (apt-get install qemu-system-x86)'
  exit 1
}
tests/guest/build.sh "$work" && cc -O2 -static -o "$work/instant" benches/yardsticks/instant.c

guests() { # COUNT
  echo "config: {hypervisor: qemu, kernel_file: $work/tiny, host_groups: [{name: bench, count: $1, vcpu: 1, ram_mb: 32,
    network: {bridge: bench0, tap_prefix: b-, gateway: $gateway}}]}"
}

# Until so many guests have said that their gateway answers.
all_ready() { # COUNT
  local i
  for ((i = 0; i < 3000; i++)); do
    [ "$({ grep -rls --include=console.log '^ready ' /run/slice/vm || true; } | wc -l)" -lt "$1" ] || return 0
    sleep 0.01
  done
  echo 'vmm.sh: not all guests are ready' >&2
  return 1
}

# A machine that is a VM itself gives memory that was freed back to its host a while later, and pays for the next use of it. Both
# sides start when that is over: else whoever comes sooner after the other's end has the warmer memory, a third of its time.
cool_down() { sleep 4; }

settle() { # a private host's daemon, its folders
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock SLICE_IMAGES=$work
  mkdir -p /run/groups.d
  begin
}

# VMMs outlive the daemon: the groups are taken away before it goes.
leave() {
  slicectl delete hostgroup/bench --wait=60s >/dev/null
  kill "$daemon"
  wait "$daemon"
}

# What another one needs to start the same VMs by hand.
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

# From apply to all ready, then a new daemon for those that run.
many() {
  settle
  # Whether KVM works is found out once a boot, with the first VM.
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

# Microseconds that the daemon has run, and those that it has waited for a processor (sched-stats.rst).
processor() { cat /proc/"$daemon"/task/*/schedstat | awk -v field="$1" '{ all += $field } END { printf "%d", all / 1000 }'; }

# One VM more, twenty-one times, with a VMM that takes no time: from slicectl's start to its end.
one_more() {
  mount --bind "$work/instant" "$(readlink -f "$(command -v qemu-system-x86_64)")"
  settle
  local t count ran waited
  for ((count = 1; count <= 22; count++)); do
    ran=$(processor 1) waited=$(processor 2)
    guests "$count" >"$work/m.yaml"
    t=$(now)
    slicectl apply -f "$work/m.yaml" --wait=10s >/dev/null
    # The first one makes the bridge, too.
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
printf '%s VMs, milliseconds from apply to every guest reaching its gateway: by hand %s, ours %s\n' \
  "$vms" "$(per "$hand" 1000)" "$(per "$ours" 1000)"
say "VMs: ratio to a shell loop on TAPs that are there" "$(per "$ours" "$hand")" 1.25 '<='
say "VMs: adopted and quiet, seconds" "$(per "$(of "$built" adopt)" 1000)" 0.3 '<='
say "VMs: actions taken" "$(of "$built" actions)" 0 '=='

built=$(fresh bash -euc one_more)
printf '\none VM more, milliseconds, with a VMM that takes no time: %s, of them %s to start slicectl\n' \
  "$(per "$(of "$built" one)" 1000)" "$(per "$(of "$built" slicectl)" 1000)"
printf '  all threads of the daemon: %s on a processor, %s in the queue for one\n' \
  "$(per "$(of "$built" ran)" 1000)" "$(per "$(of "$built" waited)" 1000)"
say "VM: our share of a start without slicectl's own, p50, ms" \
  "$(per "$(($(of "$built" one) - $(of "$built" slicectl)))" 1000)" 15 '<'
exit "$failed"
