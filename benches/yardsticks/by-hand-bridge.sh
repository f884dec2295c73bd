#!/usr/bin/env bash
# The script of a careful operator for VMs on a bridge: ip(8), bridge(8) and iptables(8), one command at a time.
# Runs in the calling shell's network namespace: start it only in a temporary one, as benches/run.sh does.
set -euo pipefail

slots=${1:?number of slots}
net=192.168.137

sysctl -qw net.ipv4.ip_forward=1
ip link add handbr type bridge forward_delay 0
ip addr add "$net.1/24" dev handbr
ip link set handbr up
iptables -t nat -A POSTROUTING -s "$net.0/24" ! -o handbr -j MASQUERADE
iptables -A FORWARD -i handbr -j ACCEPT
iptables -A FORWARD -o handbr -j ACCEPT
for ((slot = 0; slot < slots; slot++)); do
  tap=hand$slot mac=$(printf '02:00:00:00:%02x:%02x' $((slot / 256)) $((slot % 256)))
  address=$net.$((slot + 2))
  ip tuntap add "$tap" mode tap vnet_hdr
  ip link set "$tap" master handbr
  bridge fdb add "$mac" dev "$tap" master static
  # A VM may send only with its own address and MAC in IPv4.
  iptables -A FORWARD -m physdev --physdev-in "$tap" ! -s "$address" -j DROP
  iptables -A FORWARD -m physdev --physdev-in "$tap" -m mac ! --mac-source "$mac" -j DROP
  iptables -A INPUT -m physdev --physdev-in "$tap" ! -s "$address" -j DROP
  iptables -A INPUT -m physdev --physdev-in "$tap" -m mac ! --mac-source "$mac" -j DROP
  ip link set "$tap" up
done
