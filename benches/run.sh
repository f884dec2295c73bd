#!/usr/bin/env bash
# Speed of the three modes, as ratios to the kernel's minimum and to a shell script, measured in the same run on the same machine.
# Everything runs in network and mount namespaces of its own.
#   benches/run.sh [SLOTS]     default: 256
set -euo pipefail
cd "$(dirname "$0")/.."
. benches/lib.sh

slots=${1:-256}

manifest() { # GROUPS SLOTS DROP; MODE is a variable
  echo "config: {hypervisor: none, host_groups: ["
  for ((g = 0; g < $1; g++)); do
    echo "  {name: bench$g, count: $(($2 / $1)), vcpu: 1, ram_mb: 128, $(network "$g" "$3")},"
  done
  echo "]}"
}

network() { # GROUP DROP
  case $MODE in
    isolated) echo "network: {mode: isolated, range: 169.254.$((100 + 4 * $1)).0/22, drop: [\"$2\"]}" ;;
    bridge) echo "network: {bridge: bench$1, tap_prefix: b$1-, gateway: 10.64.$((4 * $1)).1/22}" ;;
    cni) echo "network_name: bench" ;;
  esac
}

host_rules() { iptables-save | grep -c '^-A'; }
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; }
resident_kb() { awk '/VmRSS/ { print $2 }' "/proc/$daemon/status"; }

# build, rest, policy, restart, delete; prints `name value` lines
life() { # GROUPS SLOTS
  local t
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock SLICE_CNI_CONF_DIR=$work/cni
  mkdir -p /run/groups.d
  manifest "$1" "$2" 192.168.1.0/24 >"$work/m.yaml"
  begin
  t=$(now)
  slicectl apply -f "$work/m.yaml" --wait=300s >/dev/null
  echo "build $(since "$t")"
  echo "rules $(host_rules)"
  sed -n 's/.* a CNI plugin ended .*microseconds=\([0-9]*\).*/\1/p' "$work/log" | awk '{ all += $1 } END { if (NR) print "plugins", all }'
  [ "${3:-}" = whole ] || { kill "$daemon"; wait "$daemon"; return; }
  sleep 2
  local ticks
  ticks=$(cpu_ticks)
  sleep 10
  echo "rest $(($(cpu_ticks) - ticks))"
  echo "resident $(resident_kb)"
  local change
  for change in 2 3 4; do
    manifest "$1" "$2" "192.168.$change.0/24" >"$work/m.yaml"
    t=$(now)
    slicectl apply -f "$work/m.yaml" --wait=60s >/dev/null
    echo "policy $(since "$t")"
    sleep 2
  done
  kill -9 "$daemon"
  wait "$daemon" || true
  : >"$work/log"
  begin
  for ((i = 0; i < 500; i++)); do
    grep -q 'initial sync done' "$work/log" && break
    sleep 0.02
  done
  sed -n 's/.*initial sync done.*actions=\([0-9]*\) milliseconds=\([0-9]*\).*/actions \1\nadopt \2/p' "$work/log"
  t=$(now)
  for ((g = 0; g < $1; g++)); do slicectl delete "hostgroup/bench$g" >/dev/null; done
  for ((g = 0; g < $1; g++)); do slicectl wait "hostgroup/bench$g" --for deleted --timeout 300s >/dev/null; done
  echo "delete $(since "$t")"
  echo "left $(($(ip -o link | wc -l) - 1 + $(host_rules || true) + $(find /run/netns /run/slice/netns /run/slice/vm -mindepth 1 | wc -l)))"
  kill "$daemon"
  wait "$daemon"
}

# Creates a group and prints the microseconds per slot.
price() { # MODE SLOTS [GROUPS] [CONCURRENCY]
  local built
  built=$(MODE=$1 CONCURRENCY=${4:-16} fresh bash -euc "life ${3:-1} $2")
  per "$(of "$built" build)" "$2"
}

# The same with a concurrency of 1, without the time of the plugins.
beside_plugins() { # SLOTS GROUPS
  local built
  built=$(MODE=cni CONCURRENCY=1 fresh bash -euc "life $2 $1")
  per "$(($(of "$built" build) - $(of "$built" plugins)))" "$1"
}

