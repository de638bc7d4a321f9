/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets that we originate: ICMP echo replies, and what a client gets when no backend is usable. */
#ifndef LB_ANSWER_H
#define LB_ANSWER_H

#define LB_ICMP_QUOTE 8 /* bytes of the offending segment in an ICMP error (RFC 792) */
#define LB_SECOND_NS 1000000000ULL

/* Turns a request around in place; every sum but the ICMP one is unchanged by swapping addresses. */
static __always_inline int answer_echo(lb_ctx *ctx, const struct lb_packet *p)
{
	void *data = ctx_data(ctx), *end = ctx_data_end(ctx);
	struct icmphdr *icmp = data + at_l4(p);

	if ((void *)(icmp + 1) > end)
		return drop(p, LB_DROP_MALFORMED);
	if (p->ipv6) {
		struct ipv6hdr *ip = data + at_l3(p);

		if ((void *)(ip + 1) > end)
			return drop(p, LB_DROP_MALFORMED);
		__builtin_memcpy(&ip->saddr, p->dst, 16);
		__builtin_memcpy(&ip->daddr, p->src, 16);
		ctx_update_frame_csum(ctx, csum_diff_u16(lb_htons(ip->hop_limit),
							 lb_htons(LB_REPLY_TTL)));
		ip->hop_limit = LB_REPLY_TTL;
		icmp->type = ICMPV6_ECHO_REPLY;
		icmp->checksum = csum_apply(icmp->checksum,
					    csum_diff_u16(lb_htons(ICMPV6_ECHO_REQUEST << 8),
							  lb_htons(ICMPV6_ECHO_REPLY << 8)));
	} else {
		struct iphdr *ip = data + at_l3(p);

		if ((void *)(ip + 1) > end)
			return drop(p, LB_DROP_MALFORMED);
		ip->saddr = p->dst[3];
		ip->daddr = p->src[3];
		ip->check = csum_apply(ip->check, csum_diff_u16(lb_htons(ip->ttl << 8),
								lb_htons(LB_REPLY_TTL << 8)));
		ip->ttl = LB_REPLY_TTL;
		icmp->type = ICMP_ECHOREPLY;
		icmp->checksum = csum_apply(icmp->checksum,
					    csum_diff_u16(lb_htons(ICMP_ECHO << 8),
							  lb_htons(ICMP_ECHOREPLY << 8)));
	}
	return send_answer(ctx, p, LB_ECHO_REPLY);
}

/* Sum of a header that stands on our stack, in 16-bit words. */
static __always_inline __u64 csum_words(const void *start, int bytes)
{
	const __u16 *word = start;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		sum += word[i];
	return sum;
}

static __always_inline __u64 csum_pseudo(const struct lb_packet *p, __u16 l4_bytes, __u8 proto)
{
	__u64 sum = (__u64)p->src[3] + p->dst[3] + lb_htons(l4_bytes) + lb_htons(proto);

	if (p->ipv6)
		sum += (__u64)p->src[0] + p->src[1] + p->src[2] + p->dst[0] + p->dst[1] + p->dst[2];
	return sum;
}

/* An IP header from the VIP back to the client, written over the old one. */
static __always_inline int write_ip(lb_ctx *ctx, const struct lb_packet *p, __u8 proto, __u16 l4_bytes)
{
	void *l3 = ctx_data(ctx) + at_l3(p);

	if (p->ipv6) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		*(__u32 *)ip = lb_htonl(0x60000000);
		ip->payload_len = lb_htons(l4_bytes);
		ip->nexthdr = proto;
		ip->hop_limit = LB_REPLY_TTL;
		__builtin_memcpy(&ip->saddr, p->dst, 16);
		__builtin_memcpy(&ip->daddr, p->src, 16);
	} else {
		struct iphdr *ip = l3;
		struct iphdr fresh = {
			.version = 4,
			.ihl = sizeof(fresh) / 4,
			.tot_len = lb_htons(sizeof(fresh) + l4_bytes),
			.frag_off = lb_htons(0x4000), /* don't fragment: an atomic datagram (RFC 6864) */
			.ttl = LB_REPLY_TTL,
			.protocol = proto,
			.saddr = p->dst[3],
			.daddr = p->src[3],
		};

		if ((void *)(ip + 1) > ctx_data_end(ctx))
			return -1;
		fresh.check = csum_fold32(csum_fold64(csum_words(&fresh, sizeof(fresh))));
		*ip = fresh;
	}
	return 0;
}

