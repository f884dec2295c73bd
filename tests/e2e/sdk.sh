#!/bin/sh
# Runs the public SDKs of Slicer, unmodified, against `sliced` with QEMU guests, on a host of its own (network, mount and process
# namespaces). The checkouts are beside the project and no part of it:
#
#   SLICE_TEST_SDK_TS=../sdk-ts SLICE_TEST_SDK_GO=../sdk-go tests/e2e/sdk.sh
#
#   SLICE_TEST_SDK_TS  github.com/slicervm/sdk-ts after `npm ci --ignore-scripts`
#   SLICE_TEST_SDK_GO  github.com/slicervm/sdk; needs `go` 1.25 in PATH
#   SLICE_GUEST_DIR    examples/guest/build.sh has written it (target/guest)
#   SLICE_BIN_DIR      sliced and slicectl (target/debug)
#   SLICE_TEST_SDK_OVER  the listeners: `socket` (the daemon's own), `tcp` (of `api:`, with its token) and `tls` (the same with TLS)
#   SLICE_TEST_SDK_ONLY  `ts` or `go`
#   SLICE_TEST_SDK_TIMEOUT, SLICE_TEST_SDK_WATCH  how long a guest may boot, and how long files are watched from its start on
#
# A guest needs bash, and the user ubuntu (1000): they are added to initrd-agent, from Debian's bash-static. With SLICE_TEST_SDK_DISK, the
# guests are those of examples/debian in this directory, which boot much slower.
# What is missing is reported and is a failure: exit status 1.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
guest=${SLICE_GUEST_DIR:-$root/target/guest}
bin=${SLICE_BIN_DIR:-$root/target/debug}

# An example that is a module of its own: its module is downloaded, or SLICE_TEST_SDK_UUID names a checkout of github.com/google/uuid.
own_module() { # EXAMPLE
    cd "$SLICE_TEST_SDK_GO/examples/$1" || return 1
    cp go.mod "$work/$1.mod"
    cp go.sum "$work/$1.sum"
    if [ -n "${SLICE_TEST_SDK_UUID:-}" ]; then
        : >"$work/$1.sum"
        go mod edit -replace=github.com/google/uuid="$SLICE_TEST_SDK_UUID" "$work/$1.mod"
    fi
    GOFLAGS=-mod=mod GOTOOLCHAIN=local go build -modfile="$work/$1.mod" -o "$work/$1" .
    cd "$root" || return 1
}