few_beside_plugin() { echo "few $(beside_plugins 16 1)"; }
few_with_plugin() { echo "few $(price cni 16 1 8)"; }
few_on_bridge() { echo "few $(price bridge 16)"; }
few_isolated() { echo "few $(price isolated 16)"; }
ours_isolated() { echo "ours $(price isolated "$slots")"; }
ours_on_bridge() { echo "ours $(price bridge "$slots")"; }
by_hand() { # SCRIPT
  local t
  t=$(now)
  fresh bash "benches/yardsticks/$1" "$by_hand_slots"
  echo "hand $(per "$(since "$t")" "$by_hand_slots")"
}

# Writes the plugin list that `sliced` reads, and the configuration of each plugin.
chain() {
  mkdir -p "$work/cni" "$work/bin"
  local head='"cniVersion": "1.0.0", "name": "bench"'
  local bridge='"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}'
  local firewall='"type": "firewall"'
  echo "{$head, \"plugins\": [{$bridge}, {$firewall}]}" >"$work/cni/bench.conflist"
  echo "{$head, $bridge}" >"$work/bridge.json"
  echo "{$head, $firewall}" >"$work/firewall.json"
}

by_hand_cni() { # SLOTS
  fresh bash benches/yardsticks/by-hand-cni.sh "$1" 0 "$work/bridge.json" "$work/firewall.json"
}

# Milliseconds of CPU per change by another program among 29,000 rules of its own, as Kubernetes has them. The interval between changes is
# longer than the window in which sliced combines them.
beside_foreign_rules() {
  export SLICE_CONFIG_DIR=/run/groups.d SLICE_STATE_DIR=$(mktemp -d "$work/state.XXXXXX") SLICE_RUN_DIR=/run/slice
  export SLICE_SOCKET=/run/slice/sliced.sock
  mkdir -p /run/groups.d
  manifest 1 2 192.168.1.0/24 >"$work/m.yaml"
  begin
  slicectl apply -f "$work/m.yaml" --wait=60s >/dev/null
  {
    echo '*nat'
    for ((n = 0; n < 5000; n++)); do echo ":KUBE-SVC-$n - [0:0]"; done
    for ((n = 0; n < 29000; n++)); do
      echo "-A KUBE-SVC-$((n % 5000)) -d 10.96.$((n / 250)).$((n % 250))/32 -p tcp -m tcp --dport 80 -j RETURN"
    done
    echo COMMIT
  } | iptables-restore -n
  sleep 3
  local ticks
  ticks=$(cpu_ticks)
  for ((n = 0; n < 20; n++)); do
    nft add rule ip nat KUBE-SVC-1 counter
    sleep 0.7
  done
  echo "each $((($(cpu_ticks) - ticks) * 10))"
  kill "$daemon"
  wait "$daemon"
}

export MODE=isolated
export -f network manifest host_rules cpu_ticks resident_kb life beside_foreign_rules

cc -O2 -o "$work/floor" benches/yardsticks/floor.c
echo "$(nproc) cores, $(uname -r), $(iptables --version), $slots slots"

by_hand_slots=$((slots < 64 ? slots : 64))
built=$(by_turns 3 "by_hand by-hand.sh" ours_isolated)
hand=$(of "$built" hand) ours=$(of "$built" ours)
floor=$(awk "BEGIN { printf \"%.2f\", $(fresh "$work/floor" "$slots") * 1000 / $slots }")
printf 'microseconds per slot: shell script %s, kernel minimum %s, sliced %s\n\n' "$hand" "$floor" "$ours"
report "create: times faster than a script of ip(8), iptables(8)" "$(per "$hand" "$ours")" 8 '>='
report "create: ratio to the kernel's minimum" "$(per "$ours" "$floor")" 3 '<='

whole=$(fresh bash -euc "life 1 $slots whole")
report "policy change on all, seconds" "$(per "$(of "$whole" policy)" 1000000)" 1 '<='
report "restart: initial sync done, seconds" "$(per "$(of "$whole" adopt)" 1000)" 0.5 '<='
report "restart: actions executed" "$(of "$whole" actions)" 0 '=='
report "delete: ratio to create" "$(per "$(of "$whole" delete)" "$(of "$whole" build)")" 1 '<='
report "delete: objects left" "$(of "$whole" left)" 0 '=='
report "idle: % of a core over 10 s" "$(per "$(of "$whole" rest)" 10)" 0.2 '<'
report "idle: MB resident" "$(per "$(of "$whole" resident)" 1024)" 64 '<'

