#!/bin/sh
# The client.
set -eu
. /usr/local/lib/lb-lab.sh
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends wrk
at_boot lb-client 'ip route replace 198.51.100.0/24 via 203.0.113.1'
