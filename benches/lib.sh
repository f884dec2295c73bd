# Shared by the benchmarks: a private host, a daemon in it, measurements and their evaluation. Sourced from the repository root.
# shellcheck shell=bash

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$(mktemp -d /tmp/slice-bench.XXXXXX)
trap 'rm -rf "$work"' EXIT
failed=0

# A private host: `fresh COMMAND...` runs it in namespaces that end with it.
fresh() {
  unshare --net --mount --propagation private -- bash -euc '
    mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up
    mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni
    "$@"' fresh "$@"
}

now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000)); } # microseconds
per() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

begin() { # starts sliced like manifests/systemd/sliced.service, waits for its socket
  # With a concurrency of 1, the time of the plugins is logged, too.
  SLICE_LOG=info$([ "${CONCURRENCY:-16}" != 1 ] || echo ,slicectl::cni=debug) setsid nice -n -10 sliced --concurrency "${CONCURRENCY:-16}" 2>"$work/log" &
  daemon=$!
  for ((i = 0; i < 200; i++)); do
    slicectl version >/dev/null 2>&1 && return
    sleep 0.02
  done
  cat "$work/log" >&2
  return 1
}

# The median of the values with this name.
of() { awk -v key="$2" '$1 == key { print $2 }' <<<"$1" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

report() { # NAME VALUE BOUND TEST
  local word=ok
  awk "BEGIN { exit !($2 $4 $3) }" || { word=MISSED; failed=1; }
  printf '%-58s %10s   bound %s %-8s  %s\n' "$1" "$2" "$4" "$3" "$word"
}

# The machines are noisy: commands to compare run alternately, and the median of several runs is used.
by_turns() { # TIMES COMMAND...; a command prints `name value` lines
  local times=$1 turn command
  shift
  for ((turn = 0; turn < times; turn++)); do
    for command in "$@"; do $command; done
  done
}

export PATH="$target/release:$PATH" work
export -f fresh now since per begin of
