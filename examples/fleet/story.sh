#!/usr/bin/env bash
# The steps of `make fleet-demo`, inside the namespaces that run.sh has made.
set -uo pipefail
failed=0
began=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pass() { printf 'PASS  %3d s  %s\n' $((SECONDS - began)) "$1"; }
fail() {
    printf 'FAIL  %3d s  %s\n' $((SECONDS - began)) "$1"
    failed=1
}

# Passes when the command succeeds within the time, in seconds.
step() { # TIME TEXT COMMAND...
    local end=$((SECONDS + $1)) text=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            fail "$text"
            return
        fi
        sleep 0.3
    done
    pass "$text"
}

# shellcheck source=examples/fleet/lab.sh
. "$(dirname "$0")/lab.sh"

# The number of VMs of the fleet in a state.
count() { # STATE
    ctl node-a get vms --fleet -o json | grep -c "\"state\": *\"$1\"" || true
}

vms_on() { # NODE
    ctl "$1" get vms -o name | wc -l
}

has() { [ "$(count "$1")" = "$2" ]; }
local_vms() { [ "$(vms_on node-a) $(vms_on node-b) $(vms_on node-c)" = "$*" ]; }
node_is() { ctl node-a get nodes | grep -E "^$1 " | grep -qw "$2"; }
leader() {
    etcdctl_ endpoint status -w fields 2>/dev/null | awk -F' : ' '
        /MemberID/ { id = $2 } /"Leader"/ { leader = $2 } /"Endpoint"/ { if (id == leader) print $2 }' | grep -o '10.77.0.1[123]' | head -n 1
}
group() { # COUNT
    cat <<YAML
config:
  host_groups:
    - name: web
      count: $1
      hypervisor: none
      network: {mode: isolated, allow: [1.1.1.1/32]}
      placement: {max_unavailable: 4}
YAML
}

start_lab
step 20 'three members of etcd have a leader' etcdctl_ endpoint health
start_node n1 node-a
start_node n2 node-b
start_node n3 node-c
three_nodes() { [ "$(ctl node-a get nodes | grep -cw Ready)" = 3 ]; }
step 20 'three nodes are Ready' three_nodes

# --- The story.

group 12 >"$work/web.yaml"
ctl node-a apply --fleet -f "$work/web.yaml" >/dev/null || fail 'apply'
step 30 '12 VMs are Ready' has Ready 12
step 5 'each node has 4 of them' local_vms 4 4 4

first=$(leader)
case $first in
    10.77.0.1[123])
        kill -KILL "${member[e${first: -1}]}"
        ctl node-b scale hostgroup/web --fleet --count 15 >/dev/null 2>&1 ||
            step 15 'a command succeeds after the next election' ctl node-b scale hostgroup/web --fleet --count 15
        step 30 "the leader of etcd ($first) is killed: 3 more VMs are Ready" has Ready 15
        ;;
    *) fail 'etcd has a leader' ;;
esac

ip link set n3 down
step 70 'node-c is cut off, and Unknown when its lease has ended' node_is node-c Unknown
step 5 'its VMs keep running, and no other node has them' local_vms 5 5 5
ip link set n3 up
step 40 'node-c is healed, and Ready' node_is node-c Ready
step 30 'all 15 VMs are Ready' has Ready 15

ctl node-a node drain node-b --timeout 60s >/dev/null 2>&1 || fail 'node drain node-b'
step 30 'node-b is drained: it has no VM' local_vms 8 0 7
step 30 'all 15 VMs are Ready on the other nodes' has Ready 15

ctl node-c delete hostgroup/web --fleet >/dev/null || fail 'delete'
step 40 'the group is deleted: no node has a VM' local_vms 0 0 0
clean() {
    [ -z "$(etcdctl_ get --prefix --keys-only /slice/v1/vms/)$(etcdctl_ get --prefix --keys-only /slice/v1/status/)" ] || return 1
    ! { ip -n n1 -o link; ip -n n2 -o link; ip -n n3 -o link; } | grep -q ': sl'
}
step 20 'nothing is left in etcd or on a node' clean

printf '%s in %d s\n' "$([ "$failed" = 0 ] && echo 'All steps passed' || echo 'FAILED')" $((SECONDS - began))
if [ "$failed" != 0 ]; then
    for node in node-a node-b node-c; do
        echo "--- $node"
        tail -n 15 "$work/$node/log"
    done
fi
exit "$failed"
