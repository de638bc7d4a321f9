#!/bin/sh
# Runs as root in a fresh Debian 12, in a mount and a pid namespace of its own; the checkout is in
# /home/vagrant/lb. What vagrant/ provisions its lab machine with, then what the README tells a newcomer.
set -eu
cd /home/vagrant/lb
for script in common lab; do
	echo "fresh: vagrant/provision/$script.sh"
	sh "vagrant/provision/$script.sh"
done
echo "fresh: sudo make demo"
sudo make demo
echo "fresh: sudo make test ($PYTEST_ADDOPTS)"
sudo --preserve-env=PYTEST_ADDOPTS make test
