/* SPDX-License-Identifier: GPL-2.0-only */
/* Mode fullnat: both addresses and both ports are translated, so that the server needs to know nothing of
 * us. Each flow has a port of ours at its server's socket (RFC 4787's address and port-dependent mapping),
 * held by two entries: one for each direction. lbd removes them (lb/datapath/expiry.py). */
#ifndef LB_FULLNAT_H
#define LB_FULLNAT_H

/* Our ports: below those that Linux takes for connections of its own (32768 and up). */
#define LB_NAT_FIRST_PORT 1024
#define LB_NAT_PORTS 31744
/* Ports that are tried, in an order that each flow has for itself. With 9 in 10 taken, all fail for one
 * flow in 29; with 8 in 10, for one in 1,260. */
#define LB_NAT_TRIES 32

static __always_inline __u8 tcp_ends(lb_ctx *ctx, const struct lb_packet *p)
{
	struct tcphdr *tcp = ctx_data(ctx) + at_l4(p);

	if (p->proto != IPPROTO_TCP || (void *)(tcp + 1) > ctx_data_end(ctx))
		return 0;
	return (tcp->fin ? LB_NAT_FIN : 0) | (tcp->rst ? LB_NAT_RST : 0);
}

/* Who goes on sending was not reset, whoever said so: a RST need not have the right sequence number here
 * (RFC 7857, 2.2). And a client that sends more than SYNs has got an answer; a RST tells of none. */
static __always_inline void note_seen(__u32 *seen, __u8 *state, const struct lb_packet *p, __u8 more)
{
	__u32 now = bpf_jiffies64();
	/* Without branches, which the verifier would have to follow. */
	__u8 opening = p->begins * LB_NAT_OPENING | (more & LB_NAT_RST) * (LB_NAT_OPENING / LB_NAT_RST);
	__u8 is = (*state & (LB_NAT_ANSWERED | LB_NAT_FIN | opening)) | more;

	if (now - *seen >= LB_SEEN_STEP)
		*seen = now;
	if (*state != is)
		*state = is;
}

/* The key of the way back. */
static __always_inline void translated_key(struct lb_translated *key, const struct lb_packet *p,
					   const struct lb_binding *binding,
					   const struct lb_backend *backend)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->backend, backend->addr, sizeof(key->backend));
	__builtin_memcpy(key->source, binding->source, sizeof(key->source));
	key->backend_port = backend->port ? backend->port : p->dport;
	key->port = binding->port;
	key->proto = p->proto;
}

/* Finds a port that nobody has at this server's socket, and takes it: BPF_NOEXIST lets one CPU win. Where our
 * address is a VIP, too, a service's port is none of them: answers to it would be that service's. 0 = done. */
static __always_inline int bind_flow(const struct lb_packet *p, const struct lb_service *svc, __u32 id,
				     const struct lb_flow_key *key, struct lb_binding *binding)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	struct lb_translated back;
	struct lb_client client = { .flow = *key, .backend = id, .seen = bpf_jiffies64() };
	__u64 h = hash_mix(svc->seed[0] ^ ((__u64)lb_ntohl(p->src[3]) << 32) ^
			   ((__u32)lb_ntohs(p->sport) << 16) ^ lb_ntohs(p->dport));
	__u32 at = (__u32)h % LB_NAT_PORTS, step = 1 + (__u32)(h >> 32) % (LB_NAT_PORTS - 1);

	if (!backend)
		return -1;
	binding->backend = id;
	binding->generation = backend->generation;
	binding->seen = client.seen;
	binding->state = LB_NAT_OPENING;
	__builtin_memcpy(binding->source, backend->source, sizeof(binding->source));
	for (int i = 0; i < LB_NAT_TRIES; i++) {
		binding->port = lb_htons(LB_NAT_FIRST_PORT + at);
		translated_key(&back, p, binding, backend);
		if (!vip_entry(binding->source, binding->port, p->proto, LB_HAS_RANGES) &&
		    !bpf_map_update_elem(lb_translations, &back, &client, BPF_NOEXIST)) {
			if (!bpf_map_update_elem(lb_bindings, (void *)key, binding, BPF_NOEXIST))
				return 0;
			/* The map is full, or another CPU was faster with the same flow: the client's
			 * next try finds that. */
			bpf_map_delete_elem(lb_translations, &back);
			return -1;
		}
		at += step;
		if (at >= LB_NAT_PORTS)
			at -= LB_NAT_PORTS;
	}
	return -1;
}

/* What the flow is bound to; LB_SLOT_EMPTY in `backend` if there is nobody to bind it to, and `full` set if
 * there was no port for it. Only what begins a flow is bound: the server knows no other port of ours. */
static __always_inline struct lb_choice choose_binding(lb_ctx *ctx, const struct lb_service *svc,
						       __u32 service, const struct lb_packet *p,
						       __u32 named, struct lb_binding *binding,
						       int *full)
{
	struct lb_choice choice = {};
	struct lb_flow_key key = {};
	struct lb_past past = {};
	struct lb_binding *held;
	__u8 held_resets = 0;
	__u32 id;

	__builtin_memcpy(key.client, p->src, sizeof(key.client));
	key.service = service;
	key.client_port = p->sport;
	key.vip_port = p->dport;
	held = bpf_map_lookup_elem(lb_bindings, &key);
	if (held) {
		int ended = p->begins && p->proto == IPPROTO_TCP && held->state & (LB_NAT_FIN | LB_NAT_RST);

		id = held->backend;
		if (!ended && is_usable(id, held->generation)) {
			if (!p->quoted)
				note_seen(&held->seen, &held->state, p, tcp_ends(ctx, p));
			*binding = *held;
			choice.backend = id;
			return choice;
		}
		if (p->quoted)
			return choice;
		/* The way back of an ended flow is left to lbd: late packets of the old connection may
		 * come. */
		held_resets = !!does_reset(id, held->generation);
		bpf_map_delete_elem(lb_bindings, &key);
	}
	if (p->quoted)
		return choice;
	if (p->proto == IPPROTO_TCP && !p->begins) {
		choice.resets = held_resets;
		return choice;
	}
	id = named;
	if (id == LB_SLOT_EMPTY)
		id = flow_word(svc, service, p, &past) & LB_SLOT_BACKEND;
	if (!is_usable(id, 0))
		return choice;
	*full = bind_flow(p, svc, id, &key, binding);
	if (*full)
		return choice;
	choice.backend = id;
	choice.is_new = 1;
	return choice;
}

/* Who an answer, or (q quoted) an error about what we sent to a backend, is for. */
static __always_inline struct lb_client *find_client(lb_ctx *ctx, const struct lb_packet *q)
{
	struct lb_translated key = {};
	struct lb_client *client;

	__builtin_memcpy(key.backend, q->quoted ? q->dst : q->src, sizeof(key.backend));
	__builtin_memcpy(key.source, q->quoted ? q->src : q->dst, sizeof(key.source));
	key.backend_port = q->quoted ? q->dport : q->sport;
	key.port = q->quoted ? q->sport : q->dport;
	key.proto = q->proto;
	client = bpf_map_lookup_elem(lb_translations, &key);
	if (client && !q->quoted)
		note_seen(&client->seen, &client->state, q, LB_NAT_ANSWERED | tcp_ends(ctx, q));
	return client;
}

#endif