few=$(of "$(by_turns 3 few_isolated)" few)
many=$(price isolated 1000 4)
printf '\nmicroseconds per slot: 16 slots %s, 1000 slots in four groups %s\n' "$few" "$many"
report "1000 slots: ratio of the time per slot to that of 16" "$(per "$many" "$few")" 1.5 '<='
large=$(fresh bash -euc "life 4 1024 whole")
report "1024 slots in four groups, restart: sync done, seconds" "$(per "$(of "$large" adopt)" 1000)" 0.5 '<='
report "1024 slots in four groups, restart: actions executed" "$(of "$large" actions)" 0 '=='
one=$(fresh bash -euc "life 1 1")
report "host rules for 1 slot" "$(of "$one" rules)" "$(of "$whole" rules)" '=='

foreign=$(fresh bash -euc beside_foreign_rules)
report "29,000 foreign rules: ms of CPU per foreign change" "$(per "$(of "$foreign" each)" 20)" 5 '<'

built=$(by_turns 3 "by_hand by-hand-bridge.sh" ours_on_bridge few_on_bridge)
hand=$(of "$built" hand) ours=$(of "$built" ours) few=$(of "$built" few)
many=$(price bridge 1000 4)
printf '\nbridge, microseconds per slot: shell script %s, sliced %s; 16 slots %s, 1000 slots in four groups %s\n' \
  "$hand" "$ours" "$few" "$many"
report "bridge: times faster than a script" "$(per "$hand" "$ours")" 8 '>='
report "bridge: 1000 slots, ratio of time per slot to that of 16" "$(per "$many" "$few")" 1.5 '<='

echo
benches/vmm.sh || failed=1

echo
benches/agent.sh || failed=1

echo
benches/watch.sh || failed=1

echo
benches/api.sh || failed=1

benches/fleet.sh || failed=1
cargo bench --quiet --locked --bench schedule || failed=1

[ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || {
  echo 'CNI skipped: plugins not found (apt-get install containernetworking-plugins)'
  exit 1
}
chain
cni_slots=32
loop_of_plugins() {
  local t
  t=$(now)
  by_hand_cni "$cni_slots" >/dev/null
  echo "loop $(per "$(since "$t")" "$cni_slots")"
}
eight_at_a_time() { echo "eight $(price cni "$cni_slots" 1 8)"; }
# The plugins' own time, from the start of the process to its end, is measured in the same run as that of sliced.
one_at_a_time() {
  local built
  built=$(MODE=cni CONCURRENCY=1 fresh bash -euc "life 1 $cni_slots")
  echo "one $(per "$(of "$built" build)" "$cni_slots")"
  echo "plugins $(per "$(of "$built" plugins)" "$cni_slots")"
  echo "overhead $(awk "BEGIN { printf \"%.1f\", ($(of "$built" build) / $(of "$built" plugins) - 1) * 100 }")"
}
built=$(by_turns 5 loop_of_plugins eight_at_a_time one_at_a_time)
loop=$(of "$built" loop) eight=$(of "$built" eight)
printf '\nCNI, microseconds per slot: loop of the plugins %s, sliced with concurrency 8 %s, with concurrency 1 %s, of which plugins %s\n' \
  "$loop" "$eight" "$(of "$built" one)" "$(of "$built" plugins)"
report "CNI: overhead over the plugins' time, concurrency 1, %" "$(of "$built" overhead)" 15 '<='
report "CNI: concurrency 8, times faster than the loop" "$(per "$loop" "$eight")" 1 '>='

# Debian's plugins list all existing rules and reservations: their growing time would hide a growth of that of sliced.
cc -O2 -static -o "$work/bin/flat" benches/yardsticks/flat.c
echo '{"cniVersion": "1.0.0", "name": "bench", "plugins": [{"type": "flat"}]}' >"$work/cni/bench.conflist"
export CNI_PATH=$work/bin
few_own=$(of "$(by_turns 5 few_beside_plugin)" few) many_own=$(beside_plugins 1000 4)
few_each=$(of "$(by_turns 5 few_with_plugin)" few) many_each=$(price cni 1000 4 8)
printf '\nCNI with a plugin of constant time, microseconds per slot:\n'
printf '  without the plugin, concurrency 1: 16 slots %s, 1000 slots in four groups %s\n' "$few_own" "$many_own"
printf '  with the plugin, concurrency 8: 16 slots %s, 1000 slots in four groups %s\n' "$few_each" "$many_each"
report "CNI: 1000 slots, ratio of own time per slot to that of 16" "$(per "$many_own" "$few_own")" 1.5 '<='
report "CNI: the same with the plugin, concurrency 8" "$(per "$many_each" "$few_each")" 1.5 '<='
exit "$failed"
