#!/bin/sh
# A server of the service: `backend.sh NAME`. nginx answers with its name, for the VIP too (mode dsr).
set -eu
. /usr/local/lib/lb-lab.sh
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends nginx-light
cat >/etc/nginx/sites-enabled/default <<END
server {
    listen 80 default_server;
    location = / { default_type text/plain; return 200 "$1\n"; }
}
END
systemctl restart nginx
at_boot lb-backend '
sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=0
ip address replace 198.51.100.100/32 dev lo
ip route replace 203.0.113.0/25 via 198.51.100.254'
