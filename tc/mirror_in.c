// SPDX-License-Identifier: GPL-2.0-only
/* Mirrored traffic, on its way in (clsact ingress, before the balancer): see mirror.h. Copies what clients of a sample of
 * flows send, and takes out what the copies' servers answer. */
#include "mirror.h"

static __always_inline struct lb_mirror_stats *stats_of(__u32 service)
{
	return bpf_map_lookup_elem(lb_mirror_stats_map, &service);
}

static __always_inline void give_up(__u32 service)
{
	struct lb_mirror_stats *stats = stats_of(service);

	if (stats)
		stats->given_up++;
}

/* By a hash of its own: the one that picks slots would take all copies from few backends, to few backends. */
static __always_inline int is_sampled(const struct lb_service *svc, __u32 slot)
{
	__u64 h = hash_mix(svc->seed[1] ^ LB_MIRROR_SALT ^ slot);

	return (h & LB_SLOT_MASK) < svc->mirror_limit;
}

static __always_inline int is_flow_of(void *map, struct lb_flow_key *key, __u32 backend)
{
	struct lb_flow *flow = bpf_map_lookup_elem(map, key);

	return flow && flow->backend == backend;
}

/* Does this backend have the flow itself, from when its pool had a share? Such a one is remembered: the pool has no
 * slots by which it could be found. */
static __always_inline int is_its_own(struct lb_flow_key *key, __u32 backend)
{
	return is_flow_of(lb_conntrack, key, backend) || is_flow_of(lb_embryonic, key, backend);
}

/* Gives the backend a copy. 0 = done. */
static __always_inline int send_copy(lb_ctx *ctx, const struct lb_packet *p, __u32 service, __u32 id)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	struct lb_mirror_stats *stats;
	__u32 mark = ctx_read(ctx, mark);
	int rc;

	if (!backend || !(backend->flags & LB_BACKEND_RESOLVED) || !(backend->flags & LB_BACKEND_MIRROR) ||
	    !may_hop(p) || (backend->mtu && ctx_segment_bytes(ctx, p) > backend->mtu))
		return -1;
	ctx->mark = LB_MIRROR_MARK | id;
	rc = bpf_clone_redirect(ctx, backend->ifindex, 0);
	ctx->mark = mark;
	if (rc)
		return -1;
	stats = stats_of(service);
	if (stats) {
		stats->copies++;
		stats->bytes += p->bytes;
	}
	return 0;
}

/* The backend for the copies of a flow; 0 = none. */
static __always_inline __u32 choose_mirror(const struct lb_service *svc, __u32 slot)
{
	struct lb_past past = {};
	__u32 id = slot_word(svc->mirror_table, slot, &past) & LB_SLOT_BACKEND;
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);

	return backend && backend->flags & LB_BACKEND_MIRROR && backend->flags & LB_BACKEND_USABLE ? id : 0;
}

/* For a service that is observed: the copies' connections count for their backends. They have a key of their own. */
static __always_inline void observe_copy(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
					 const struct lb_flow_key *flow, __u32 id)
{
	struct lb_owner *owner = bpf_map_lookup_elem(lb_backend_owners, &id);
	struct lb_flow_key key = *flow;

	key.service = svc->mirror_table;
	if (owner)
		watch_client(ctx, p, &key, owner->uid, 0);
}

/* A SYN: from here on the flow is copied. */
static __always_inline void begin_flow(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
				       __u32 service, struct lb_flow_key *key, __u32 slot, __u32 seq)
{
	struct lb_mirrored *held = bpf_map_lookup_elem(lb_mirrored_map, key);
	struct lb_mirrored fresh = { .client_first = seq, .client_next = seq + 1 };
	struct lb_mirror_stats *stats = stats_of(service);
	struct lb_backend *backend;
	__u32 id;

	if (held && held->client_first == seq) { /* sent again */
		id = held->backend;
	} else {
		id = choose_mirror(svc, slot);
		if (held)
			bpf_map_delete_elem(lb_mirrored_map, key);
		if (id && is_its_own(key, id))
			return;
		fresh.backend = id;
		backend = bpf_map_lookup_elem(lb_backends, &id);
		if (!id || !backend || bpf_map_update_elem(lb_mirrored_map, key, &fresh, BPF_ANY)) {
			give_up(service);
			return;
		}
		if (stats)
			stats->flows++;
	}
	if (svc->patience)
		observe_copy(ctx, p, svc, key, id);
	send_copy(ctx, p, service, id); /* one that isn't sent is as good as lost: the client's next may come */
}

