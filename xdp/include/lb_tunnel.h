/* SPDX-License-Identifier: GPL-2.0-only */
/* Modes ipip and gue: the packet as it is, behind an outer header that leads to the backend. */
#ifndef LB_TUNNEL_H
#define LB_TUNNEL_H

/* Of the outer UDP header's source port: ephemeral ones (RFC 6335), so that what spreads packets by
 * their ports (ECMP, receive queues) spreads flows. */
#define LB_GUE_PORTS 0xc000
#define LB_GUE_PORT_SHIFT 50 /* 14 bits of 64 */

/* Outer headers are built as words: the compiler then keeps them in registers, where fields of a struct would go
 * to the stack as half words and be read again as words, which the processor can't forward. */
#define LB_OUTER4_WORDS ((sizeof(struct iphdr) + sizeof(struct udphdr)) / 4)
#define LB_OUTER6_WORDS ((sizeof(struct ipv6hdr) + sizeof(struct udphdr)) / 4)
#define LB_OUTER6_UDP (sizeof(struct ipv6hdr) / 4) /* where the UDP header begins */

static __always_inline int is_tunnel(const struct lb_service *svc)
{
	return svc->mode == LB_MODE_IPIP || svc->mode == LB_MODE_GUE;
}

/* How many bytes the mode adds to an IP packet. */
static __always_inline __u32 overhead(const struct lb_service *svc, const struct lb_backend *backend)
{
	__u32 bytes;

	if (!is_tunnel(svc))
		return 0;
	bytes = is_mapped_ipv4(backend->addr) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	return svc->mode == LB_MODE_GUE ? bytes + sizeof(struct udphdr) : bytes;
}

static __always_inline __u16 gue_port(const struct lb_service *svc, const struct lb_packet *p)
{
	__u64 h = svc->seed[1] ^ ((__u64)lb_ntohl(p->src[3]) << 32) ^ ((__u32)lb_ntohs(p->sport) << 16) ^
		  lb_ntohs(p->dport);

	return LB_GUE_PORTS | (hash_mix(h) >> LB_GUE_PORT_SHIFT);
}

/* The checksum that the outer UDP header needs, without a look at what it carries: a segment whose own
 * checksum is right adds the complement of its pseudo header's sum (Linux calls that local checksum
 * offload). 0 (none; RFC 6935 allows it for tunnels) where the inner packet has none of its own that
 * covers all, and for several segments in one: each will have other lengths, and the kernel leaves the
 * outer checksum as it is. */
static __always_inline __u16 gue_checksum(lb_ctx *ctx, const struct lb_packet *p,
					  const __u32 *outer)
{
	void *l3 = ctx_data(ctx) + at_l3(p);
	__u16 l4_bytes = p->l3 + p->l3_bytes - p->l4;
	struct udphdr *udp = ctx_data(ctx) + at_l4(p);
	__u64 sum = 0;

	if (p->fragment || p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6 || ctx_is_several(ctx))
		return 0;
	if ((void *)(udp + 1) > ctx_data_end(ctx) || (p->proto == IPPROTO_UDP && !udp->check))
		return 0;
	lb_keep(l3);
	/* A datagram that says it ends before the packet does. */
	if (p->proto == IPPROTO_UDP && lb_ntohs(udp->len) != l4_bytes)
		return 0;
	/* Both addresses, the UDP header, and the pseudo header's length and protocol. */
	sum = csum_u32s(outer + 2, LB_OUTER6_WORDS - 2) + lb_htons(lb_ntohl(outer[LB_OUTER6_UDP + 1]) >> 16) +
	      lb_htons(IPPROTO_UDP);
	if (p->ipv6) {
		struct ipv6hdr *ip = l3;

		if ((void *)(ip + 1) > ctx_data_end(ctx) || p->l4 != p->l3 + sizeof(*ip))
			return 0;
		sum += csum_words(ip, sizeof(*ip));
	} else {
		struct iphdr *ip = l3;

		/* An IPv4 header sums to 0, if it is right. */
		if ((void *)(ip + 1) > ctx_data_end(ctx) || p->l4 != p->l3 + sizeof(*ip) ||
		    csum_fold32(csum_fold64(csum_words(ip, sizeof(*ip)))))
			return 0;
	}
	sum += (__u32)~csum_fold64(csum_pseudo(p, l4_bytes, p->proto));
	{
		__u16 check = csum_fold32(csum_fold64(sum));

		return check ? check : 0xffff;
	}
}