/* RFC 9293, 3.10.7.1: the reset that a segment to a closed port gets. */
static __always_inline int reject_tcp(lb_ctx *ctx, const struct lb_packet *p, __u32 outcome, __u32 otherwise)
{
	__u16 ip_bytes = p->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u16 l4 = at_l3(p) + ip_bytes;
	__u32 segment_bytes = p->l3 + p->l3_bytes - p->l4;
	struct tcphdr *tcp = ctx_data(ctx) + at_l4(p);
	struct tcphdr rst = {
		.source = p->dport,
		.dest = p->sport,
		.doff = sizeof(rst) / 4,
		.rst = 1,
	};
	__u16 was, check;

	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return drop(p, LB_DROP_MALFORMED);
	if (tcp->rst || tcp->doff * 4 > segment_bytes)
		return drop(p, otherwise);
	if (tcp->ack) {
		rst.seq = tcp->ack_seq;
	} else {
		rst.ack = 1;
		rst.ack_seq = lb_htonl(lb_ntohl(tcp->seq) + segment_bytes - tcp->doff * 4 + tcp->syn +
				       tcp->fin);
	}
	was = tcp->check;
	check = csum_fold32(csum_fold64(csum_words(&rst, sizeof(rst)) +
					csum_pseudo(p, sizeof(rst), IPPROTO_TCP)));

	if (ctx_resize(ctx, l4 + sizeof(rst)) || write_ip(ctx, p, IPPROTO_TCP, sizeof(rst)))
		return drop(p, LB_DROP_NO_SPACE);
	tcp = ctx_data(ctx) + l4;
	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return drop(p, LB_DROP_NO_SPACE);
	rst.check = was;
	*tcp = rst;
	if (ctx_set_tcp_csum(ctx, l4 + offsetof(struct tcphdr, check), was, check,
			     csum_diff_u16(lb_htons(segment_bytes), lb_htons(sizeof(rst)))))
		return drop(p, LB_DROP_NO_SPACE);
	return send_answer(ctx, p, outcome);
}

/* No answer to a source that doesn't name a single host: RFC 1122, 3.2.2, and RFC 4443, 2.4 (e.6), for
 * ICMP; RFC 9293, MUST-63, for TCP. */
static __always_inline int source_is_unicast(const struct lb_packet *p)
{
	const __u8 *v6 = (const __u8 *)p->src;
	const __u8 *v4 = (const __u8 *)&p->src[3];

	if (p->ipv6)
		return v6[0] != 0xff &&
		       (p->src[0] | p->src[1] | p->src[2] | (lb_ntohl(p->src[3]) & ~1u));
	return v4[0] != 0 && v4[0] != 127 && v4[0] < 224;
}

struct lb_unreach4 {
	struct icmphdr icmp;
	struct iphdr ip;
	__u8 l4[LB_ICMP_QUOTE];
};

struct lb_unreach6 {
	struct icmp6hdr icmp;
	struct ipv6hdr ip;
	__u8 l4[LB_ICMP_QUOTE];
};

/* May this CPU send another error (RFC 4443, 2.4 (f); RFC 1812, 4.3.2.8)? Each spends its part of a second's time, and
 * of the time that has passed at most a second can be spent. */
static __always_inline int may_send_error(__u32 kind)
{
	__u64 now = bpf_ktime_get_ns(), *spent = bpf_map_lookup_elem(lb_allowance, &kind);

	if (!spent)
		return 0;
	if (*spent + LB_SECOND_NS < now)
		*spent = now - LB_SECOND_NS;
	if (*spent + LB_SECOND_NS / LB_ERRORS_PER_SECOND > now)
		return 0;
	*spent += LB_SECOND_NS / LB_ERRORS_PER_SECOND;
	return 1;
}