static __always_inline void copy_segment(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
					 __u32 service, struct lb_flow_key *key, __u32 slot)
{
	struct lb_mirrored *held;
	struct lb_segment seg;
	__u32 end, id;

	if (read_segment(ctx, p, &seg))
		return;
	if (p->begins) {
		begin_flow(ctx, p, svc, service, key, slot, seg.seq);
		return;
	}
	if (is_bare(&seg)) /* what it acknowledges is the other server's */
		return;
	held = bpf_map_lookup_elem(lb_mirrored_map, key);
	if (!held)
		return;
	id = held->backend;
	if (seg.flags & LB_TCP_RST) {
		if (svc->patience)
			observe_copy(ctx, p, svc, key, id);
		send_copy(ctx, p, service, id);
		bpf_map_delete_elem(lb_mirrored_map, key);
		return;
	}
	if (held->stage == LB_MIRROR_LOST)
		return;
	/* What follows on a hole would wait for it in vain, as nobody sends it again. */
	if (held->stage == LB_MIRROR_OPENING || is_after(seg.seq, held->client_next)) {
		held->stage = LB_MIRROR_LOST;
		give_up(service);
		return;
	}
	end = seg.seq + seg.bytes + !!(seg.flags & LB_TCP_FIN);
	if (svc->patience)
		observe_copy(ctx, p, svc, key, id);
	if (send_copy(ctx, p, service, id)) {
		held = bpf_map_lookup_elem(lb_mirrored_map, key);
		if (held)
			held->stage = LB_MIRROR_LOST;
		give_up(service);
		return;
	}
	held = bpf_map_lookup_elem(lb_mirrored_map, key);
	if (held && is_after(end, held->client_next))
		held->client_next = end;
}

static __always_inline void copy_datagram(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
					  __u32 service, struct lb_flow_key *key, __u32 slot)
{
	__u32 id = choose_mirror(svc, slot);

	if (id && is_its_own(key, id))
		return;
	if (!id || p->fragment || send_copy(ctx, p, service, id))
		give_up(service);
}

/* A client's packet to a service. */
static __always_inline void copy(lb_ctx *ctx, const struct lb_packet *p, __u32 service)
{
	struct lb_service *svc = bpf_map_lookup_elem(lb_services, &service);
	struct lb_flow_key key = {};
	__u32 slot;

	if (!svc || svc->mode != LB_MODE_NAT || (!svc->mirror_limit && !p->begins))
		return;
	slot = flow_slot(svc, p);
	mirrored_key(&key, p->src, p->sport, service, p->dport);
	if (!is_sampled(svc, slot)) {
		/* A new connection on an old port pair, which perhaps goes to that very server. */
		if (p->begins)
			bpf_map_delete_elem(lb_mirrored_map, &key);
		return;
	}
	if (p->proto == IPPROTO_TCP)
		copy_segment(ctx, p, svc, service, &key, slot);
	else
		copy_datagram(ctx, p, svc, service, &key, slot);
}

/* The segment that ends here is turned around: to an acknowledgement of all that was sent or, if the copy is lost, to a
 * reset. Without timestamps: Linux asks for none (6.18), and they could only be invented. */
static __always_inline int turn_around(lb_ctx *ctx, const struct lb_packet *p, const struct lb_segment *seg,
				       const struct lb_mirrored *held)
{
	__u16 ip_bytes = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u16 l4 = at_l3(p) + ip_bytes;
	__u32 segment_bytes = p->l3 + p->l3_bytes - p->l4;
	int lost = held->stage == LB_MIRROR_LOST;
	struct tcphdr *tcp = ctx_data(ctx) + at_l4(p);
	struct tcphdr out = {
		.source = p->dport,
		.dest = p->sport,
		.doff = sizeof(out) / 4,
		.seq = lb_htonl(lost ? seg->ack : held->client_next),
		.ack_seq = lost ? 0 : lb_htonl(held->server_next),
		.ack = !lost,
		.rst = lost,
		.window = lost ? 0 : 0xffff,
	};
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];
	__u16 was, check;

	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return TC_ACT_SHOT;
	was = tcp->check;
	check = csum_fold32(csum_fold64(csum_words(&out, sizeof(out)) +
					csum_pseudo(p, sizeof(out), IPPROTO_TCP)));
	if (ctx_resize(ctx, l4 + sizeof(out)) || write_ip(ctx, p, IPPROTO_TCP, sizeof(out)))
		return TC_ACT_SHOT;
	tcp = ctx_data(ctx) + l4;
	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return TC_ACT_SHOT;
	out.check = was;
	*tcp = out;
	if (ctx_set_tcp_csum(ctx, l4 + offsetof(struct tcphdr, check), was, check,
			     csum_diff_u16(lb_htons(segment_bytes), lb_htons(sizeof(out)))))
		return TC_ACT_SHOT;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return TC_ACT_SHOT;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return ctx_send_back(ctx);
}

/* The last time that the server told: copies give it back. */
static __always_inline void note_timestamps(lb_ctx *ctx, const struct lb_packet *p, struct lb_mirrored *held,
					    int is_syn)
{
	struct lb_timestamps *option = ctx_data(ctx) + at_l4(p) +
				       (is_syn ? LB_TCP_SYN_TIMESTAMPS_AT : LB_TCP_TIMESTAMPS_AT);

	lb_keep(option);
	if ((void *)(option + 1) <= ctx_data_end(ctx) && option->kind == lb_htons(LB_TCP_TIMESTAMPS)) {
		held->time[0] = option->value[0];
		held->time[1] = option->value[1];
	}
}

