#!/bin/sh
# The router: spreads the VIP over the three nodes, by addresses and ports.
set -eu
. /usr/local/lib/lb-lab.sh
at_boot lb-router '
sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.fib_multipath_hash_policy=1
sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0
ip route replace 198.51.100.100/32 nexthop via 198.51.100.1 nexthop via 198.51.100.2 nexthop via 198.51.100.3'
