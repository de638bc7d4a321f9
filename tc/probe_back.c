// SPDX-License-Identifier: GPL-2.0-only
/* Health checks `via: vip`, on their way in (clsact ingress, before the balancer): see probe.h. */
#include <uapi/linux/bpf.h>
#include "lb_consts.h"
#include "lb_structs.h"
#include "lb_maps.h"
#include "lb_csum.h"
#include "lb_parse.h"
#include "lb_hash.h"
#include "lb_links.h"
#include "ctx.h"
#include "lb_send.h"
#include "lb_answer.h"
#include "lb_tunnel.h"
#include "lb_errors.h"
#include "lb_pick.h"
#include "lb_fragment.h"
#include "lb_quic.h"
#include "lb_fullnat.h"
#include "lb_nat.h"
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
