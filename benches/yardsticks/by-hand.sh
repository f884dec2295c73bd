#!/usr/bin/env bash
# The script of a careful operator for isolated VMs: ip(8), sysctl(8) and iptables(8), one command at a time.
# Runs in the calling shell's network namespace: start it only in a temporary one, as benches/run.sh does.
set -euo pipefail

slots=${1:?number of slots}
uplink=eth9

in_slot() { ip netns exec "$1" sh -euc "$2"; }

sysctl -qw net.ipv4.ip_forward=1
for ((slot = 0; slot < slots; slot++)); do
  third=$((100 + slot / 64)) fourth=$((slot % 64 * 4))
  name=hand$slot link=bh-$slot
  net=169.254.$third.$fourth/30 host=169.254.$third.$((fourth + 1)) guest=169.254.$third.$((fourth + 2))

  ip netns add "$name"
  ip link add "$link" type veth peer name up0 netns "$name"
  ip addr add "$host/30" dev "$link"
  ip link set "$link" up
  in_slot "$name" "
    ip link set lo up
    ip tuntap add tap0 mode tap
    ip addr add 10.0.0.1/30 dev tap0
    ip link set tap0 up
    ip addr add $guest/30 dev up0
    ip link set up0 up
    ip route add default via $host
    sysctl -qw net.ipv4.ip_forward=1
    iptables -P FORWARD DROP
    iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    iptables -A FORWARD -i tap0 -d 192.168.1.0/24 -j DROP
    iptables -A FORWARD -i tap0 -o up0 -j ACCEPT
    iptables -t nat -A POSTROUTING -o up0 -j MASQUERADE"
  iptables -A FORWARD -i "$link" -o "$uplink" -j ACCEPT
  iptables -A FORWARD -i "$link" -j DROP
  iptables -A INPUT -i "$link" -j DROP
  iptables -t nat -A POSTROUTING -s "$net" -o "$uplink" -j MASQUERADE
done
