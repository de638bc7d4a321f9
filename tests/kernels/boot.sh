#!/bin/sh
# Goes on after init.sh, with the host's programs: mounts what a system has, runs /command, says how that
# ended by the second serial line, and switches the machine off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
exec </dev/null
stty -F /dev/console -opost
stty -F /dev/ttyS1 raw -echo
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
ulimit -l unlimited
echo "up: Linux $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
echo up >/dev/ttyS1
sh /command
echo "exit $?" >/dev/ttyS1
sync
/bin/busybox poweroff -f
