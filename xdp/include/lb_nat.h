/* SPDX-License-Identifier: GPL-2.0-only */
/* Mode nat: DNAT on the way in, and the way back. */
#ifndef LB_NAT_H
#define LB_NAT_H

/* Replaces one address (and port, unless 0) of a TCP or UDP packet:
 * the destination on the way in, the source on the way back. A later piece of a datagram has no port, and its
 * checksum stands in the first. */
static __always_inline int nat_rewrite(lb_ctx *ctx, const struct lb_packet *p, int source,
				       const __u32 *addr, __u16 port)
{
	const __u32 *old_addr = source ? p->src : p->dst;
	__u16 old_port = source ? p->sport : p->dport;
	__u32 pseudo = csum_diff_addr(old_addr, addr, p->ipv6);
	void *data;
	__u16 *ports;

	if (!port)
		port = old_port;
	if (p->later) {
		if (p->ipv6)
			ctx_update_frame_csum(ctx, pseudo);
	} else {
		if (ctx_update_l4_csum(ctx, p, pseudo, csum_diff_u16(old_port, port)))
			return -1;
		ports = ctx_data(ctx) + at_l4(p);
		if ((void *)(ports + 2) > ctx_data_end(ctx))
			return -1;
		ports[source ? 0 : 1] = port;
	}

	data = ctx_data(ctx);
	if (p->ipv6) {
		struct ipv6hdr *ip = data + at_l3(p);

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		__builtin_memcpy(source ? &ip->saddr : &ip->daddr, addr, 16);
	} else {
		struct iphdr *ip = data + at_l3(p);

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		if (source)
			ip->saddr = addr[3];
		else
			ip->daddr = addr[3];
		ip->check = csum_apply(ip->check, pseudo);
	}
	return 0;
}

/* Remembers where a client's frames come from: the way back if the kernel's neighbour table doesn't
 * know it. A TCP client tells at each SYN; with UDP any datagram may be the first. */
static __always_inline void learn_sender(lb_ctx *ctx, const struct lb_packet *p)
{
	const struct ethhdr *eth = ctx_data(ctx);
	struct lb_place at = { .ifindex = p->ifindex };
	struct lb_sender sender = {};
	struct lb_place *known;

	/* An answer without its tag would be on the wrong network. */
	if ((!p->begins && p->proto == IPPROTO_TCP) || ctx_is_tagged(ctx, p->l3) ||
	    (void *)(eth + 1) > ctx_data_end(ctx))
		return;
	__builtin_memcpy(sender.addr, p->src, sizeof(sender.addr));
	__builtin_memcpy(at.mac, eth->h_source, ETH_ALEN);
	known = bpf_map_lookup_elem(lb_senders, &sender);
	if (!known || known->ifindex != at.ifindex || !is_same_mac(known->mac, at.mac))
		bpf_map_update_elem(lb_senders, &sender, &at, BPF_ANY);
}

/* Does this answer belong to a flow that came through us? Where all are remembered there is an entry, which an
 * answer keeps as the client's packets do (RFC 4787, REQ-6); elsewhere the backend's address and port belong to one
 * service only (the planner sees to that). */
static __always_inline int nat_is_ours(const __u32 *client, __u16 client_port, __u32 service,
				       const struct lb_service *svc, __u16 vip_port, int quoted)
{
	struct lb_flow_key key = {};
	struct lb_flow *flow;

	if (!svc->port) { /* a range: is this port in it, and no other service's? */
		if (find_vip(svc->vip, vip_port, svc->proto) != service)
			return 0;
	}
	if (svc->tracking != LB_TRACK_ALWAYS)
		return 1;
	__builtin_memcpy(key.client, client, sizeof(key.client));
	key.service = service;
	key.client_port = client_port;
	key.vip_port = vip_port;
	flow = bpf_map_lookup_elem(lb_conntrack, &key);
	if (!flow)
		flow = bpf_map_lookup_elem(lb_embryonic, &key);
	if (!flow)
		return 0;
	if (!quoted)
		touch(flow);
	return 1;
}

