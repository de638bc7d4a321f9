/* SPDX-License-Identifier: GPL-2.0-only */
/* Counting, and the last steps of every packet: TTL, MAC addresses, out. */
#ifndef LB_SEND_H
#define LB_SEND_H

static __always_inline void count_outcome(__u32 outcome, __u32 bytes)
{
	struct lb_counter *c = bpf_map_lookup_elem(lb_outcomes, &outcome);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

static __always_inline int pass(const struct lb_packet *p, __u32 outcome)
{
	count_outcome(outcome, p->bytes);
	return LB_VERDICT_PASS;
}

static __always_inline int drop(const struct lb_packet *p, __u32 outcome)
{
	count_outcome(outcome, p->bytes);
	return LB_VERDICT_DROP;
}

/* Are there hops left for us to take one (RFC 1812, 5.3.1)? */
static __always_inline int may_hop(const struct lb_packet *p)
{
	return p->hops > 1;
}

static __always_inline int take_hop(lb_ctx *ctx, const struct lb_packet *p)
{
	void *l3 = ctx_data(ctx) + at_l3(p);
	__u32 check;

	if (p->ipv6) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		ip->hop_limit--;
		ctx_update_frame_csum(ctx, csum_diff_u16(lb_htons(1), 0));
	} else {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		ip->ttl--;
		/* The TTL is the high byte of its word: the sum grows by what it lost (RFC 1141, and 1624 for 0). */
		check = (__u32)ip->check + lb_htons(0x0100);
		ip->check = check + (check >= 0xffff);
	}
	return 0;
}

/* Takes VLAN tags off, also where the frame goes out by the interface that it came in by: what the kernel says of a
 * next hop there is about the network without a tag; on another one it names the VLAN's own interface. */
static __always_inline int leave_vlan(lb_ctx *ctx, struct lb_packet *p)
{
	if (ctx_strip_vlan(ctx, at_l3(p), p->ethertype))
		return -1;
	p->l4 -= p->l3 - sizeof(struct ethhdr);
	p->l3 = sizeof(struct ethhdr);
	return 0;
}

/* Writes the MAC addresses and sends the frame on. */
static __always_inline int emit(lb_ctx *ctx, const struct lb_packet *p, __u32 ifindex, const __u8 *dmac,
				const __u8 *smac, __u32 outcome)
{
	int back = ifindex == p->ifindex;
	struct ethhdr *eth = ctx_data(ctx);

	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return drop(p, LB_DROP_NO_SPACE);
	copy_mac(eth->h_dest, dmac);
	copy_mac(eth->h_source, smac);
	count_outcome(outcome, p->bytes);
	return back ? ctx_send_back(ctx) : ctx_send_to(ctx, ifindex);
}

/* Takes a hop, and sends the frame on. */
static __always_inline int send_frame(lb_ctx *ctx, struct lb_packet *p, __u32 ifindex, const __u8 *dmac,
				      const __u8 *smac, __u32 outcome)
{
	if (take_hop(ctx, p) || leave_vlan(ctx, p))
		return drop(p, LB_DROP_NO_SPACE);
	return emit(ctx, p, ifindex, dmac, smac, outcome);
}

/* For answers that we make ourselves: back to where the packet came from. */
static __always_inline int send_answer(lb_ctx *ctx, const struct lb_packet *p, __u32 outcome)
{
	struct ethhdr *eth = ctx_data(ctx);
	__u8 mac[ETH_ALEN];

	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return drop(p, LB_DROP_NO_SPACE);
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	count_outcome(outcome, p->bytes);
	return ctx_send_back(ctx);
}

#endif