static __always_inline int end_segment(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
				       struct lb_flow_key *key, struct lb_mirrored *held)
{
	struct lb_flow_key watched = *key;
	struct lb_segment seg;
	__u32 end;

	if (read_segment(ctx, p, &seg))
		return TC_ACT_SHOT;
	if (svc->patience) {
		watched.service = svc->mirror_table;
		watch_server(ctx, p, &watched, svc->patience * 1000000000ULL);
	}
	if (seg.flags & LB_TCP_RST) {
		bpf_map_delete_elem(lb_mirrored_map, key);
		return TC_ACT_SHOT;
	}
	if (is_bare(&seg))
		return TC_ACT_SHOT;
	end = seg.seq + seg.bytes + !!(seg.flags & LB_TCP_SYN) + !!(seg.flags & LB_TCP_FIN);
	if (held->stage == LB_MIRROR_OPENING) {
		if (!(seg.flags & LB_TCP_SYN))
			return TC_ACT_SHOT;
		held->stage = LB_MIRROR_OPEN;
		held->server_next = end;
	} else if (is_after(end, held->server_next)) {
		held->server_next = end; /* whatever was missed in between: nobody wants it */
	}
	note_timestamps(ctx, p, held, !!(seg.flags & LB_TCP_SYN));
	return turn_around(ctx, p, &seg, held);
}

/* Is this node itself meant: by the answer to a health check? */
static __always_inline int is_for_the_node(lb_ctx *ctx, const struct lb_packet *p)
{
	struct bpf_fib_lookup fib = { .ifindex = p->ifindex, .l4_protocol = p->proto };

	if (is_probe_source(p->dst))
		return 1;
	if (p->ipv6) {
		fib.family = 10; /* AF_INET6 */
		__builtin_memcpy(fib.ipv6_src, p->src, 16);
		__builtin_memcpy(fib.ipv6_dst, p->dst, 16);
	} else {
		fib.family = 2; /* AF_INET */
		fib.ipv4_src = p->src[3];
		fib.ipv4_dst = p->dst[3];
	}
	return bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* From a backend, or (`quoted`) an ICMP error about what was sent to one: does it answer a copy? It says so by the flow or,
 * of datagrams and of what was forgotten, by the pool: nobody else is sent there. */
static __always_inline int answer(lb_ctx *ctx, const struct lb_packet *p, const __u32 *addr, __u16 port,
				  const __u32 *client, __u16 client_port, __u8 proto, int quoted)
{
	struct lb_nat_back nat = find_nat_back(addr, port, proto);
	struct lb_service *svc = bpf_map_lookup_elem(lb_services, &nat.service);
	struct lb_mirror_stats *stats;
	struct lb_backend *backend;
	struct lb_mirrored *held;
	struct lb_flow_key key = {};

	if (!nat.service || !svc || svc->mode != LB_MODE_NAT)
		return TC_ACT_UNSPEC;
	mirrored_key(&key, client, client_port, nat.service, svc->port ? svc->port : port);
	held = proto == IPPROTO_TCP ? bpf_map_lookup_elem(lb_mirrored_map, &key) : NULL;
	if (held && held->backend != nat.backend)
		held = NULL;
	if (!held) {
		backend = bpf_map_lookup_elem(lb_backends, &nat.backend);
		if (!backend || !(backend->flags & LB_BACKEND_MIRROR) || is_its_own(&key, nat.backend) ||
		    is_for_the_node(ctx, p))
			return TC_ACT_UNSPEC;
	}
	stats = stats_of(nat.service);
	if (stats)
		stats->answers++;
	if (!held || quoted)
		return TC_ACT_SHOT;
	return end_segment(ctx, p, svc, &key, held);
}

int mirror_in(struct __sk_buff *ctx)
{
	__u32 zero = 0;
	struct lb_packet *p = bpf_map_lookup_elem(lb_scratch, &zero), *q;
	__u32 service;

	if (!p)
		return TC_ACT_UNSPEC;
	__builtin_memset(p, 0, offsetof(struct lb_packet, first));
	ctx_make_readable(ctx);
	p->ifindex = ctx_ifindex(ctx);
	p->bytes = ctx_bytes(ctx);
	p->parsed = parse_packet(ctx_data(ctx), ctx_data_end(ctx), p);
	barrier();
	if (p->parsed != LB_PARSED || !is_for_us(ctx_data(ctx), ctx_data_end(ctx), p))
		return TC_ACT_UNSPEC;
	if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6) {
		q = is_error(ctx, p) ? parse_quote(ctx, p, 0) : NULL;
		return q ? answer(ctx, p, q->dst, q->dport, q->src, q->sport, q->proto, 1) : TC_ACT_UNSPEC;
	}
	service = find_vip(p->dst, p->dport, p->proto);
	if (!service)
		return answer(ctx, p, p->src, p->sport, p->dst, p->dport, p->proto, 0);
	copy(ctx, p, service);
	return TC_ACT_UNSPEC;
}
