/* SPDX-License-Identifier: GPL-2.0-only */
/* From a packet to its service, and from there to a backend. */
#ifndef LB_PICK_H
#define LB_PICK_H

/* jiffies between two writes of an entry's time: about a second at the usual HZ, so that a busy
 * flow doesn't dirty a cache line with each packet. */
#define LB_SEEN_STEP 256

static __always_inline int is_translated(const struct lb_service *svc)
{
	return svc->mode == LB_MODE_NAT || svc->mode == LB_MODE_FULLNAT;
}

/* What is known of a flow. */
#define LB_KNOWN_CONNTRACK 0x1
#define LB_KNOWN_EMBRYONIC 0x2
#define LB_KNOWN_RESETS 0x4 /* its backend is none any more, and clients are to be told */

/* An id, not a pointer: LLVM likes to select between pointers with arithmetic that the verifier
 * refuses, and looking an array up again costs about 1 ns. */
struct lb_choice {
	__u32 backend; /* LB_SLOT_EMPTY: none is usable */
	__u8 is_new;   /* this packet begins a flow */
	__u8 resets;   /* of a flow that its backend no longer takes: the client is told */
};

/* What a slot that moved lately remembers. */
struct lb_past {
	__u32 origin; /* the backend that it had */
	__u8 moving;  /* is its window open? */
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
	*id = find_vip(p->dst, p->dport, p->proto);
	if (!*id)
		return NULL;
	return bpf_map_lookup_elem(lb_services, id);
}

/* What is asked for this client alone; NULL = nothing. */
static __always_inline struct lb_rule *find_rule(const struct lb_service *svc, __u32 id,
						 const struct lb_packet *p)
{
	struct lb_rule_key key = {};

	if (!svc->has_rules)
		return NULL;
	key.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen));
	key.service = id;
	__builtin_memcpy(key.client, p->src, sizeof(key.client));
	return bpf_map_lookup_elem(lb_rules, &key);
}

/* The slot's word, and its past if it isn't quiet. */
static __always_inline __u32 slot_word(__u32 service, __u32 slot, struct lb_past *past)
{
	__u32 at = 2 * service, only = 0;
	void *inner = bpf_map_lookup_elem(lb_tables, &at);
	struct lb_table *table;
	__u32 word;

	if (!inner)
		return LB_SLOT_EMPTY;
	/* Inner maps are of one size, so this is no call but a few instructions. */
	table = bpf_map_lookup_elem(inner, &only);
	if (!table)
		return LB_SLOT_EMPTY;
	word = table->slot[slot & LB_SLOT_MASK];
	if (!(word & LB_SLOT_STIRRED))
		return word;
	past->moving = table->closes[(word >> 24) & (LB_EPOCHS - 1)] > bpf_ktime_get_ns();
	at++;
	inner = bpf_map_lookup_elem(lb_tables, &at);
	if (!inner)
		return word;
	table = bpf_map_lookup_elem(inner, &only);
	if (table)
		past->origin = table->slot[slot & LB_SLOT_MASK];
	return word;
}

/* The word that says where p's flow goes, and the past of its slot or, if that changed lately, of the rule
 * for its client. */
static __always_inline __u32 flow_word(const struct lb_service *svc, __u32 id,
				       const struct lb_packet *p, struct lb_past *past)
{
	struct lb_rule *rule = find_rule(svc, id, p);
	__u32 slot = flow_slot(svc, p);
	struct lb_past before = {};
	__u32 word;

	word = slot_word(rule ? rule->table : id, slot, past);
	if (!rule || !rule->closes)
		return word;
	if (rule->closes > bpf_ktime_get_ns()) {
		past->moving = 1;
		past->origin = slot_word(rule->before, slot, &before) & LB_SLOT_BACKEND;
		if (before.moving)
			past->origin = before.origin;
	}
	return word | LB_SLOT_STIRRED;
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

/* The same for a backend that has failed: are clients told that their flows there are over? */
static __always_inline int does_reset(__u32 id, __u32 generation)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);

	if (!backend || (generation && backend->generation != generation))
		return 0;
	return backend->flags & LB_BACKEND_RESETS;
}

static __always_inline void touch(struct lb_flow *flow)
{
	__u32 now = bpf_jiffies64();

	if (now - flow->seen >= LB_SEEN_STEP)
		flow->seen = now;
}

/* Where this packet's flow went before, if that backend still is who it was, and usable. A SYN of a
 * flow that had got further is a new connection on an old port pair, so it is placed anew. */
