/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet to its service, and from there to a backend. */
#ifndef LB_PICK_H
#define LB_PICK_H

/* jiffies between two writes of an entry's time: about a second at the usual HZ, so that a busy
 * flow doesn't dirty a cache line with each packet. */
#define LB_SEEN_STEP 256

/* An id, not a pointer: LLVM likes to select between pointers with arithmetic that the verifier
 * refuses, and looking an array up again costs about 1 ns. */
struct lb_choice {
	__u32 backend; /* LB_SLOT_EMPTY: none is usable */
	__u8 is_new;   /* this packet begins a flow */
};

/* The bits of the protocols that are served at p's destination address; 0 = not a VIP. */
static __always_inline __u32 vip_protocols(const struct lb_packet *p)
{
	struct lb_endpoint vip = {};
	__u32 *bits;

	__builtin_memcpy(vip.addr, p->dst, sizeof(vip.addr));
	vip.proto = IPPROTO_ICMP;
	bits = bpf_map_lookup_elem(lb_vips, &vip);
	return bits ? *bits : 0;
}

static __always_inline struct lb_service *find_service(const struct lb_packet *p, __u32 *id)
{
	struct lb_endpoint vip = {};
	__u32 *found;

	__builtin_memcpy(vip.addr, p->dst, sizeof(vip.addr));
	vip.port = p->dport;
	vip.proto = p->proto;
	found = bpf_map_lookup_elem(lb_vips, &vip);
	if (!found)
		return NULL;
	*id = *found;
	return bpf_map_lookup_elem(lb_services, id);
}

static __always_inline __u32 slot_backend(const struct lb_service *svc, __u32 id,
					  const struct lb_packet *p)
{
	void *inner = bpf_map_lookup_elem(lb_tables, &id);
	struct lb_table *table;
	__u32 zero = 0;

	if (!inner)
		return LB_SLOT_EMPTY;
	table = bpf_map_lookup_elem(inner, &zero);
	if (!table)
		return LB_SLOT_EMPTY;
	return table->slot[flow_slot(svc, p)];
}

/* May flows go to this backend, if it is of that generation (0 = whichever)? */
static __always_inline int is_usable(__u32 id, __u32 generation)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);

	if (!backend)
		return 0;
	if (generation && backend->generation != generation)
		return 0;
	return backend->flags & LB_BACKEND_USABLE;
}

/* Where this packet's flow went before, if that backend still is who it was, and usable. A SYN of a
 * flow that had got further is a new connection on an old port pair, so it is placed anew. */
static __always_inline __u32 tracked_backend(struct lb_flow_key *key, const struct lb_packet *p)
{
	struct lb_flow *flow = bpf_map_lookup_elem(lb_conntrack, key);
	__u32 now;

	if (!flow)
		return LB_SLOT_EMPTY;
	if (p->syn && !(flow->flags & LB_CT_EMBRYONIC))
		return LB_SLOT_EMPTY;
	if (!is_usable(flow->backend, flow->generation))
		return LB_SLOT_EMPTY;
	now = bpf_jiffies64();
	if (now - flow->seen >= LB_SEEN_STEP)
		flow->seen = now;
	if (!p->syn && flow->flags & LB_CT_EMBRYONIC)
		flow->flags &= ~LB_CT_EMBRYONIC;
	return flow->backend;
}

static __always_inline void track(lb_ctx *ctx, struct lb_flow_key *key, const struct lb_packet *p,
				  __u32 id)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	struct lb_flow flow = {
		.backend = id,
		.seen = bpf_jiffies64(),
		.flags = p->syn ? LB_CT_EMBRYONIC : 0,
		/* A frame sent back without its tag would be on the wrong network. */
		.ifindex = ctx_is_tagged(ctx, p->l3) ? 0 : p->ifindex,
	};
	const struct ethhdr *eth = ctx_data(ctx);

	if (!backend || (void *)(eth + 1) > ctx_data_end(ctx))
		return;
	__builtin_memcpy(flow.mac, eth->h_source, ETH_ALEN);
	flow.generation = backend->generation;
	bpf_map_update_elem(lb_conntrack, key, &flow, BPF_ANY);
}

static __always_inline struct lb_choice choose_backend(lb_ctx *ctx, const struct lb_service *svc,
						       __u32 id, const struct lb_packet *p)
{
	struct lb_choice choice = {};
	struct lb_flow_key key = {};

	__builtin_memcpy(key.client, p->src, sizeof(key.client));
	key.service = id;
	key.client_port = p->sport;
	key.vip_port = p->dport;
	if (svc->tracking == LB_TRACK_ALWAYS) {
		choice.backend = tracked_backend(&key, p);
		if (choice.backend != LB_SLOT_EMPTY)
			return choice;
	}

	choice.backend = slot_backend(svc, id, p);
	if (choice.backend == LB_SLOT_EMPTY || !is_usable(choice.backend, 0)) {
		choice.backend = LB_SLOT_EMPTY;
		return choice;
	}
	choice.is_new = p->syn;
	if (svc->tracking == LB_TRACK_ALWAYS) {
		track(ctx, &key, p, choice.backend);
		choice.is_new = 1;
	}
	return choice;
}

#endif
