/* SPDX-License-Identifier: GPL-2.0-only */
/* The story of one packet, for XDP and for tc alike: parse, find the service, pick a backend,
 * rewrite, send. The including file brings ctx.h of its hook. */
#ifndef LB_CORE_H
#define LB_CORE_H

static __always_inline void count_stats(void *map, __u32 id, const struct lb_packet *p, int is_new)
{
	struct lb_stats *stats = bpf_map_lookup_elem(map, &id);

	if (stats) {
		stats->packets++;
		stats->bytes += p->bytes;
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

/* ICMP to a VIP: echo is answered here; everything else, and what is in pieces, is for the kernel. */
static __always_inline int icmp(lb_ctx *ctx, const struct lb_packet *p)
{
	struct icmphdr *hdr = ctx_data(ctx) + at_l4(p);
	__u8 echo = p->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;

	if ((void *)(hdr + 1) > ctx_data_end(ctx) || hdr->type != echo || hdr->code || p->fragment ||
	    p->proto != (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || !source_is_unicast(p) ||
	    !vip_protocols(p))
		return pass(p, LB_PASS_NOT_OURS);
	return answer_echo(ctx, p);
}

static __always_inline int forward(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
				   __u32 id)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);

	if (!backend)
		return drop(p, LB_DROP_NO_BACKEND);
	if (!may_hop(ctx, p))
		return drop(p, LB_DROP_TTL);
	/* For dsr it still is addressed to the VIP: the kernel would answer for it, or send it in circles.
	 * lbd has the kernel resolve the next hop. */
	if (svc->mode == LB_MODE_DSR && !(backend->flags & LB_BACKEND_RESOLVED))
		return drop(p, LB_DROP_UNRESOLVED);
	if (svc->mode == LB_MODE_NAT)
		learn_sender(ctx, p);
	if (svc->mode == LB_MODE_NAT && nat_rewrite(ctx, p, 0, backend->addr, backend->port))
		return drop(p, LB_DROP_MALFORMED);
	if (!(backend->flags & LB_BACKEND_RESOLVED))
		return pass(p, LB_PASS_UNRESOLVED);
	return send_frame(ctx, p, backend->ifindex, backend->dmac, backend->smac,
			  backend->ifindex == p->ifindex ? LB_FORWARD_TX : LB_FORWARD_REDIRECT);
}

static __always_inline int process_packet(lb_ctx *ctx)
{
	__u32 zero = 0;
	/* In a map rather than on the stack: it leaves room there, and the verifier, which doesn't
	 * remember what is in maps, walks what follows once and not once for each way of parsing. */
	struct lb_packet *p = bpf_map_lookup_elem(lb_scratch, &zero);
	struct lb_service *svc;
	struct lb_choice choice;
	__u32 id;
	int parsed;

	if (!p)
		return LB_VERDICT_PASS;
	__builtin_memset(p, 0, sizeof(*p));
	ctx_make_readable(ctx);
	p->ifindex = ctx_ifindex(ctx);
	p->bytes = ctx_bytes(ctx);
	p->parsed = parse_packet(ctx_data(ctx), ctx_data_end(ctx), p);
	barrier();
	parsed = p->parsed;
	if (parsed == LB_PARSED_OTHER || !is_for_us(ctx_data(ctx), ctx_data_end(ctx), p->ifindex))
		return pass(p, LB_PASS_NOT_OURS);
	if (parsed == LB_PARSED_ADDRESS)
		return portless(p);
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		return icmp(ctx, p);

	svc = find_service(p, &id);
	if (!svc)
		return nat_reply(ctx, p);
	choice = choose_backend(svc, id, p);
	lb_forget(choice.is_new, p->bytes);
	count_stats(lb_service_stats, id, p, choice.is_new);
	if (choice.backend == LB_SLOT_EMPTY)
		return refuse(ctx, p, svc);
	count_stats(lb_backend_stats, choice.backend, p, choice.is_new);
	return forward(ctx, p, svc, choice.backend);
}

#endif