static __always_inline __u32 follow(struct lb_flow_key *key, const struct lb_packet *p, int *known)
{
	struct lb_flow *flow = bpf_map_lookup_elem(lb_conntrack, key);
	struct lb_flow grown = {};

	if (flow) {
		*known |= LB_KNOWN_CONNTRACK;
		if (!(p->begins && p->proto == IPPROTO_TCP) && is_usable(flow->backend, flow->generation)) {
			if (!p->quoted)
				touch(flow);
			return flow->backend;
		}
		if (does_reset(flow->backend, flow->generation))
			*known |= LB_KNOWN_RESETS;
	}
	flow = bpf_map_lookup_elem(lb_embryonic, key);
	if (!flow)
		return LB_SLOT_EMPTY;
	*known |= LB_KNOWN_EMBRYONIC;
	if (!is_usable(flow->backend, flow->generation)) {
		if (does_reset(flow->backend, flow->generation))
			*known |= LB_KNOWN_RESETS;
		return LB_SLOT_EMPTY;
	}
	if (p->quoted)
		return flow->backend;
	if (p->begins) { /* sent again */
		touch(flow);
		return flow->backend;
	}
	grown.backend = flow->backend;
	grown.generation = flow->generation;
	grown.seen = bpf_jiffies64();
	bpf_map_update_elem(lb_conntrack, key, &grown, BPF_ANY);
	bpf_map_delete_elem(lb_embryonic, key);
	return grown.backend;
}

/* Flows that have only begun are kept apart from the others, which a flood of SYNs (or of single
 * datagrams) then can't push out. */
static __always_inline void remember(struct lb_flow_key *key, __u32 id, int embryonic, int known)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	struct lb_flow flow = { .backend = id, .seen = bpf_jiffies64() };

	if (!backend)
		return;
	flow.generation = backend->generation;
	if (embryonic) {
		bpf_map_update_elem(lb_embryonic, key, &flow, BPF_ANY);
		if (known & LB_KNOWN_CONNTRACK)
			bpf_map_delete_elem(lb_conntrack, key);
	} else {
		bpf_map_update_elem(lb_conntrack, key, &flow, BPF_ANY);
		if (known & LB_KNOWN_EMBRYONIC)
			bpf_map_delete_elem(lb_embryonic, key);
	}
}

/* `named`: the backend that the packet itself names, and that goes before all else; or LB_SLOT_EMPTY. */
static __always_inline struct lb_choice choose_backend(const struct lb_service *svc, __u32 id,
						       const struct lb_packet *p, __u32 named)
{
	struct lb_past past = {};
	__u32 word = flow_word(svc, id, p, &past);
	__u32 own = word & LB_SLOT_BACKEND;
	struct lb_choice choice = {};
	struct lb_flow_key key = {};
	int known = 0;
	int older;

	if (named != LB_SLOT_EMPTY && svc->tracking != LB_TRACK_ALWAYS) {
		choice.backend = named;
		return choice;
	}
	if (svc->tracking == LB_TRACK_NEVER ||
	    (svc->tracking == LB_TRACK_MOVING && !(word & LB_SLOT_STIRRED))) {
		if (is_usable(own, 0)) {
			choice.backend = own;
			choice.is_new = p->begins;
		}
		return choice;
	}

	__builtin_memcpy(key.client, p->src, sizeof(key.client));
	key.service = id;
	key.client_port = p->sport;
	key.vip_port = p->dport;
	choice.backend = follow(&key, p, &known);
	if (named != LB_SLOT_EMPTY && named != choice.backend) {
		remember(&key, named, 0, known);
		choice.backend = named;
	}
	if (choice.backend != LB_SLOT_EMPTY)
		return choice;

	/* Nobody saw it begin, and it doesn't begin now: it is older than the move. Where each datagram
	 * is remembered, one that isn't begins a flow. */
	older = p->quoted ||
		(!p->begins && (p->proto == IPPROTO_TCP || svc->tracking == LB_TRACK_MOVING));
	/* In the middle of a connection, whose backend has failed: so that the client begins anew at once. */
	if (p->proto == IPPROTO_TCP && !p->begins && !p->quoted &&
	    (known ? known & LB_KNOWN_RESETS : past.moving && does_reset(past.origin, 0))) {
		choice.resets = 1;
		return choice;
	}
	if (older && past.moving && is_usable(past.origin, 0))
		choice.backend = past.origin;
	else if (is_usable(own, 0))
		choice.backend = own;
	else
		return choice;
	choice.is_new = !older;
	/* What is known already must not say something else later. */
	if (!p->quoted && (svc->tracking == LB_TRACK_ALWAYS || past.moving || known))
		remember(&key, choice.backend,
			 p->begins || (!older && !(known & LB_KNOWN_CONNTRACK)), known);
	return choice;
}

#endif
