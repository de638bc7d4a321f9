// SPDX-License-Identifier: GPL-2.0-only
/* Mirrored traffic, on its way out (clsact egress): makes a copy what its backend expects. See mirror.h. */
#include "mirror.h"

/* Of all that this server has sent, that it has come; and the last time that it told, so that it doesn't take the
 * other server's for one of its own. */
static __always_inline int translate_ack(lb_ctx *ctx, const struct lb_packet *p, const struct lb_mirrored *held)
{
	__u32 at = at_l4(p), ack = lb_htonl(held->server_next);
	__u32 check = at + offsetof(struct tcphdr, check);
	struct tcphdr *tcp = ctx_data(ctx) + at;
	struct lb_timestamps *option;
	__u32 was, time, echo;

	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return -1;
	if (!tcp->ack || held->stage == LB_MIRROR_OPENING)
		return 0;
	was = tcp->ack_seq;
	if (bpf_l4_csum_replace(ctx, check, was, ack, sizeof(ack)) ||
	    bpf_skb_store_bytes(ctx, at + offsetof(struct tcphdr, ack_seq), &ack, sizeof(ack), 0))
		return -1;
	option = ctx_data(ctx) + at + LB_TCP_TIMESTAMPS_AT;
	lb_keep(option);
	if ((void *)(option + 1) > ctx_data_end(ctx) || option->kind != lb_htons(LB_TCP_TIMESTAMPS) ||
	    p->l4_bytes < sizeof(*tcp) + 12)
		return 0;
	__builtin_memcpy(&time, held->time, sizeof(time));
	__builtin_memcpy(&echo, option->echo, sizeof(echo));
	/* It begins at an even byte, so the words of the sum are those of the option. */
	if (bpf_l4_csum_replace(ctx, check, echo, time, sizeof(time)) ||
	    bpf_skb_store_bytes(ctx, at + LB_TCP_TIMESTAMPS_AT + offsetof(struct lb_timestamps, echo), &time,
				sizeof(time), 0))
		return -1;
	return 0;
}

int mirror_out(struct __sk_buff *ctx)
{
	struct lb_packet packet = {}, *p = &packet;
	__u32 mark = ctx_read(ctx, mark), id = mark & ~LB_MIRROR_MARK_MASK, service;
	struct lb_flow_key key = {};
	struct lb_backend *backend;
	struct lb_mirrored *held;
	struct ethhdr *eth;

	if ((mark & LB_MIRROR_MARK_MASK) != LB_MIRROR_MARK)
		return TC_ACT_UNSPEC;
	ctx->mark = 0;
	ctx_make_readable(ctx);
	p->ifindex = ctx_read(ctx, ingress_ifindex);
	p->bytes = ctx_bytes(ctx);
	backend = bpf_map_lookup_elem(lb_backends, &id);
	if (!backend || parse_packet(ctx_data(ctx), ctx_data_end(ctx), p) != LB_PARSED)
		return TC_ACT_SHOT;
	service = find_vip(p->dst, p->dport, p->proto);
	mirrored_key(&key, p->src, p->sport, service, p->dport);
	if (p->proto == IPPROTO_TCP && !p->begins) {
		held = bpf_map_lookup_elem(lb_mirrored_map, &key);
		if (!held || translate_ack(ctx, p, held))
			return TC_ACT_SHOT;
	}
	if (nat_rewrite(ctx, p, 0, backend->addr, backend->port) || take_hop(ctx, p) ||
	    leave_vlan(ctx, p))
		return TC_ACT_SHOT;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return TC_ACT_SHOT;
	copy_mac(eth->h_dest, backend->dmac);
	copy_mac(eth->h_source, backend->smac);
	return TC_ACT_OK;
}
