/* SPDX-License-Identifier: GPL-2.0-only */
/* The story of one packet, for XDP and for tc alike: parse, find the service, pick a backend,
 * rewrite, send. The including file brings ctx.h of its hook. */
#ifndef LB_CORE_H
#define LB_CORE_H

static __always_inline void count_stats(void *map, __u32 id, __u32 bytes, int is_new)
{
	struct lb_stats *stats = bpf_map_lookup_elem(map, &id);

	if (stats) {
		stats->packets++;
		stats->bytes += bytes;
		stats->flows += is_new;
	}
}

/* To an address, but no port that we could match: ours to judge only if the address is a VIP for
 * this protocol. */
static __always_inline int portless(const struct lb_packet *p)
{
	__u32 bits = vip_protocols(p);

	if ((p->proto == IPPROTO_TCP && bits & LB_VIP_TCP) || (p->proto == IPPROTO_UDP && bits & LB_VIP_UDP))
		return drop(p, p->fault);
	return pass(p, LB_PASS_NOT_OURS);
}

/* To the backend. `q` is p itself, or what p, an ICMP error, quotes. */
static __always_inline int forward(lb_ctx *ctx, struct lb_packet *p, const struct lb_packet *q,
				   const struct lb_service *svc, __u32 id,
				   const struct lb_binding *binding)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	__u32 more, outcome;

	if (!backend)
		return drop(p, LB_DROP_NO_BACKEND);
	if (!may_hop(p))
		return drop(p, LB_DROP_TTL);
	/* Except in nat and fullnat it still is addressed to the VIP: the kernel would answer for it, or send it in
	 * circles. lbd has the kernel resolve the next hop. */
	if (!is_translated(svc) && !(backend->flags & LB_BACKEND_RESOLVED))
		return drop(p, LB_DROP_UNRESOLVED);
	more = overhead(svc, backend);
	lb_forget(more, p->bytes);
	if (backend->mtu && ctx_segment_bytes(ctx, p) + more > backend->mtu)
		return too_big(ctx, p, backend->mtu - more);
	if (is_translated(svc)) {
		if (!q->quoted)
			learn_sender(ctx, p);
		if (q->quoted ? translate_error(ctx, p, q, 1, 1, q->dst, q->dport, backend->addr,
						backend->port) :
				nat_rewrite(ctx, p, 0, backend->addr, backend->port))
			return drop(p, LB_DROP_MALFORMED);
	}
	if (svc->mode == LB_MODE_FULLNAT &&
	    (q->quoted ? translate_error(ctx, p, q, 0, 0, q->src, q->sport, binding->source,
					 binding->port) :
			 nat_rewrite(ctx, p, 1, binding->source, binding->port)))
		return drop(p, LB_DROP_MALFORMED);
	if (!(backend->flags & LB_BACKEND_RESOLVED))
		return pass(p, LB_PASS_UNRESOLVED);
	outcome = backend->ifindex == p->ifindex ? LB_FORWARD_TX : LB_FORWARD_REDIRECT;
	if (take_hop(ctx, p) || leave_vlan(ctx, p) ||
	    (more && tunnel_push(ctx, p, svc, backend, more)))
		return drop(p, LB_DROP_NO_SPACE);
	return emit(ctx, p, backend->ifindex, backend->dmac, backend->smac, outcome);
}

/* A later piece of a datagram goes where the first went. */
static __always_inline struct lb_choice choose_first(const struct lb_packet *p,
						     struct lb_binding *binding)
{
	struct lb_choice choice = {};

	__builtin_memcpy(binding->source, p->first.addr, sizeof(binding->source));
	if (is_usable(p->first.backend, p->first.generation))
		choice.backend = p->first.backend;
	return choice;
}

/* For a service that is observed. */
static __always_inline void observe_client(lb_ctx *ctx, const struct lb_packet *p,
					   const struct lb_service *svc, __u32 id,
					   __u32 backend, int is_new)
{
	struct lb_flow_key key = { .service = id, .client_port = p->sport, .vip_port = p->dport };
	struct lb_owner *owner = bpf_map_lookup_elem(lb_backend_owners, &backend);
	struct lb_totals *totals;

	if (!owner)
		return;
	if (is_watchable(p)) {
		__builtin_memcpy(key.client, p->src, sizeof(key.client));
		watch_client(ctx, p, &key, owner->uid, !is_translated(svc));
	} else if (is_new && p->proto == IPPROTO_UDP) {
		totals = bpf_map_lookup_elem(lb_totals_map, &owner->uid);
		if (totals)
			count_event(totals, LB_EVENT_OPENED);
	}
}