go_examples='time_till_interactive create transform box watch-make-arkade-bin'
if [ "${1:-}" != inside ]; then
    work=$(mktemp -d /tmp/slice-sdk.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    export WORK="$work"
    if [ -z "${SLICE_TEST_SDK_DISK:-}" ]; then
        (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download bash-static) || exit 1
    fi
    if [ -n "${SLICE_TEST_SDK_GO:-}" ] && [ "${SLICE_TEST_SDK_ONLY:-go}" = go ]; then
        for example in $go_examples; do
            (cd "$SLICE_TEST_SDK_GO" && GOFLAGS=-mod=vendor GOTOOLCHAIN=local go build -o "$work/$example" "./examples/$example/main.go") ||
                own_module "$example"
        done
    fi
    unshare --net --mount --pid --fork --mount-proc --propagation private "$0" inside
    exit $?
fi

failures=0
fail() {
    failures=$((failures + 1))
    echo "FAIL: $*" >&2
}
missing() { # NAME WHAT
    fail "$1 is not set: $2 was NOT run"
}

cd "$WORK" || exit 1
ip link set lo up
mount -t tmpfs run /run
export SLICE_CONFIG_DIR="$WORK/conf" SLICE_STATE_DIR="$WORK/state" SLICE_RUN_DIR=/run/slice SLICE_SETTINGS="$WORK/sliced.yaml"
export SLICE_IMAGES="$WORK:$guest${SLICE_TEST_SDK_DISK:+:$SLICE_TEST_SDK_DISK}" SLICE_SOCKET=/run/slice/sliced.sock
mkdir -p "$SLICE_CONFIG_DIR" "$SLICE_STATE_DIR"

# The initrd of examples/guest with bash and a normal user: archives of cpio are unpacked in their order.
make_initrd() {
    mkdir -p "$WORK/add/bin" "$WORK/add/etc" "$WORK/add/home/ubuntu" "$WORK/add/tmp" "$WORK/add/root"
    dpkg-deb -x "$WORK"/bash-static_*.deb "$WORK/deb" || return 1
    cp "$WORK/deb/bin/bash-static" "$WORK/add/bin/bash" || return 1
    printf 'root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n' >"$WORK/add/etc/passwd"
    printf 'root:x:0:\nubuntu:x:1000:\n' >"$WORK/add/etc/group"
    chmod 1777 "$WORK/add/tmp"
    chown -R 1000:1000 "$WORK/add/home/ubuntu"
    (cd "$WORK/add" && find . | cpio --quiet -o -H newc) >"$WORK/add.cpio"
    cat "$guest/initrd-agent" "$WORK/add.cpio" >"$WORK/initrd"
}

if [ -n "${SLICE_TEST_SDK_DISK:-}" ]; then
    boot="kernel_file: $SLICE_TEST_SDK_DISK/vmlinuz
      initrd_file: $SLICE_TEST_SDK_DISK/initrd
      image: $SLICE_TEST_SDK_DISK/disk-agent.img"
else
    make_initrd || { echo "FAIL: cannot make the guest's initrd" >&2; exit 1; }
    boot="kernel_file: $guest/vmlinuz
      initrd_file: $WORK/initrd"
fi
cat >"$SLICE_CONFIG_DIR/sbox.yaml" <<YAML
config:
  host_groups:
    - name: sbox
      count: 0
      vcpu: 2
      ram_mb: 2048
      hypervisor: qemu
      $boot
      graceful_shutdown: 2s
      network: {mode: isolated, range: 169.254.100.0/22}
YAML

"$bin/sliced" 2>"$WORK/log" &
daemon=$!
for _ in $(seq 100); do
    [ -S "$SLICE_SOCKET" ] && "$bin/slicectl" get hg sbox >/dev/null 2>&1 && break
    sleep 0.1
done
"$bin/slicectl" get hg sbox || { cat "$WORK/log" >&2; exit 1; }

export SLICER_HOST_GROUP=sbox SLICER_CREATE_WAIT=agent SLICER_CREATE_TIMEOUT="${SLICE_TEST_SDK_TIMEOUT:-120s}"
watch_time=${SLICE_TEST_SDK_WATCH:-20s}
token_file="$SLICE_STATE_DIR/api/token"

# The clients use this listener from now on.
connect() { # LISTENER
    case $1 in
    socket)
        # Examples require a token also where none is needed.
        export SLICER_URL="$SLICE_SOCKET" SLICER_TOKEN=none
        by_file=
        return
        ;;
    tcp)
        echo 'api: {port: 8080}' >"$SLICE_SETTINGS.new"
        export SLICER_URL=http://127.0.0.1:8080
        ;;
    tls)
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=sliced \
            -addext subjectAltName=IP:127.0.0.1 -keyout "$WORK/key.pem" -out "$WORK/cert.pem" 2>"$WORK/openssl.log" ||
            { cat "$WORK/openssl.log" >&2; return 1; }
        echo "api: {port: 8443, tls: {cert: $WORK/cert.pem, key: $WORK/key.pem}}" >"$SLICE_SETTINGS.new"
        export SLICER_URL=https://127.0.0.1:8443 NODE_EXTRA_CA_CERTS="$WORK/cert.pem" SSL_CERT_FILE="$WORK/cert.pem"
        ;;
    *)
        echo "unknown listener: $1" >&2
        return 1
        ;;
    esac
    mv "$SLICE_SETTINGS.new" "$SLICE_SETTINGS"
    for _ in $(seq 100); do
        status=$(curl -s -o /dev/null -w '%{http_code}' ${SSL_CERT_FILE:+--cacert "$SSL_CERT_FILE"} "$SLICER_URL/nodes")
        [ "$status" = 401 ] && break
        sleep 0.1
    done
    [ "$status" = 401 ] || { echo "expected 401 without a token, found $status" >&2; return 1; }
    SLICER_TOKEN=$(cat "$token_file")
    export SLICER_TOKEN
    # Some examples read the token from its file.
    by_file="env -u SLICER_TOKEN SLICER_TOKEN_FILE=$token_file"
}

