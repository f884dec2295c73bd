#!/usr/bin/env bash
# The checks of the demo. Started by run.sh inside the lab's namespaces, with sliced and slicectl in PATH.
#
#   story.sh GUEST_DIR        the output directory of examples/guest/build.sh
set -uo pipefail
guest=${1:?usage: story.sh GUEST_DIR}
demo=$(cd "$(dirname "$0")" && pwd)
vms='sandbox-1 sandbox-2'
all_vms="$vms team-1 team-2 pods-1 pods-2"
manifest=/run/lab/groups.d/sandbox.yaml
log=/run/lab/sliced.log
# shellcheck source=examples/demo/lab.sh
. "$demo/lab.sh"
# shellcheck source=examples/demo/say.sh
. "$demo/say.sh"

main() {
    trap 'exit 130' INT TERM
    build_the_lab >/run/lab-build.log 2>&1 || give_up 'the lab cannot be built' /run/lab-build.log
    check 'the lab: LAN, internet, container and metadata services respond to the host and the LAN' everything_answers
    prepare_the_guest
    snapshot >/run/lab/before

    start_sliced
    # By now the last packets of the check above have arrived; from here on, none may arrive.
    sleep 0.5
    baseline=$(silence)
    save_the_manifest
    what_the_guests_reach
    what_the_guests_do_not_reach
    the_guests_on_the_bridge
    the_guests_of_the_plugins
    nobody_calls_the_guests
    the_agents
    a_live_change
    a_crash
    drift
    if [ -n "${KEEP:-}" ]; then keep; else delete; fi
    count
}

prepare_the_guest() {
    cp "$guest/vmlinuz" /run/lab/vmlinuz
    local group
    for group in sandbox team pods; do
        "$demo/../guest/with-probes.sh" "$guest/initrd" "$demo/probes-$group" "/run/lab/initrd-$group" ||
            give_up 'cannot create the initial RAM file system'
    done
    # The name of its bridge would match the links that the witnesses of the isolated guests count.
    sed 's/slicer0/brpods/' "$demo/../../manifests/cni/51-slicer.conflist" >/run/lab/cni/51-slicer.conflist
}

# The state of the host without sliced: links, addresses, rules, namespaces. The plugins do not delete their bridge with their last
# guest.
snapshot() {
    {
        ip -o link | sed 's/^[0-9]*: //'
        ip -4 -o addr | sed 's/^[0-9]*: //'
        ip route
        ip netns
        iptables-save | rules_alone
    } | grep -v brpods
}

# Without counters, without the empty tables that iptables-save creates, and without the plugins' own rules.
rules_alone() {
    sed -e 's/ \[[0-9]*:[0-9]*\]$//' -e '/^#/d' -e '/^\*/d' -e '/^COMMIT/d' -e '/^:.* ACCEPT$/d' -e '/CNI-/d'
}

start_sliced() {
    SLICE_CNI_CONF_DIR=/run/lab/cni sliced --config-dir /run/lab/groups.d --state-dir /run/lab/state --images /run/lab >>"$log" 2>&1 &
    sliced=$!
    eventually 10 slicectl get hg >/dev/null 2>&1 || give_up 'sliced does not respond'
}

save_the_manifest() {
    cp "$demo"/{sandbox,team,pods}.yaml /run/lab/groups.d
    local began=$EPOCHREALTIME group
    for group in sandbox team pods; do
        slicectl wait "hostgroup/$group" --for ready --timeout 60s >/dev/null 2>/run/lab/wait.log ||
            give_up "the guests of $group are not ready" /run/lab/wait.log
    done
    check "manifests saved into the config directory: two isolated guests, two on a bridge and two on a CNI network run ($(since "$began"))" \
        eventually 2 all_are_ready
    eventually 60 every_probe_has_spoken || give_up 'the guests have not reported all probes'
    pids=$(pids_of_the_guests)
}

all_are_ready() {
    local group
    for group in sandbox team pods; do
        slicectl wait "hostgroup/$group" --for ready --timeout 1s || return 1
    done
}

