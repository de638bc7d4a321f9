#!/bin/sh
# One machine with everything that the lab in network namespaces needs.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends git make
make -C /home/vagrant/lb venv
