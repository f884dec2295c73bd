#!/usr/bin/env bash
# Speed of the three modes, as ratios taken in one run: these numbers are compared with what the kernel and a careful script need on the same
# machine in the same minutes. Everything happens in network and mount namespaces of its own.
#   benches/run.sh [SLOTS]     256 unless told
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$(mktemp -d /tmp/slice-bench.XXXXXX)
trap 'rm -rf "$work"' EXIT
slots=${1:-256}
failed=0

# A private host: `fresh COMMAND...` runs it in namespaces that end with it.
fresh() {
  unshare --net --mount --propagation private -- bash -euc '
    mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up
    mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni
    "$@"' fresh "$@"
}

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

now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000)); } # microseconds
per() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

begin() { # starts sliced, waits for its socket
  sliced --concurrency "${CONCURRENCY:-16}" 2>>"$work/log" &
  daemon=$!
  for ((i = 0; i < 200; i++)); do
    slicectl version >/dev/null 2>&1 && return
    sleep 0.02
  done
  cat "$work/log" >&2
  return 1
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
  [ ! -e /run/flat ] || echo "plugins $(($(od -An -t u8 -j 8 /run/flat) / 1000))"
  [ "${3:-}" = whole ] || { kill "$daemon"; wait "$daemon"; return; }
  sleep 2
  local ticks
  ticks=$(cpu_ticks)
  sleep 10
  echo "rest $(($(cpu_ticks) - ticks))"
  echo "resident $(resident_kb)"
  manifest "$1" "$2" 192.168.2.0/24 >"$work/m.yaml"
  t=$(now)
  slicectl apply -f "$work/m.yaml" --wait=60s >/dev/null
  echo "policy $(since "$t")"
  sleep 2
  kill -9 "$daemon"
  wait "$daemon" || true
  : >"$work/log"
  begin
  for ((i = 0; i < 500; i++)); do
    grep -q 'quiet: everything was looked at' "$work/log" && break
    sleep 0.02
  done
  sed -n 's/.*quiet: everything was looked at.*actions=\([0-9]*\) milliseconds=\([0-9]*\).*/actions \1\nadopt \2/p' "$work/log"
  t=$(now)
  for ((g = 0; g < $1; g++)); do slicectl delete "hostgroup/bench$g" >/dev/null; done
  for ((g = 0; g < $1; g++)); do slicectl wait "hostgroup/bench$g" --for deleted --timeout 300s >/dev/null; done
  echo "delete $(since "$t")"
  echo "left $(($(ip -o link | wc -l) - 1 + $(host_rules || true) + $(find /run/netns /run/slice/netns /run/slice/vm -mindepth 1 | wc -l)))"
  kill "$daemon"
  wait "$daemon"
}

of() { awk -v key="$2" '$1 == key { print $2 }' <<<"$1"; }

say() { # NAME VALUE BOUND TEST
  local word=ok
  awk "BEGIN { exit !($2 $4 $3) }" || { word=MISSED; failed=1; }
  printf '%-58s %10s   wanted %s %-8s %s\n' "$1" "$2" "$4" "$3" "$word"
}

# Builds a group and takes it away again; prints microseconds a slot.
price() { # MODE SLOTS [GROUPS] [CONCURRENCY]
  local built
  built=$(MODE=$1 CONCURRENCY=${4:-16} fresh bash -euc "life ${3:-1} $2")
  per "$(of "$built" build)" "$2"
}

# The same one slot at a time, without what the plugin has spent meanwhile.
beside_plugins() { # SLOTS GROUPS
  local built
  built=$(MODE=cni CONCURRENCY=1 fresh bash -euc "life $2 $1")
  per "$(($(of "$built" build) - $(of "$built" plugins)))" "$1"
}

# Sixteen slots are built in a blink, in which something else may have run.
median() { # COMMAND...; of five
  for ((i = 0; i < 5; i++)); do echo "$("$@")"; done | sort -n | sed -n 3p
}

# A chain of plugins as `sliced` reads it, and each plugin's part as the plugin does.
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

export PATH="$target/release:$PATH" work MODE=isolated
export -f fresh network manifest now since begin host_rules cpu_ticks resident_kb life per

cc -O2 -o "$work/floor" benches/yardsticks/floor.c
echo "$(nproc) cores, $(uname -r), $(iptables --version), $slots slots"

by_hand_slots=$((slots < 64 ? slots : 64))
t=$(now)
fresh bash benches/yardsticks/by-hand.sh "$by_hand_slots"
by_hand=$(per "$(since "$t")" "$by_hand_slots")
floor=$(awk "BEGIN { printf \"%.2f\", $(fresh "$work/floor" "$slots") * 1000 / $slots }")