pids_of_the_guests() {
    for vm in $all_vms; do
        slicectl get vm "$vm" -o json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'
    done | paste -sd ' '
}

# All guests have reported a result of every probe.
every_probe_has_spoken() {
    local vm
    for vm in $all_vms; do
        [ "$(serial "$vm" | awk '{ print $3 }' | sort -u | wc -l)" = "$(grep -c '^[a-z]' "$demo/probes-${vm%-*}")" ] || return 1
    done
}

what_the_guests_reach() {
    both 'reach the internet host 203.0.113.10' ok internet internet-http
    both 'reach the one port of the host that is allowed, 192.168.222.1:3128' ok proxy
}

what_the_guests_do_not_reach() {
    both 'do not reach the LAN host 192.168.1.10 that is dropped' blocked lan lan-http
    local one=$(address_of sandbox-1) two=$(address_of sandbox-2)
    check "sandbox-1 does not reach sandbox-2 at $two" says sandbox-1 blocked "vm-$two"
    check "sandbox-2 does not reach sandbox-1 at $one" says sandbox-2 blocked "vm-$one"
    for address in $(addresses_of_the_host); do
        both "do not reach the host at $address" blocked $(probes_of "$address")
    done
    both 'do not reach a port that the host publishes for a container, 203.0.113.1:8080' blocked published
    both 'do not reach the metadata services' blocked metadata metadata-azure metadata-alibaba
    both 'do not reach the guests on the bridge or on the CNI network' blocked \
        team-192.168.137.2 team-192.168.137.3 pods-10.88.64.2 pods-10.88.64.3
    both 'get no response with a spoofed source address' blocked spoof-foreign spoof-neighbour
    check 'and no packet of these has arrived: the counters at the destinations are unchanged' nothing_arrived
    for vm in $vms; do
        check "explain agrees: $vm to 192.168.1.10:80 is denied by drop[0]" \
            matches 'denied.*drop\[0\]' slicectl explain "$vm" 192.168.1.10:80
    done
}

address_of() { # VM
    slicectl get vm "$1" -o json | sed -n 's/.*"ip": *"\([0-9.]*\)".*/\1/p'
}

# Without those of the bridges, which no isolated guest probes.
addresses_of_the_host() {
    ip -4 -o addr | awk '$2 !~ /^(lo|brteam|brpods)$/ { sub("/.*", "", $4); print $4 }' | sort
}

# The probes of an address of the host; an address without a probe fails the check.
probes_of() { # ADDRESS
    awk -v name="host-$1" '$2 == name || $2 == name "-http" { print $2; found = 1 }
        END { if (!found) print name "-untried" }' "$demo/probes-sandbox"
}

nothing_arrived() {
    local now
    now=$(silence)
    evidence "$now"
    [ "$now" = "$baseline" ]
}

the_guests_on_the_bridge() {
    local vms='team-1 team-2'
    both 'on the bridge reach each other' ok vm-192.168.137.2 vm-192.168.137.3
    both 'on the bridge reach the host and the internet' ok host host-http internet internet-http
    both 'on the bridge do not reach an isolated guest' blocked sandbox
    both 'on the bridge get no response with a spoofed source address' blocked spoof-neighbour
    check 'a LAN machine reaches them with the route that slicectl prints' the_lan_calls_the_bridge
}

the_lan_calls_the_bridge() {
    local route
    route=$(slicectl route team --via 192.168.1.1 | grep -o 'ip route add .*') || return 1
    evidence "$route"
    # shellcheck disable=SC2086
    at lan $route &&
        at lan busybox ping -q -c 1 -W 2 -I 192.168.1.11 192.168.137.2 &&
        at lan busybox ping -q -c 1 -W 2 -I 192.168.1.11 192.168.137.3
}

the_guests_of_the_plugins() {
    local vms='pods-1 pods-2'
    both 'on the CNI network reach each other' ok "vm-$(address_of pods-1)" "vm-$(address_of pods-2)"
    both 'on the CNI network reach the internet' ok internet internet-http
    both 'on the CNI network do not reach an isolated guest' blocked sandbox
}

