#!/bin/sh
# A member of the etcd cluster: `etcd.sh NAME`. The members wait for each other, so none is waited for.
set -eu
name=$1
address=203.0.113.$((138 + ${name#etcd}))
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends etcd-server etcd-client
systemctl stop etcd
peers=
for n in 1 2 3; do peers=$peers,etcd$n=http://203.0.113.$((138 + n)):2380; done
cat >/etc/default/etcd <<END
ETCD_NAME=$name
ETCD_DATA_DIR=/var/lib/etcd/lb
ETCD_LISTEN_CLIENT_URLS=http://$address:2379,http://127.0.0.1:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$address:2379
ETCD_LISTEN_PEER_URLS=http://$address:2380
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://$address:2380
ETCD_INITIAL_CLUSTER=${peers#,}
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=1h
END
systemctl enable etcd
systemctl --no-block start etcd
