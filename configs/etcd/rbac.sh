#!/bin/sh
# Users and roles of an lb fleet in etcd, each with the least that it needs: plain etcdctl commands, to be
# read, changed, or typed by hand. See README.md beside this file.
#
#   rbac.sh roles                          the roles of people: lb-reader, lb-admin
#   rbac.sh reader|admin USER  <password   somebody who looks; somebody who changes everything
#   rbac.sh node NODE          <password   the user lb-node-NODE for lbd on that machine
#   rbac.sh ci SERVICE         <password   the user lb-ci-SERVICE, for deployments of one service
#   rbac.sh backend SERVICE BACKEND <password
#                                          the user lb-backend-SERVICE.BACKEND, for lbctl backend-node observe
#   rbac.sh rollout SERVICE    <password   the user lb-rollout-SERVICE, for rollouts of one service, and nothing else
#   rbac.sh drop USER                      take a user away, and the role of its own, if it has one
#
# The password is the first line of standard input. Without one, the user is made for client certificates
# whose CN is its name. Where etcd is, and who asks, is in ETCDCTL_ENDPOINTS, ETCDCTL_USER, ETCDCTL_CACERT.
set -eu
export ETCDCTL_API=3
root=/lb/v1        # what is wanted
reports=/lb/reports/v1

fail() { echo "rbac: error: $*" >&2; exit 1; }

# RFC 1123 labels, as lb's names are: nothing that could reach another key.
name() {
	echo "$1" | grep -Eqx '[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?' || fail "'$1' is not a name"
}

# add_role ROLE: make it, if it isn't there.
add_role() { etcdctl role get "$1" >/dev/null 2>&1 || etcdctl role add "$1"; }

# add_user USER ROLE
add_user() {
	password=
	IFS= read -r password || true
	if ! etcdctl user get "$1" >/dev/null 2>&1; then
		if [ -n "$password" ]; then
			echo "$password" | etcdctl user add "$1" --interactive=false
		else
			etcdctl user add "$1" --no-password
		fi
	fi
	etcdctl user grant-role "$1" "$2"
}

case ${1:-} in
roles)
	add_role lb-reader
	etcdctl role grant-permission lb-reader --prefix=true read /lb/
	add_role lb-admin
	etcdctl role grant-permission lb-admin --prefix=true readwrite /lb/
	;;
reader | admin)
	add_user "${2:?rbac.sh $1 USER}" "lb-$1"
	;;
node)
	name "${2:?rbac.sh node NODE}"
	add_role "lb-node-$2"
	etcdctl role grant-permission "lb-node-$2" --prefix=true read /lb/
	# Its own reports and record (what it saw of services is by service: one prefix for all nodes). Slot
	# tables belong to all nodes: whoever plans one first shares it.
	etcdctl role grant-permission "lb-node-$2" readwrite "$reports/nodes/$2"
	etcdctl role grant-permission "lb-node-$2" readwrite "$reports/votes/$2"
	etcdctl role grant-permission "lb-node-$2" --prefix=true readwrite "$reports/observed/"
	etcdctl role grant-permission "lb-node-$2" readwrite "$root/members/$2"
	etcdctl role grant-permission "lb-node-$2" --prefix=true readwrite "$root/tables/"
	# Drains come to their end by any node: the backend is then down. Rollouts, which any node may have to
	# run: their documents, the splits, the records of those.
	for each in "$root/backends/" "$root/rollouts/" "$root/services/" "$root/history/" \
		"$reports/rollouts/" "$reports/evidence/" "$reports/locks/"; do
		etcdctl role grant-permission "lb-node-$2" --prefix=true readwrite "$each"
	done
	add_user "lb-node-$2" "lb-node-$2"
	;;
ci)
	name "${2:?rbac.sh ci SERVICE}"
	add_role "lb-ci-$2"
	# It looks at everything, because what it wants is checked against everything.
	etcdctl role grant-permission "lb-ci-$2" --prefix=true read /lb/
	etcdctl role grant-permission "lb-ci-$2" readwrite "$root/services/$2"
	etcdctl role grant-permission "lb-ci-$2" --prefix=true readwrite "$root/backends/$2/"
	etcdctl role grant-permission "lb-ci-$2" --prefix=true readwrite "$root/history/"
	etcdctl role grant-permission "lb-ci-$2" readwrite "$root/rollouts/$2"
	etcdctl role grant-permission "lb-ci-$2" --prefix=true readwrite "$reports/rollouts/$2/"
	add_user "lb-ci-$2" "lb-ci-$2"
	;;
backend)
	name "${2:?rbac.sh backend SERVICE BACKEND}"
	name "${3:?rbac.sh backend SERVICE BACKEND}"
	role="lb-backend-$2.$3"
	add_role "$role"
	# It looks at its service only, and tells what it saw of that itself.
	etcdctl role grant-permission "$role" read "$root/services/$2"
	etcdctl role grant-permission "$role" --prefix=true read "$root/backends/$2/"
	etcdctl role grant-permission "$role" readwrite "$reports/observed/$2/$3"
	add_user "$role" "$role"
	;;
rollout)
	name "${2:?rbac.sh rollout SERVICE}"
	add_role "lb-rollout-$2"
	etcdctl role grant-permission "lb-rollout-$2" --prefix=true read /lb/
	# One document. What follows from it, the split above all, is written by the nodes.
	etcdctl role grant-permission "lb-rollout-$2" readwrite "$root/rollouts/$2"
	add_user "lb-rollout-$2" "lb-rollout-$2"
	;;
drop)
	etcdctl user delete "${2:?rbac.sh drop USER}"
	case $2 in
	lb-node-* | lb-ci-* | lb-backend-* | lb-rollout-*) etcdctl role delete "$2" ;;
	esac
	;;
*)
	fail "unknown command '${1:-}': roles, reader, admin, node, ci, backend, rollout, drop"
	;;
esac