whole=$(fresh bash -euc "life 1 $slots whole")
ours=$(per "$(of "$whole" build)" "$slots")
printf 'microseconds a slot: by hand %s, floor %s, ours %s\n\n' "$by_hand" "$floor" "$ours"
say "build: times faster than ip(8) and iptables(8) by hand" "$(per "$by_hand" "$ours")" 8 '>='
say "build: ratio to the kernel's own price" "$(per "$ours" "$floor")" 3 '<='
say "policy change on all, seconds" "$(per "$(of "$whole" policy)" 1000000)" 1 '<='
say "restart: adopted and quiet, seconds" "$(per "$(of "$whole" adopt)" 1000)" 0.5 '<='
say "restart: actions taken" "$(of "$whole" actions)" 0 '=='
say "delete: ratio to the building" "$(per "$(of "$whole" delete)" "$(of "$whole" build)")" 1 '<='
say "delete: things left over" "$(of "$whole" left)" 0 '=='
say "at rest: % of a core over 10 s" "$(per "$(of "$whole" rest)" 10)" 0.2 '<'
say "at rest: MB resident" "$(per "$(of "$whole" resident)" 1024)" 64 '<'

few=$(fresh bash -euc "life 1 16")
many=$(fresh bash -euc "life 4 1000")
few_each=$(per "$(of "$few" build)" 16) many_each=$(per "$(of "$many" build)" 1000)
printf '\nmicroseconds a slot: 16 slots %s, 1000 slots in four groups %s\n' "$few_each" "$many_each"
say "1000 slots: ratio of the price of a slot to that at 16" "$(per "$many_each" "$few_each")" 1.5 '<='
one=$(fresh bash -euc "life 1 1")
say "host rules for 1 slot" "$(of "$one" rules)" "$(of "$whole" rules)" '=='

t=$(now)
fresh bash benches/yardsticks/by-hand-bridge.sh "$by_hand_slots"
by_hand=$(per "$(since "$t")" "$by_hand_slots")
ours=$(price bridge "$slots")
few_each=$(price bridge 16) many_each=$(price bridge 1000 4)
printf '\nbridge, microseconds a slot: by hand %s, ours %s; 16 slots %s, 1000 slots in four groups %s\n' \
  "$by_hand" "$ours" "$few_each" "$many_each"
say "bridge: times faster than by hand" "$(per "$by_hand" "$ours")" 8 '>='
say "bridge: 1000 slots, ratio of the price of a slot to that at 16" "$(per "$many_each" "$few_each")" 1.5 '<='

[ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || {
  echo 'CNI is left out: there are no plugins here (apt-get install containernetworking-plugins)'
  exit 1
}
chain
cni_slots=32
t=$(now)
spent=$(by_hand_cni "$cni_slots")
loop=$(since "$t")
plugins=$(per "$spent" "$cni_slots")
one_at_a_time=$(price cni "$cni_slots" 1 1)
eight=$(price cni "$cni_slots" 1 8)
printf '\nCNI, microseconds a slot: the plugins alone %s, a loop of them %s, ours one at a time %s, ours eight at a time %s\n' \
  "$plugins" "$(per "$loop" "$cni_slots")" "$one_at_a_time" "$eight"
overhead=$(awk "BEGIN { printf \"%.1f\", ($one_at_a_time / $plugins - 1) * 100 }")
say "CNI: beyond the plugins' own time, one at a time, %" "$overhead" 15 '<='
say "CNI: eight at a time, times faster than the loop" "$(awk "BEGIN { printf \"%.2f\", $loop / $cni_slots / $eight }")" 1 '>='

# Debian's plugins list every rule and every reservation that there is: beside them nothing of ours could be seen to grow.
cc -O2 -static -o "$work/bin/flat" benches/yardsticks/flat.c
echo '{"cniVersion": "1.0.0", "name": "bench", "plugins": [{"type": "flat"}]}' >"$work/cni/bench.conflist"
export CNI_PATH=$work/bin
few_own=$(median beside_plugins 16 1) many_own=$(beside_plugins 1000 4)
few_each=$(median price cni 16 1 8) many_each=$(price cni 1000 4 8)
printf '\nCNI with a plugin that does not slow down, microseconds a slot:\n'
printf '  beside the plugin, one at a time: 16 slots %s, 1000 slots in four groups %s\n' "$few_own" "$many_own"
printf '  with the plugin, eight at a time: 16 slots %s, 1000 slots in four groups %s\n' "$few_each" "$many_each"
say "CNI: 1000 slots, ratio of our own price of a slot to that at 16" "$(per "$many_own" "$few_own")" 1.5 '<='
say "CNI: the same with the plugin, eight at a time" "$(per "$many_each" "$few_each")" 1.5 '<='
exit "$failed"