nobody_calls_the_guests() {
    ip -n lan route add "$pool" via 192.168.1.1 2>/dev/null
    check 'the guests cannot be reached: pings from the host, the LAN and the internet get no response' no_answer_from_the_guests
}

no_answer_from_the_guests() {
    local place address callers=() caller silent=0
    for place in host lan internet; do
        for address in $(address_of sandbox-1) $(address_of sandbox-2); do
            at "$place" busybox ping -q -c 1 -W 2 "$address" &
            callers+=($!)
        done
    done
    for caller in "${callers[@]}"; do
        if wait "$caller"; then silent=1; fi
    done
    return "$silent"
}

# No guest network is involved: the guests cannot be reached, as the checks before have shown.
the_agents() {
    check 'the agent that sliced has injected answers in both isolated guests' the_agents_answer
    check "exec: a command in an isolated guest has its streams and its exit status" exec_in_a_guest
    check 'cp: a file is copied into an isolated guest and back' cp_there_and_back
    check 'port-forward: a server on the loopback of an isolated guest responds on the host' forward_to_a_guest
    check 'and each access is an event with the user' accesses_are_events
}

the_agents_answer() {
    local vm
    for vm in $vms; do slicectl wait "vm/$vm" --for agent --timeout 30s || return 1; done
}

exec_in_a_guest() {
    local output status=0
    output=$(echo from the host | slicectl vm exec sandbox-1 --uid 0 -- sh -c 'read -r line; echo "$(hostname) got: $line"; exit 7') || status=$?
    evidence "slicectl vm exec sandbox-1: $output, exit status $status"
    [ "$output" = 'sandbox-1 got: from the host' ] && [ "$status" = 7 ]
}

cp_there_and_back() {
    head -c 1000000 /dev/urandom >/run/lab/sent
    slicectl vm cp --uid 0 /run/lab/sent sandbox-2:/copy &&
        slicectl vm cp sandbox-2:/copy /run/lab/back &&
        cmp /run/lab/sent /run/lab/back
}

forward_to_a_guest() {
    slicectl vm exec sandbox-1 --uid 0 -- ip link set lo up &&
        slicectl vm bg start sandbox-1 --uid 0 -- busybox httpd -f -p 127.0.0.1:80 -h / >/run/lab/httpd || return 1
    slicectl vm port-forward sandbox-1 127.0.0.1:8088:80 >/run/lab/forward.log 2>&1 &
    local forward=$! answer=1
    eventually 10 same_probes 2>/dev/null && answer=0
    evidence "$(head -n 1 /run/lab/forward.log)"
    kill "$forward"
    wait "$forward" 2>/dev/null
    return "$answer"
}

# The guest's own file, by HTTP.
same_probes() {
    busybox wget -q -O - http://127.0.0.1:8088/probes | cmp -s - "$demo/probes-sandbox"
}

accesses_are_events() {
    local line found=1
    while read -r line; do evidence "$line" && found=0; done < <(slicectl events | grep GuestAccess)
    return "$found"
}

a_live_change() {
    local began=$EPOCHREALTIME
    sed -i 's|drop: \[|drop: ["203.0.113.10", |' "$manifest"
    eventually 20 both_say blocked internet internet-http
    both "do not reach the internet host after the file drops it ($(since "$began"))" blocked internet internet-http
    check 'no packet arrives there any more' the_internet_hears_nothing
    both 'still reach the port that is allowed' ok proxy
    sed -i 's|drop: \["203.0.113.10", |drop: [|' "$manifest"
    eventually 20 both_say ok internet internet-http
    both 'reach it again after the file no longer does' ok internet internet-http
    check "the guests were not restarted: the same processes ($pids), booted once" the_same_guests
}

the_internet_hears_nothing() {
    local before
    before=$(seen internet internet)
    sleep 2
    [ "$(seen internet internet)" = "$before" ]
}

the_same_guests() {
    local vm
    [ "$(pids_of_the_guests)" = "$pids" ] || return 1
    for vm in $all_vms; do
        [ "$(slicectl logs "$vm" | grep -c "GUEST $vm ready")" = 1 ] || return 1
    done
}

