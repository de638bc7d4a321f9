// SPDX-License-Identifier: GPL-2.0-only
/* Health checks `via: vip`, on their way in (clsact ingress, before the balancer): see probe.h. */
#include "probe.h"

int probe_back(struct __sk_buff *ctx)
{
	struct lb_packet packet = {}, *p = &packet;
	struct lb_probe_key key = {};
	struct lb_probe *probe;

	if (read_probe(ctx, p))
		return TC_ACT_UNSPEC;
	probe_key(&key, p->src, p->sport, p->dst, p->dport, p->proto);
	probe = bpf_map_lookup_elem(lb_probes, &key);
	if (!probe)
		return TC_ACT_UNSPEC;
	if (nat_rewrite(ctx, p, 1, probe->peer, probe->peer_port) || nat_rewrite(ctx, p, 0, probe->own, 0))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}
