#!/bin/sh
# A node: `node.sh NAME`. lbd as a service of the system; the first node has the service made, too.
set -eu
. /usr/local/lib/lb-lab.sh
name=$1
top=/home/vagrant/lb
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends git make etcd-client
make -C "$top" venv
for program in lbd lbctl; do ln -sf "$top/.venv/bin/$program" "/usr/local/bin/$program"; done
at_boot lb-node '
sysctl -q -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=0
ip address replace 198.51.100.100/32 dev lo'
front=$(interface_of "198.51.100.${name#node}")
mkdir -p /etc/lb
cat >/etc/lb/lb.toml <<END
store = "etcd://203.0.113.139:2379,203.0.113.140:2379,203.0.113.141:2379"
node = "$name"
interfaces = ["$front"]
END
sed 's|^ExecStart=[^ ]*|ExecStart=/usr/local/bin/lbd|' "$top/configs/systemd/lbd.service" \
	>/etc/systemd/system/lbd.service
systemctl daemon-reload
systemctl enable lbd
systemctl restart lbd
[ "$name" = node1 ] || exit 0
# Machines may come up at once: etcd is there when two members are.
timeout 300 sh -c 'until lbctl status >/dev/null; do sleep 2; done'
lbctl apply -f - <<END
services:
  - name: web
    vip: 198.51.100.100
    port: 80
    protocol: tcp
    mode: dsr
    backends:
      - {name: backend1, address: 198.51.100.21}
      - {name: backend2, address: 198.51.100.22}
      - {name: backend3, address: 198.51.100.23}
      - {name: backend4, address: 198.51.100.24}
END