/* A packet to a service, or (q isn't p) an ICMP error about one of its flows. */
static __always_inline int serve(lb_ctx *ctx, struct lb_packet *p, struct lb_packet *q,
				 struct lb_service *svc, __u32 id)
{
	struct lb_binding binding = {};
	struct lb_choice choice;
	__u32 bytes = p->bytes;
	int full = 0;

	if (p->later)
		choice = choose_first(p, &binding);
	else if (svc->mode == LB_MODE_FULLNAT)
		choice = choose_binding(ctx, svc, id, q, quic_backend(ctx, svc, id, q), &binding, &full);
	else
		choice = choose_backend(svc, id, q, quic_backend(ctx, svc, id, q));
	lb_forget(choice.is_new, bytes);
	count_stats(lb_service_stats, id, bytes, choice.is_new);
	if (choice.backend == LB_SLOT_EMPTY)
		return q->quoted ? drop(p, LB_DROP_NO_BACKEND) : refuse(ctx, p, svc, full, choice.resets);
	count_stats(lb_backend_stats, choice.backend, bytes, choice.is_new);
	if (svc->patience)
		observe_client(ctx, q, svc, id, choice.backend, choice.is_new);
	if (p->fragment && !p->later)
		lead_fragments(p, svc, id, choice.backend, binding.source, 0);
	return forward(ctx, p, q, svc, choice.backend, &binding);
}

static __always_inline struct lb_service *service_of(const struct lb_packet *q, __u32 *id)
{
	if (!q->later)
		return find_service(q, id);
	if (q->first.is_answer)
		return NULL;
	*id = q->first.service;
	return bpf_map_lookup_elem(lb_services, id);
}

/* A quoted packet, as if it had gone the other way. */
static __always_inline void turn_quote(struct lb_packet *q)
{
	__u16 port = q->sport;

	for (int i = 0; i < 4; i++) {
		__u32 word = q->src[i];

		q->src[i] = q->dst[i];
		q->dst[i] = word;
	}
	q->sport = q->dport;
	q->dport = port;
}

/* ICMP: an echo request to a VIP is answered here, an error is for the one whose packet it is about;
 * everything else, and what is in pieces, is for the kernel. */
static __always_inline struct lb_packet *about(lb_ctx *ctx, struct lb_packet *p, int *verdict)
{
	struct icmphdr *hdr = ctx_data(ctx) + at_l4(p);
	__u8 echo = p->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
	int to_vip = !!vip_protocols(p);

	if (is_error(ctx, p))
		return parse_quote(ctx, p, to_vip);
	if ((void *)(hdr + 1) > ctx_data_end(ctx) || hdr->type != echo || hdr->code || p->fragment ||
	    p->proto != (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || !source_is_unicast(p) || !to_vip)
		return NULL;
	*verdict = answer_echo(ctx, p);
	return NULL;
}

static __always_inline int process_packet(lb_ctx *ctx)
{
	__u32 zero = 0;
	/* In a map rather than on the stack: it leaves room there, and the verifier, which doesn't
	 * remember what is in maps, walks what follows once and not once for each way of parsing. */
	struct lb_packet *p = bpf_map_lookup_elem(lb_scratch, &zero);
	struct lb_packet *q = p; /* what tells the flow */
	struct lb_service *svc;
	int parsed, verdict = -1;
	__u32 id;

	if (!p)
		return LB_VERDICT_PASS;
	__builtin_memset(p, 0, offsetof(struct lb_packet, first));
	ctx_make_readable(ctx);
	p->ifindex = ctx_ifindex(ctx);
	p->bytes = ctx_bytes(ctx);
	p->parsed = parse_packet(ctx_data(ctx), ctx_data_end(ctx), p);
	barrier();
	parsed = p->parsed;
	if (parsed == LB_PARSED_OTHER || !is_for_us(ctx_data(ctx), ctx_data_end(ctx), p))
		return pass(p, LB_PASS_NOT_OURS);
	if (parsed == LB_PARSED_ADDRESS || (parsed == LB_PARSED_LATER && !follow_first(p)))
		return portless(p);
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6) {
		q = about(ctx, p, &verdict);
		if (!q)
			return verdict >= 0 ? verdict : pass(p, LB_PASS_NOT_OURS);
	}
	svc = service_of(q, &id);
	if (!svc) {
		/* An error to a VIP, but about nothing that came from a service: perhaps about what we sent to
		 * a server from that address (fullnat). */
		if (q->quoted && vip_protocols(p))
			turn_quote(q);
		return nat_reply(ctx, p, q);
	}
	/* Not about a packet from the VIP that it is addressed to: somebody's invention. */
	if (!is_same_address(p->dst, q->dst))
		return pass(p, LB_PASS_NOT_OURS);
	return serve(ctx, p, q, svc, id);
}

#endif