/* The client is on a link of ours, but the kernel has no neighbour entry for it: as it never talked
 * to the client itself, or long ago. Sending the translated packet up would not help, either: the
 * kernel drops what comes in with a source address (the VIP) of its own. */
static __always_inline int return_to_sender(const __u32 *client, struct bpf_fib_lookup *fib)
{
	struct lb_sender sender = {};
	struct lb_place *at;
	struct lb_link *link;

	__builtin_memcpy(sender.addr, client, sizeof(sender.addr));
	at = bpf_map_lookup_elem(lb_senders, &sender);
	if (!at)
		return BPF_FIB_LKUP_RET_NO_NEIGH;
	link = find_link(at->ifindex);
	if (!link || link->ifindex != at->ifindex)
		return BPF_FIB_LKUP_RET_NO_NEIGH;
	fib->ifindex = at->ifindex;
	__builtin_memcpy(fib->dmac, at->mac, ETH_ALEN);
	__builtin_memcpy(fib->smac, link->mac, ETH_ALEN);
	return BPF_FIB_LKUP_RET_SUCCESS;
}

/* Whose an answer is: the client's end of the flow that it belongs to. */
struct lb_answered {
	__u32 client[4];
	__u32 service;
	__u32 backend;
	__u16 client_port; /* fullnat only */
	__u16 vip_port;
};

/* A packet from a backend's socket, by what it says itself. `q` is p or, if p is an ICMP error about a packet
 * that went to a backend, what it quotes, turned around: then it is for the client as an answer is. */
static __always_inline struct lb_service *find_answered(lb_ctx *ctx, const struct lb_packet *p,
							const struct lb_packet *q,
							struct lb_answered *to)
{
	const __u32 *backend_addr = q->quoted ? q->dst : q->src;
	const __u32 *client_addr = q->quoted ? q->src : q->dst;
	__u16 backend_port = q->quoted ? q->dport : q->sport;
	struct lb_nat_back nat = find_nat_back(backend_addr, backend_port, q->proto);
	struct lb_client *client;
	struct lb_service *svc;

	if (!nat.service)
		return NULL;
	to->vip_port = backend_port;
	to->service = nat.service;
	to->backend = nat.backend;
	svc = bpf_map_lookup_elem(lb_services, &to->service);
	if (!svc || !is_same_address(p->dst, client_addr))
		return NULL;
	if (svc->port)
		to->vip_port = svc->port;
	if (svc->mode == LB_MODE_NAT) {
		__builtin_memcpy(to->client, client_addr, sizeof(to->client));
		return nat_is_ours(client_addr, q->quoted ? q->sport : q->dport, to->service, svc,
				   to->vip_port, q->quoted) ? svc : NULL;
	}
	if (svc->mode != LB_MODE_FULLNAT)
		return NULL;
	/* The entry that was found only says that a server of this mode is there. */
	client = find_client(ctx, q);
	if (!client)
		return NULL;
	__builtin_memcpy(to->client, client->flow.client, sizeof(to->client));
	to->service = client->flow.service;
	to->backend = client->backend;
	to->client_port = client->flow.client_port;
	to->vip_port = client->flow.vip_port;
	svc = bpf_map_lookup_elem(lb_services, &to->service);
	return svc && svc->mode == LB_MODE_FULLNAT ? svc : NULL; /* or removed since */
}

/* The same for a later piece of an answer, by what the first said. */
static __always_inline struct lb_service *first_answered(const struct lb_packet *p,
							 struct lb_answered *to)
{
	__builtin_memcpy(to->client, p->first.addr, sizeof(to->client));
	to->service = p->first.service;
	to->backend = p->first.backend;
	return bpf_map_lookup_elem(lb_services, &to->service);
}