/* Puts the outer header, of so many bytes (overhead()), in front of the packet. Its TOS is the inner one's, with the ECN bits as they
 * are (RFC 6040, 4.1, normal mode). DF is set: with an identification of 0 it must not be cut
 * (RFC 6864), and who sends too much is told (lb_errors.h). */
static __always_inline int tunnel_push(lb_ctx *ctx, struct lb_packet *p, const struct lb_service *svc,
				       const struct lb_backend *backend, __u32 bytes)
{
	int gue = svc->mode == LB_MODE_GUE, over4 = bytes < sizeof(struct ipv6hdr);
	__u8 inner = p->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	__u16 length = p->l3_bytes;
	void *l3 = ctx_data(ctx) + at_l3(p);
	__u8 tos;

	if (l3 + sizeof(struct iphdr) > ctx_data_end(ctx))
		return -1;
	tos = p->ipv6 ? lb_ntohs(*(__u16 *)l3) >> 4 : ((struct iphdr *)l3)->tos;
	if (over4) {
		__u32 outer[LB_OUTER4_WORDS] = {
			lb_htonl(0x45000000 | (__u32)tos << 16 | (__u16)(length + bytes)),
			lb_htonl(LB_IP_DF),
			lb_htonl(LB_REPLY_TTL << 24) | lb_htonl((__u32)(gue ? IPPROTO_UDP : inner) << 16),
			backend->source[3],
			backend->addr[3],
		};

		outer[2] |= lb_htonl(lb_ntohs(csum_fold32(csum_fold64(csum_u32s(outer, sizeof(struct iphdr) / 4)))));
		if (!gue)
			return ctx_push(ctx, p, outer, sizeof(struct iphdr), LB_PUSH_IPV4);
		outer[5] = lb_htonl((__u32)gue_port(svc, p) << 16 | lb_ntohs(backend->port));
		outer[6] = lb_htonl((__u32)(__u16)(length + sizeof(struct udphdr)) << 16);
		return ctx_push(ctx, p, outer, sizeof(outer), LB_PUSH_IPV4 | LB_PUSH_UDP);
	} else {
		__u16 payload = length + (gue ? sizeof(struct udphdr) : 0);
		__u32 outer[LB_OUTER6_WORDS] = {
			lb_htonl(0x60000000 | (__u32)tos << 20),
			lb_htonl((__u32)payload << 16 | (__u32)(gue ? IPPROTO_UDP : inner) << 8 | LB_REPLY_TTL),
		};

		__builtin_memcpy(outer + 2, backend->source, 16);
		__builtin_memcpy(outer + 6, backend->addr, 16);
		if (!gue)
			return ctx_push(ctx, p, outer, sizeof(struct ipv6hdr), LB_PUSH_IPV6);
		outer[LB_OUTER6_UDP] = lb_htonl((__u32)gue_port(svc, p) << 16 | lb_ntohs(backend->port));
		outer[LB_OUTER6_UDP + 1] = lb_htonl((__u32)payload << 16);
		outer[LB_OUTER6_UDP + 1] |= lb_htonl(lb_ntohs(gue_checksum(ctx, p, outer)));
		return ctx_push(ctx, p, outer, sizeof(outer), LB_PUSH_IPV6 | LB_PUSH_UDP);
	}
}

#endif
