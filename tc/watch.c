// SPDX-License-Identifier: GPL-2.0-only
/* The backend's side of observed services, at tc ingress and egress of its interface: in modes dsr, ipip and
 * gue answers don't pass the nodes, but both directions pass here (behind tc/decap.c, where tunnels are
 * opened by that). It looks at connections to the VIPs that were named, and changes nothing. */
#include <uapi/linux/bpf.h>
#include "lb_consts.h"
#include "lb_structs.h"
#include "lb_maps.h"
#include "lb_csum.h"
#include "lb_parse.h"
#include "ctx.h"
#include "lb_histogram.h"
#include "lb_watch.h"

#define lb_watch_vips LB_MAP(LB_FD_WATCH_VIPS) /* hash: lb_endpoint -> lb_watch_vip */

static __always_inline struct lb_watch_vip *find_watched_vip(const __u32 *addr, __u16 port)
{
	struct lb_endpoint vip = { .port = port, .proto = IPPROTO_TCP };

	__builtin_memcpy(vip.addr, addr, sizeof(vip.addr));
	return bpf_map_lookup_elem(lb_watch_vips, &vip);
}

static __always_inline void look(struct __sk_buff *ctx, struct lb_packet *p)
{
	struct lb_flow_key key = {};
	struct lb_watch_vip *vip = find_watched_vip(p->dst, p->dport);

	if (vip) {
		__builtin_memcpy(key.client, p->src, sizeof(key.client));
		key.service = vip->service;
		key.client_port = p->sport;
		key.vip_port = p->dport;
		watch_client(ctx, p, &key, vip->owner, 0);
		return;
	}
	vip = find_watched_vip(p->src, p->sport);
	if (!vip)
		return;
	__builtin_memcpy(key.client, p->dst, sizeof(key.client));
	key.service = vip->service;
	key.client_port = p->dport;
	key.vip_port = p->sport;
	watch_server(ctx, p, &key, vip->patience * 1000000000ULL);
}

int watch(struct __sk_buff *ctx)
{
	__u32 zero = 0;
	struct lb_packet *p = bpf_map_lookup_elem(lb_scratch, &zero);

	if (!p || ctx_read(ctx, pkt_type) == 3 /* PACKET_OTHERHOST */)
		return TC_ACT_UNSPEC;
	__builtin_memset(p, 0, offsetof(struct lb_packet, first));
	ctx_make_readable(ctx);
	p->bytes = ctx_bytes(ctx);
	p->parsed = parse_packet(ctx_data(ctx), ctx_data_end(ctx), p);
	barrier();
	if (p->parsed == LB_PARSED && is_watchable(p))
		look(ctx, p);
	return TC_ACT_UNSPEC;
}