/* An ICMP error about p. `mtu` is what fits, in errors that say so: all of the second word in ICMPv6
 * (RFC 4443, 3.2), its lower half in ICMP (RFC 1191). Headers with options are not quoted but dropped,
 * for that reason: the quote has a fixed size. */
static __always_inline int send_error(lb_ctx *ctx, const struct lb_packet *p, __u8 type, __u8 code,
				      __u32 mtu, __u32 outcome, __u32 otherwise)
{
	void *l3 = ctx_data(ctx) + at_l3(p);

	if (!may_send_error(outcome == LB_REJECT_TOO_BIG ? LB_ERROR_TOO_BIG : LB_ERROR_UNREACH))
		return drop(p, otherwise);
	if (p->ipv6) {
		struct lb_unreach6 error = {}, *out;

		if (p->l4 != p->l3 + sizeof(error.ip) ||
		    l3 + sizeof(error.ip) + sizeof(error.l4) > ctx_data_end(ctx))
			return drop(p, otherwise);
		error.icmp.icmp6_type = type;
		error.icmp.icmp6_code = code;
		error.icmp.icmp6_mtu = lb_htonl(mtu);
		__builtin_memcpy(&error.ip, l3, sizeof(error.ip) + sizeof(error.l4));
		error.icmp.icmp6_cksum = csum_fold32(csum_fold64(
			csum_words(&error, sizeof(error)) + csum_pseudo(p, sizeof(error), IPPROTO_ICMPV6)));
		if (ctx_resize_own(ctx, p, at_l3(p) + sizeof(struct ipv6hdr) + sizeof(error)) ||
		    write_ip(ctx, p, IPPROTO_ICMPV6, sizeof(error)))
			return drop(p, LB_DROP_NO_SPACE);
		out = ctx_data(ctx) + at_l3(p) + sizeof(struct ipv6hdr);
		if ((void *)(out + 1) > ctx_data_end(ctx))
			return drop(p, LB_DROP_NO_SPACE);
		*out = error;
	} else {
		struct lb_unreach4 error = {}, *out;

		if (p->l4 != p->l3 + sizeof(error.ip) ||
		    l3 + sizeof(error.ip) + sizeof(error.l4) > ctx_data_end(ctx))
			return drop(p, otherwise);
		error.icmp.type = type;
		error.icmp.code = code;
		error.icmp.un.frag.mtu = lb_htons(mtu);
		__builtin_memcpy(&error.ip, l3, sizeof(error.ip) + sizeof(error.l4));
		error.icmp.checksum = csum_fold32(csum_fold64(csum_words(&error, sizeof(error))));
		if (ctx_resize_own(ctx, p, at_l3(p) + sizeof(struct iphdr) + sizeof(error)) ||
		    write_ip(ctx, p, IPPROTO_ICMP, sizeof(error)))
			return drop(p, LB_DROP_NO_SPACE);
		out = ctx_data(ctx) + at_l3(p) + sizeof(struct iphdr);
		if ((void *)(out + 1) > ctx_data_end(ctx))
			return drop(p, LB_DROP_NO_SPACE);
		*out = error;
	}
	return send_answer(ctx, p, outcome);
}

/* Nobody takes this packet: because no backend is usable, (`full`) no port of ours is free, or (`resets`) that
 * of its connection has failed, which clients are told whatever the policy for the first case. */
static __always_inline int refuse(lb_ctx *ctx, const struct lb_packet *p, const struct lb_service *svc,
				  int full, int resets)
{
	__u32 otherwise = full ? LB_DROP_NAT_FULL : LB_DROP_NO_BACKEND;
	__u32 rst = full ? LB_REJECT_NAT_FULL : LB_REJECT_RST;
	__u32 unreach = full ? LB_REJECT_NAT_FULL : LB_REJECT_UNREACH;

	if ((svc->no_backend == LB_NO_BACKEND_DROP && !resets) || p->fragment || !source_is_unicast(p))
		return drop(p, otherwise);
	if (p->proto == IPPROTO_TCP)
		return reject_tcp(ctx, p, rst, otherwise);
	if (p->ipv6)
		return send_error(ctx, p, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH, 0, unreach, otherwise);
	return send_error(ctx, p, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH, 0, unreach, otherwise);
}

#endif
