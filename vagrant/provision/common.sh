#!/bin/sh
# What all machines need, and two functions for the scripts after it: /usr/local/lib/lb-lab.sh.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends curl iproute2 ethtool python3
cat >/usr/local/lib/lb-lab.sh <<'END'
# The interface that has an address: providers name them as they like.
interface_of() { ip -o -4 address show | awk -v a="$1" '{ split($4, b, "/"); if (b[1] == a) print $2 }'; }

# Keep a script's settings over a restart of the machine: `at_boot NAME COMMANDS`, run now and then.
at_boot() {
	printf '#!/bin/sh\nset -eu\n. /usr/local/lib/lb-lab.sh\n%s\n' "$2" >"/usr/local/sbin/$1"
	chmod 755 "/usr/local/sbin/$1"
	cat >"/etc/systemd/system/$1.service" <<UNIT
[Unit]
After=network-online.target
Wants=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/$1
[Install]
WantedBy=multi-user.target
UNIT
	systemctl daemon-reload
	systemctl enable "$1.service"
	systemctl restart "$1.service"
}
END
