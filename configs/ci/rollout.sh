#!/bin/sh
# A rollout from CI, in any shell: begin it, follow it to its end, leave reports, and exit with its code.
#
#   rollout.sh SERVICE POOL [options of `lbctl rollout start`]
#
# The store and who asks are in the environment, as for every lbctl: LB_STORE or LB_CONFIG, LB_ACTOR.
# REPORTS: folder for rollout.md, rollout.xml (JUnit), rollout.html and rollout.json; "." if it isn't set.
# rollout.id there is the rollout that this job began, for `lbctl rollout abort SERVICE --id`.
#
# The nodes run the rollout. If this job is killed, it goes on; if it is started again while one is under way
# to the same pool, it follows that one.
set -u
service=${1:?rollout.sh SERVICE POOL [options]}
pool=${2:?rollout.sh SERVICE POOL [options]}
shift 2
reports=${REPORTS:-.}
mkdir -p "$reports"
rm -f "$reports"/rollout.md "$reports"/rollout.xml "$reports"/rollout.html "$reports"/rollout.json \
	"$reports"/rollout.id

refused=20 # docs/reference/exit-codes.md

# Whoever follows a rollout that is under way has the same limit.
limit=
before=
for word in "$@"; do
	case $before in --timeout) limit=$word ;; esac
	case $word in --timeout=*) limit=${word#--timeout=} ;; esac
	before=$word
done

lbctl rollout start "$service" --to "$pool" "$@" --wait --id-file "$reports/rollout.id"
code=$?
[ -s "$reports/rollout.id" ] || rm -f "$reports/rollout.id"
if [ "$code" = "$refused" ]; then
	# Refused because one is under way already? Then it is ours if it goes to the same pool.
	present=$(lbctl rollout report "$service" -o json 2>/dev/null |
		python3 -c 'import json, sys
found = json.load(sys.stdin)["rollout"]
print(found["spec"]["pool"], found["status"]["phase"] not in ("promoted", "aborted"))')
	if [ "$present" = "$pool True" ]; then
		echo "following the rollout that is under way"
		lbctl rollout wait "$service" ${limit:+--timeout "$limit"}
		code=$?
	fi
fi

# With any other code none has begun, and the last report would be about an older one.
case $code in 0 | 7 | 2[1-8]) ;; *) exit "$code" ;; esac
for form in md:md junit:xml html:html json:json; do
	file="$reports/rollout.${form##*:}"
	lbctl rollout report "$service" -o "${form%%:*}" >"$file" || rm -f "$file"
done
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$reports/rollout.md" ]; then
	cat "$reports/rollout.md" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$code"
