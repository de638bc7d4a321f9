#!/bin/sh
# Runs a command in namespaces of its own: for networks and mounts, so that labs, which all have the same
# names and addresses, don't meet those of others and reach nothing outside; and for processes, so that
# with the command, however it ends, everything ends that it has started.
set -eu
exec unshare --mount --net --pid --fork --kill-child --mount-proc sh -euc '
	mount -t tmpfs tmpfs /run
	mount -t bpf bpf /sys/fs/bpf
	mkdir /run/lock
	ip link set lo up
	status=0
	LB_APART=1 "$@" || status=$?  # not exec: the first process has to take in orphans
	exit $status
' sh "$@"
