# The lab of a fleet, in private namespaces: a bridge, members of etcd, nodes. Sourced, with the directory `work`.
# shellcheck shell=bash

open_lab() {
    mount -t tmpfs tmpfs /run
    mount -t sysfs sysfs /sys
    mkdir -p /run/netns
    ip link set lo up
    ip link add lab type bridge
    ip link set lab up
}

host() { # NAME ADDRESS
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip link add "$1" type veth peer name eth0 netns "$1"
    ip link set "$1" master lab up
    ip -n "$1" addr add "$2/24" dev eth0
    ip -n "$1" link set eth0 up
}

certificates() {
    local dir=$work/pki
    mkdir -p "$dir"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/O=slice/OU=ca' \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    local name
    # Without a common name, which the gateway of etcd refuses.
    for name in etcd node-a node-b node-c; do
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/O=slice/OU=$name" \
            -keyout "$dir/$name.key" -out "$dir/$name.csr" 2>/dev/null
        printf 'subjectAltName=IP:10.77.0.11,IP:10.77.0.12,IP:10.77.0.13,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >"$dir/ext"
        openssl x509 -req -days 2 -in "$dir/$name.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial \
            -extfile "$dir/ext" -out "$dir/$name.pem" 2>/dev/null
        chmod 600 "$dir/$name.key"
    done
}

declare -A member
members=e1=https://10.77.0.11:2380,e2=https://10.77.0.12:2380,e3=https://10.77.0.13:2380

start_etcd() { # NAME ADDRESS
    local tls=(--cert-file "$work/pki/etcd.pem" --key-file "$work/pki/etcd.key" --trusted-ca-file "$work/pki/ca.pem" --client-cert-auth
        --peer-cert-file "$work/pki/etcd.pem" --peer-key-file "$work/pki/etcd.key" --peer-trusted-ca-file "$work/pki/ca.pem" --peer-client-cert-auth)
    ip netns exec "$1" etcd --name "$1" --data-dir "/run/$1.etcd" "${tls[@]}" --log-level error \
        --listen-peer-urls "https://$2:2380" --initial-advertise-peer-urls "https://$2:2380" \
        --listen-client-urls "https://$2:2379" --advertise-client-urls "https://$2:2379" \
        --initial-cluster "$members" --initial-cluster-state new >"/run/$1.log" 2>&1 &
    member[$1]=$!
}

etcdctl_() { # WORDS...
    ETCDCTL_API=3 ip netns exec e1 etcdctl --cacert "$work/pki/ca.pem" --cert "$work/pki/etcd.pem" --key "$work/pki/etcd.key" \
        --endpoints https://10.77.0.11:2379,https://10.77.0.12:2379,https://10.77.0.13:2379 --command-timeout 2s "$@"
}

# Each node has mounts of its own: its network namespaces and its claims of ranges are not those of the other nodes.
start_node() { # NAMESPACE NODE
    local dir=$work/$2
    mkdir -p "$dir/groups" "$dir/state"
    cat >"$dir/sliced.yaml" <<YAML
fleet:
  endpoints: ["https://10.77.0.11:2379", "https://10.77.0.12:2379", "https://10.77.0.13:2379"]
  ca: $work/pki/ca.pem
  cert: $work/pki/$2.pem
  key: $work/pki/$2.key
  node: $2
YAML
    nsenter --net="/run/netns/$1" unshare --mount --propagation private sh -c \
        'mount -t sysfs sysfs /sys; mkdir -p /run/slice-ranges; for dir in /run/netns /run/slice-ranges; do mount -t tmpfs tmpfs $dir; done; exec "$@"' sh \
        env SLICE_CONFIG_DIR="$dir/groups" SLICE_STATE_DIR="$dir/state" SLICE_RUN_DIR="/run/$2" SLICE_SETTINGS="$dir/sliced.yaml" \
        SLICE_SOCKET="/run/$2/sliced.sock" sliced >"$dir/log" 2>&1 &
}

ctl() { # NODE WORDS...
    local node=$1
    shift
    SLICE_SOCKET=/run/$node/sliced.sock slicectl "$@"
}

# Members e1 to e3 and nodes node-a to node-c.
start_lab() {
    open_lab
    certificates
    local n
    for n in 1 2 3; do
        host "e$n" "10.77.0.1$n"
        host "n$n" "10.77.0.2$n"
        start_etcd "e$n" "10.77.0.1$n"
    done
}