# Runs a program, and reports it by name.
run() { # NAME COMMAND...
    name=$1
    shift
    echo "== $name"
    if "$@"; then echo "ok: $name"; else fail "$name"; fi
    # What it has left is none of the next one's business.
    for vm in $("$bin/slicectl" get vms -o name | sed 's,vm/,,'); do
        "$bin/slicectl" vm delete "$vm" --wait=60s >/dev/null 2>&1
    done
}

ts_sdk() { # LISTENER
    cd "$SLICE_TEST_SDK_TS" || exit 1
    run "TS SDK over $1: vm.e2e.test.ts" timeout 900 npx vitest run test/vm.e2e.test.ts
    run "TS SDK over $1: vm.bg.e2e.test.ts" timeout 900 npx vitest run test/vm.bg.e2e.test.ts
    run "TS SDK over $1: shell, forward and fs/watch" timeout 900 node "$WORK/drive.mjs"
    cd "$WORK" || exit 1
}

# It ends after its time, whether it has seen anything or not.
observed() { # COMMAND...
    "$@" >"$WORK/observed" 2>&1
    status=$?
    cat "$WORK/observed"
    [ "$status" -eq 0 ] && grep -q '^final: [1-9]' "$WORK/observed"
}

# shellcheck disable=SC2086 # by_file is a list of words
go_sdk() { # LISTENER
    for example in $go_examples; do
        [ -x "$WORK/$example" ] || fail "$example of the Go SDK is not built: it was NOT run"
    done
    run "Go SDK over $1: time_till_interactive" timeout 900 "$WORK/time_till_interactive"
    run "Go SDK over $1: create" timeout 900 "$WORK/create"
    run "Go SDK over $1: transform" timeout 900 "$WORK/transform"
    "$bin/slicectl" vm add sbox --name first --wait=60s >/dev/null &&
        "$bin/slicectl" wait vm/first --for agent --timeout "$SLICER_CREATE_TIMEOUT"
    run "Go SDK over $1: box" timeout 900 $by_file "$WORK/box"
    # It reports what is created in the directory that it watches.
    (
        for _ in $(seq 300); do
            for vm in $("$bin/slicectl" get vms -o name | sed 's,vm/,,'); do
                "$bin/slicectl" vm exec "$vm" --uid 0 -- sh -c 'echo x >/tmp/arkade-$$' >/dev/null 2>&1
            done
            sleep 1
        done
    ) &
    writer=$!
    run "Go SDK over $1: watch-make-arkade-bin" observed timeout 900 $by_file "$WORK/watch-make-arkade-bin" -path /tmp -timeout "$watch_time"
    kill "$writer"
}

[ -n "${SLICE_TEST_SDK_TS:-}" ] || missing SLICE_TEST_SDK_TS "the TS SDK"
[ -n "${SLICE_TEST_SDK_GO:-}" ] || missing SLICE_TEST_SDK_GO "the Go SDK"
if [ -n "${SLICE_TEST_SDK_TS:-}" ]; then
    cd "$SLICE_TEST_SDK_TS" || exit 1
    npx esbuild "$root/tests/e2e/sdk/drive.mjs" --bundle --platform=node --log-level=error \
        --alias:@slicervm/sdk=./src/index.ts --alias:@slicervm/shell=./src/shell.ts --alias:ws=./node_modules/ws \
        --format=esm --outfile="$WORK/drive.mjs" --banner:js='import { createRequire } from "node:module"; const require = createRequire(import.meta.url);'
fi
for listener in ${SLICE_TEST_SDK_OVER:-socket tcp tls}; do
    connect "$listener" || { fail "no listener: nothing was run over $listener"; continue; }
    if [ -n "${SLICE_TEST_SDK_TS:-}" ] && [ "${SLICE_TEST_SDK_ONLY:-ts}" = ts ]; then ts_sdk "$listener"; fi
    if [ -n "${SLICE_TEST_SDK_GO:-}" ] && [ "${SLICE_TEST_SDK_ONLY:-go}" = go ]; then go_sdk "$listener"; fi
done

if [ "$failures" -gt 0 ]; then
    echo "--- the log of sliced:" >&2
    tail -n 40 "$WORK/log" >&2
    "$bin/slicectl" events 2>/dev/null | tail -n 40 >&2
fi
kill "$daemon"
wait "$daemon"
echo "failures: $failures"
[ "$failures" -eq 0 ]
