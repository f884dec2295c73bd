#!/usr/bin/env bash
# A fleet: three members of etcd and three nodes on this machine, VMs as slots. How long until all are bound and Ready, what is written to
# etcd for a VM, and what all of it costs while nothing changes.
#   benches/fleet.sh [VMS]     default: 1500; a multiple of 6, at most 1500
# Needs etcd and etcdctl in PATH, or where examples/fleet/run.sh unpacks them.
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh
vms=${1:-1500}
PATH=$target/etcd/root/usr/bin:$PATH
command -v etcd etcdctl openssl >/dev/null || {
  echo 'fleet skipped: etcd, etcdctl or openssl not found (examples/fleet/run.sh unpacks etcd)'
  exit 0
}

groups() {
  echo 'config: {hypervisor: none, host_groups: ['
  for number in 1 2; do
    echo "  {name: bench$number, count: $((vms / 2)), network: {mode: isolated, range: 169.254.$((96 + 4 * number)).0/22}},"
  done
  echo ']}'
}

# The state of the VMs: how many of them have it.
states() { ctl node-a get vms --fleet -o json | grep -c "\"$1\": *\"$2\"" || true; }
revision() { etcdctl_ get /none -w json | sed 's/.*"revision":\([0-9]*\).*/\1/'; }
# A counter of etcd, the sum of its labels and of the members.
counter() { # NAME
  local n sum=0 count
  for n in 1 2 3; do
    count=$(ip netns exec e1 curl -s --cacert "$work/pki/ca.pem" --cert "$work/pki/etcd.pem" --key "$work/pki/etcd.key" \
      "https://10.77.0.1$n:2379/metrics" | awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%d", sum }')
    sum=$((sum + count))
  done
  echo "$sum"
}
requests() { counter grpc_server_handled_total; }
received() { counter etcd_network_client_grpc_received_bytes_total; }
sent_to() { counter etcd_network_client_grpc_sent_bytes_total; }
ticks() { # COMMAND: of all its processes
  local sum=0 pid
  for pid in $(pgrep -x "$1" --nslist pid --ns $$); do
    sum=$((sum + $(awk '{ print $14 + $15 }' "/proc/$pid/stat")))
  done
  echo "$sum"
}

life() {
  # shellcheck source=examples/fleet/lab.sh
  . examples/fleet/lab.sh
  start_lab
  until etcdctl_ endpoint health >/dev/null 2>&1; do sleep 0.2; done
  local n
  for n in 1 2 3; do start_node "n$n" "node-$(echo abc | cut -c "$n")"; done
  until [ "$(ctl node-a get nodes 2>/dev/null | grep -cw Ready)" = 3 ]; do sleep 0.2; done
  groups >"$work/m.yaml"
  local before bytes fan t
  before=$(revision)
  bytes=$(received)
  fan=$(sent_to)
  t=$(now)
  ctl node-a apply --fleet -f "$work/m.yaml" >/dev/null || exit 1
  echo "applied $(since "$t")"
  until [ "$(states epoch 1 || true)$(ctl node-a get vms --fleet -o json | grep -c '"node":')" != 0 ] &&
    [ "$(ctl node-a get vms --fleet -o json | grep -c '"node": *"')" -ge "$vms" ]; do sleep 0.1; done
  echo "bound $(since "$t")"
  until [ "$(states state Ready)" = "$vms" ]; do sleep 0.3; done
  echo "ready $(since "$t")"
  sleep 3
  echo "revisions $(($(revision) - before))"
  echo "bytes $(($(received) - bytes))"
  echo "fan $(($(sent_to) - fan))"
  sleep 15
  local etcd sliced sent
  etcd=$(ticks etcd)
  sliced=$(ticks sliced)
  sent=$(requests)
  sleep 20
  echo "idle_etcd $(($(ticks etcd) - etcd))"
  echo "idle_sliced $(($(ticks sliced) - sliced))"
  echo "idle_requests $(($(requests) - sent))"
  t=$(now)
  ctl node-a delete hostgroup/bench1 hostgroup/bench2 --fleet >/dev/null
  until [ "$(ctl node-a get vms --fleet -o json | grep -c '"epoch"')" = 0 ]; do sleep 0.3; done
  echo "deleted $(since "$t")"
}

export vms work
export -f life groups states revision counter requests received sent_to ticks
measured=$(unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private bash -uc life 2>"$work/errors") || {
  cat "$work/errors" >&2
  exit 1
}
value() { of "$measured" "$1"; }
printf 'seconds, %s VMs on 3 nodes: applied %.1f, bound %.1f, Ready %.1f; deleted %.1f\n' "$vms" "$(per "$(value applied)" 1000000)" \
  "$(per "$(value bound)" 1000000)" "$(per "$(value ready)" 1000000)" "$(per "$(value deleted)" 1000000)"
printf 'etcd for each VM: %s revisions, %s bytes received from clients, %s sent to them (lists of this measurement included)\n' \
  "$(per "$(value revisions)" "$vms")" "$((($(value bytes)) / vms))" "$((($(value fan)) / vms))"
printf 'idle, 20 s: %s requests, etcd %s ms of CPU (3 members), sliced %s ms (3 nodes)\n' "$(value idle_requests)" \
  "$((10 * $(value idle_etcd)))" "$((10 * $(value idle_sliced)))"
report 'fleet: seconds until bound' "$(per "$(value bound)" 1000000)" 10 '<'
report 'fleet: revisions of etcd for each VM' "$(per "$(value revisions)" "$vms")" 0.5 '<'
report 'fleet: requests to etcd of an idle node, each second' "$(per "$(value idle_requests)" 60)" 1 '<'
exit "$failed"
