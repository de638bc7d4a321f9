#!/bin/busybox sh
# The first program in the virtual machine, in its initramfs: puts the host's file system, read-only, below
# one in memory, and goes on there with boot.sh. /conf says KERNEL (the folder of the kernel's files).
b() { /bin/busybox "$@"; }
. /conf
b mkdir -p /proc /sys /dev /ro /rw /new
b mount -t proc proc /proc
b mount -t devtmpfs dev /dev
for module in /modules/*; do b insmod "$module" || echo "insmod $module failed"; done
b mount -t virtiofs -o ro root /ro || b poweroff -f
b mount -t tmpfs tmpfs /rw
b mkdir /rw/upper /rw/work
b mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new || b poweroff -f
b cp /conf /command /boot.sh /new/
# The host's own modules and headers are covered, not removed: that would look at each of their files.
for folder in lib/modules src; do
	case $folder in src) from=$KERNEL/usr/src ;; *) from=$KERNEL/lib/modules ;; esac
	b mount -t tmpfs tmpfs "/new/usr/$folder"
	for entry in "/new$from"/*; do b ln -s "${entry#/new}" "/new/usr/$folder/"; done
done
b umount /proc
b mount --move /dev /new/dev
exec /bin/busybox switch_root /new /bin/sh /boot.sh