/* For a service that is observed. */
static __always_inline void observe_answer(lb_ctx *ctx, const struct lb_packet *p,
					   const struct lb_service *svc, const struct lb_answered *to)
{
	struct lb_flow_key key = { .service = to->service, .vip_port = to->vip_port };

	__builtin_memcpy(key.client, to->client, sizeof(key.client));
	key.client_port = svc->mode == LB_MODE_FULLNAT ? to->client_port : p->dport;
	watch_server(ctx, p, &key, svc->patience * 1000000000ULL);
}

/* What health checks say that they come from (tc/probe_out.c). */
static __always_inline int is_probe_source(const __u32 *addr)
{
	return addr[3] == lb_htonl(LB_PROBE_SOURCE) &&
	       (is_mapped_ipv4(addr) || !((addr[0] ^ lb_htonl(LB_PROBE_PREFIX6)) | addr[1] | addr[2]));
}

/* A packet that isn't for a VIP: a backend's answer, to be translated back, or not ours at all. `q`: see
 * find_answered(). */
static __always_inline int nat_reply(lb_ctx *ctx, struct lb_packet *p, struct lb_packet *q)
{
	struct lb_answered to = {};
	struct bpf_fib_lookup fib = {};
	struct lb_service *svc;
	struct lb_stats *stats;
	int own = is_same_address(p->src, q->quoted ? q->dst : q->src);
	int rc;

	svc = p->later ? first_answered(p, &to) : find_answered(ctx, p, q, &to);
	if (!svc)
		return pass(p, LB_PASS_NOT_OURS);

	if (is_probe_source(to.client)) /* a health check of ours: for tc/probe_back.c */
		return pass(p, LB_PASS_NOT_OURS);
	fib.ifindex = p->ifindex;
	fib.tot_len = ctx_fib_bytes(ctx, p);
	fib.l4_protocol = p->proto;
	if (p->ipv6) {
		fib.family = 10; /* AF_INET6 */
		__builtin_memcpy(fib.ipv6_src, svc->vip, 16);
		__builtin_memcpy(fib.ipv6_dst, to.client, 16);
	} else {
		fib.family = 2; /* AF_INET */
		fib.ipv4_src = svc->vip[3];
		fib.ipv4_dst = to.client[3];
	}
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	/* To this machine itself: its own connection to the backend (a health check), not a client's. */
	if (rc == BPF_FIB_LKUP_RET_NOT_FWDED)
		return pass(p, LB_PASS_NOT_OURS);
	if (!may_hop(p))
		return drop(p, LB_DROP_TTL);

	stats = bpf_map_lookup_elem(lb_backend_stats, &to.backend);
	if (stats) {
		stats->reply_packets++;
		stats->reply_bytes += p->bytes;
	}
	stats = bpf_map_lookup_elem(lb_service_stats, &to.service);
	if (stats) {
		stats->reply_packets++;
		stats->reply_bytes += p->bytes;
	}
	if (svc->patience && is_watchable(q))
		observe_answer(ctx, q, svc, &to);
	if (p->fragment && !p->later)
		lead_fragments(p, svc, to.service, to.backend, to.client, 1);
	if (q->quoted ? translate_error(ctx, p, q, 0, own, q->dst, q->dport, svc->vip, to.vip_port) :
			nat_rewrite(ctx, p, 1, svc->vip, to.vip_port))
		return drop(p, LB_DROP_MALFORMED);
	if (svc->mode == LB_MODE_FULLNAT &&
	    (q->quoted ? translate_error(ctx, p, q, 1, 1, q->src, q->sport, to.client, to.client_port) :
			 nat_rewrite(ctx, p, 0, to.client, to.client_port)))
		return drop(p, LB_DROP_MALFORMED);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH)
		rc = return_to_sender(to.client, &fib);
	/* A packet to be fragmented, a device that takes no frames from here: the kernel does it. */
	if (rc != BPF_FIB_LKUP_RET_SUCCESS || !ctx_can_send_to(fib.ifindex))
		return pass(p, LB_REPLY_PASS);
	return send_frame(ctx, p, fib.ifindex, fib.dmac, fib.smac, LB_REPLY_REDIRECT);
}

#endif
