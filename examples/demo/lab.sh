# shellcheck shell=bash
# The lab around the host: a LAN, an "internet" and a container, each a namespace, and counter rules ("witnesses") that count the
# packets that arrive there. Sourced by story.sh, inside the lab's own namespaces.
#
#   internet 203.0.113.10 ----- wan0 203.0.113.1   +------+  192.168.1.1 lan0 --------- lan 192.168.1.10
#   (.66, and the metadata addresses)              | host |  192.168.222.1 dmz0 (the proxy listens here)
#                                                  +------+  172.17.0.1 docker0 ------- container 172.17.0.2

pool=169.254.100.0/22
metadata=(169.254.169.254 168.63.129.16 100.100.100.200)

build_the_lab() {
    mount -t tmpfs tmpfs /run
    mkdir -p /run/netns /run/lab/groups.d /run/lab/state /run/lab/www /run/lab/cni /var/lib/cni
    # The plugins' reservations, and the cache of their results.
    mount -t tmpfs tmpfs /var/lib/cni
    echo hello >/run/lab/www/index.html
    ip link set lo up
    join internet wan0 203.0.113.1/24 203.0.113.10/24
    join lan lan0 192.168.1.1/24 192.168.1.10/24
    join dmz dmz0 192.168.222.1/24 192.168.222.10/24
    join container docker0 172.17.0.1/16 172.17.0.2/16
    # The host has routes to the metadata addresses: without the firewall, they would respond.
    ip -n internet addr add 203.0.113.66/24 dev eth0
    # One for the guests of the other modes, and one of a LAN machine that connects to them: no witness counts their packets.
    ip -n internet addr add 203.0.113.20/24 dev eth0
    ip -n lan addr add 192.168.1.11/24 dev eth0
    for address in "${metadata[@]}"; do
        ip -n internet addr add "$address/32" dev lo
        ip route add "$address" via 203.0.113.10
    done
    ip route add default via 203.0.113.10
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # A port that the host publishes in the same way as Docker.
    iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
    for place in internet lan container; do
        ip netns exec "$place" busybox httpd -p 80 -h /run/lab/www
    done
    busybox httpd -p 80 -h /run/lab/www
    busybox httpd -p 192.168.222.1:3128 -h /run/lab/www
    post_witnesses
}

join() { # NAMESPACE LINK HOST_ADDRESS ADDRESS
    ip netns add "$1"
    ip link add "$2" type veth peer name eth0 netns "$1"
    ip addr add "$3" dev "$2"
    ip link set "$2" up
    ip -n "$1" link set lo up
    ip -n "$1" addr add "$4" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" route add default via "${3%/*}"
}

post_witnesses() {
    witness internet raw PREROUTING internet -d 203.0.113.10
    witness internet raw PREROUTING spoofed -d 203.0.113.66
    for address in "${metadata[@]}"; do witness internet raw PREROUTING metadata -d "$address"; done
    witness lan raw PREROUTING lan -d 192.168.1.10
    witness container raw PREROUTING container -d 172.17.0.2
    # Packets of a guest that are delivered to the host itself, or forwarded to another guest.
    witness host mangle INPUT proxy -i sl+ -d 192.168.222.1 -p tcp --dport 3128 -j ACCEPT
    witness host mangle INPUT host -i sl+
    witness host mangle FORWARD neighbours -i sl+ -o sl+
    # Packets to guests of other modes are dropped in the host's FORWARD chain: none must reach POSTROUTING.
    for link in brteam brpods; do witness host mangle POSTROUTING neighbours -s "$pool" -o "$link"; done
}

witness() { # PLACE TABLE CHAIN NAME MATCH...
    local place=$1 table=$2 chain=$3 name=$4
    shift 4
    at "$place" iptables -w -t "$table" -A "$chain" -m comment --comment "witness $name" "$@"
}

# The number of packets that the witness has counted.
seen() { # PLACE NAME
    { at "$1" iptables-save -c -t raw; at "$1" iptables-save -c -t mangle; } |
        sed -n "s/^\[\([0-9]*\):.*\"witness $2\".*/\1/p" | awk '{ sum += $1 } END { print sum + 0 }'
}

at() { # PLACE COMMAND...
    local place=$1
    shift
    if [ "$place" = host ]; then "$@"; else ip netns exec "$place" "$@"; fi
}

# The counters of all witnesses that must not count any packet of the guests.
silence() {
    echo "lan $(seen lan lan), container $(seen container container), metadata $(seen internet metadata)," \
        "spoofed $(seen internet spoofed), host $(seen host host), neighbours $(seen host neighbours)"
}

# An absent response proves something only if the destination responds to others: the host and the LAN reach everything that the guests
# must not reach.
everything_answers() {
    at host busybox ping -q -c 1 -W 2 203.0.113.10 &&
        at host busybox ping -q -c 1 -W 2 203.0.113.66 &&
        at host busybox ping -q -c 1 -W 2 192.168.1.10 &&
        fetch host 203.0.113.10 80 && fetch host 192.168.1.10 80 &&
        fetch lan 192.168.1.1 80 && fetch lan 192.168.1.1 8080 && fetch lan 192.168.222.1 3128 &&
        for address in "${metadata[@]}"; do fetch host "$address" 80 || return 1; done
}

fetch() { # PLACE ADDRESS PORT
    printf 'GET / HTTP/1.0\r\n\r\n' | at "$1" busybox nc -w 3 "$2" "$3" | grep -q hello
}
