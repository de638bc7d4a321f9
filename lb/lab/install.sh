#!/bin/sh
# Install what lb needs from Debian, if it is missing. A second run changes and downloads nothing.
# Used by `make deps` and by the virtual machines of vagrant/. `install.sh kernels` installs what it takes to
# boot other kernels (tests/kernels), too.
set -eu

# Debian leaves the sbin folders out of a user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "deps: $*"; }
fail() { echo "deps: error: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || fail "lb runs on Linux only; try a Debian 12 virtual machine"
command -v dpkg-query >/dev/null || fail "this is not a Debian: install what $0 lists by hand"

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# A command that is there will do, whichever package it came from: apt would take nginx-full away
# to install nginx-light.
missing=
want_command() { command -v "$1" >/dev/null || missing="$missing $2"; }
want_package() { installed "$1" || missing="$missing $1"; }

want_package python3-bpfcc # BCC. The package named bcc on PyPI is something else
want_package python3-venv
want_command nginx nginx-light
# A peer of `make bench`; fits Debian's nginx only.
if ! command -v nginx >/dev/null || installed nginx-common; then want_package libnginx-mod-stream; fi
want_command etcd etcd-server
want_command etcdctl etcd-client
want_command haproxy haproxy
want_command wrk wrk
[ -e /etc/services ] || missing="$missing netbase" # wrk looks "http" up there; small images lack it
want_command openssl openssl
want_command curl curl
want_command ip iproute2
want_command ss iproute2
want_command ethtool ethtool
want_command nft nftables
want_command bpftool bpftool
want_command cc gcc
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev" # gcc only recommends it
want_command tcpdump tcpdump
want_command ping iputils-ping
want_command dnsmasq dnsmasq-base
want_command dig bind9-dnsutils
want_command openssl openssl
want_command sysctl procps
want_command nsenter util-linux
want_command mount mount
if [ "${1:-}" = kernels ]; then
	want_command qemu-system-x86_64 qemu-system-x86
	want_package busybox-static # the initramfs has no libraries
	want_command cpio cpio
	want_command depmod kmod
	want_command xz xz-utils
	want_command zstd zstd
	want_command debootstrap debootstrap
	want_command ipvsadm ipvsadm
	want_command tc iproute2
fi

# BCC compiles against kernel headers: those of the running kernel, or those of Debian's kernel.
kernel=$(uname -r)
arch=$(dpkg --print-architecture)
headers=
if [ ! -e "/lib/modules/$kernel/build/Makefile" ] && ! installed "linux-headers-$kernel" &&
	! installed "linux-headers-$arch"; then
	headers=yes
fi

if [ -z "$missing$headers" ]; then
	say "everything is installed"
	exit 0
fi
[ "$(id -u)" = 0 ] || fail "missing:$missing${headers:+ kernel headers}; install them with: sudo make deps"

say "updating the list of packages"
apt-get update -qq || fail "apt-get update failed: check the network and /etc/apt/sources.list"
if [ -n "$headers" ]; then
	package=linux-headers-$kernel
	apt-cache show "$package" >/dev/null 2>&1 || package=linux-headers-$arch
	missing="$missing $package"
fi

# The lab and the tests run their own nginx, etcd and HAProxy. One that Debian starts beside them would be
# a server that nobody asked for: keep it from starting, now and at the next boot.
policy=/usr/sbin/policy-rc.d
case $missing in
*nginx* | *etcd* | *haproxy*)
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		trap 'exit 1' HUP INT TERM
		# Exit status 101: "action not allowed" (/usr/share/doc/init-system-helpers).
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	;;
esac

say "installing$missing"
# The list is made of package names: splitting it into words is what we want.
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing \
	>/dev/null || fail "apt-get could not install$missing"

for service in nginx etcd haproxy; do
	case $missing in
	*"$service"*)
		if [ -d /run/systemd/system ]; then
			systemctl --quiet disable "$service.service" || say "could not disable the system's $service"
		fi
		;;
	esac
done
say "installed"