a_crash() {
    local rules before
    rules=$(rules_everywhere)
    kill -KILL "$sliced"
    wait "$sliced" 2>/dev/null
    before=$(seen internet internet)
    check 'sliced is killed (-9): the guests keep running and reach the internet' eventually 10 more_than "$before" seen internet internet
    evidence "packets at the internet host: $before before, $(seen internet internet) now"
    local began=$EPOCHREALTIME
    start_sliced
    check "sliced starts again: the same guests are adopted ($(since "$began"))" eventually 10 adopted
    evidence "pids $(pids_of_the_guests)"
    check 'exec works through the new daemon' matches sandbox-2 slicectl vm exec sandbox-2 -- hostname
    check 'no rule has changed, on the host or in the namespace of a guest' test "$(rules_everywhere)" = "$rules"
    both 'still reach what is allowed' ok internet proxy
    check 'and no forbidden packet has passed' nothing_arrived
}

adopted() {
    all_are_ready >/dev/null 2>&1 && the_same_guests
}

rules_everywhere() {
    iptables-save | rules_alone
    for namespace in $(guest_namespaces); do ip netns exec "$namespace" iptables-save | rules_alone; done
}

guest_namespaces() {
    ip netns | awk '$1 ~ /^slice-/ { print $1 }'
}

drift() {
    local rules began=$EPOCHREALTIME
    rules=$(rules_everywhere)
    iptables -F
    for namespace in $(guest_namespaces); do ip netns exec "$namespace" iptables -F; done
    eventually 10 the_rules_are "$rules"
    check "iptables -F on the host and in both guests' namespaces is repaired ($(since "$began"))" the_rules_are "$rules"
    check 'and recorded' events_tell_of_drift
    check 'and no forbidden packet has passed meanwhile' nothing_arrived
}

the_rules_are() { # RULES
    [ "$(rules_everywhere)" = "$1" ]
}

events_tell_of_drift() {
    local line found=1
    while read -r line; do evidence "$line" && found=0; done < <(slicectl events | grep Drift)
    return "$found"
}

delete() {
    rm /run/lab/groups.d/*.yaml
    local began=$EPOCHREALTIME group
    for group in sandbox team pods; do
        slicectl wait "hostgroup/$group" --for deleted --timeout 30s >/dev/null 2>/run/lab/wait.log
    done
    check "the files are removed: the guests are deleted ($(since "$began"))" no_process_of_the_guests
    check 'no link, address, route, namespace, chain or rule is left: the host is in its original state' the_host_is_as_before
    check 'no run directory is left' test -z "$(ls -A /run/slice/vm /run/slice/netns | grep -v ':$')"
    check 'no result and no reservation of a CNI plugin is left' nothing_of_the_plugins
    kill -TERM "$sliced"
    check 'and sliced ends on SIGTERM' wait "$sliced"
}

no_process_of_the_guests() {
    local pid
    for pid in $pids; do
        [ ! -d "/proc/$pid" ] || return 1
    done
}

# host-local keeps its lock and the last reserved address.
nothing_of_the_plugins() {
    find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip*' >/run/lab/cni-left
    cat /run/lab/cni-left
    [ ! -s /run/lab/cni-left ]
}

the_host_is_as_before() {
    eventually 5 same_as_before || snapshot | diff /run/lab/before -
}

same_as_before() {
    snapshot | cmp -s /run/lab/before -
}

keep() {
    cat <<TEXT

The lab is kept. To enter it:

  nsenter --target $LAB_HOLDER --net --mount --pid env PATH=${PATH%%:*}:\$PATH bash

and there:

  slicectl get vms -o wide
  slicectl describe vm/sandbox-1
  slicectl explain sandbox-1 192.168.1.10:80
  slicectl logs -f sandbox-1
  slicectl events -w
  \$EDITOR $manifest          # applied when the file is saved
  ip netns exec lan ping 169.254.100.2
  iptables-save; ip netns

The log of sliced is $log. To end the lab and everything in it:

  kill $LAB_HOLDER

TEXT
}

main
