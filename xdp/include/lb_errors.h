/* SPDX-License-Identifier: GPL-2.0-only */
/* ICMP errors: those that we send, and those about a flow of ours, which are for its backend. */
#ifndef LB_ERRORS_H
#define LB_ERRORS_H

/* Reads what an ICMP error quotes, the begin of a packet that a backend sent (or, `sent` = 0, that we
 * sent to one), as if it were a packet of the client: so that it finds the same backend. */
static __always_inline struct lb_packet *parse_quote(lb_ctx *ctx, const struct lb_packet *p, int sent)
{
	__u32 at = at_l4(p) + sizeof(struct icmphdr), one = 1;
	struct lb_packet *q = bpf_map_lookup_elem(lb_scratch, &one);
	void *l3 = ctx_data(ctx) + at;
	__u16 *ports;

	if (!q)
		return NULL;
	__builtin_memset(q, 0, sizeof(*q));
	q->ifindex = p->ifindex;
	q->bytes = p->bytes;
	q->ipv6 = p->ipv6;
	q->quoted = 1;
	q->l3 = at;
	if (p->ipv6) {
		struct ipv6hdr *ip = l3;
		struct lb_fragment6 *frag = (void *)(ip + 1);

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 6)
			return NULL;
		__builtin_memcpy(q->src, sent ? &ip->daddr : &ip->saddr, 16);
		__builtin_memcpy(q->dst, sent ? &ip->saddr : &ip->daddr, 16);
		if (is_mapped_ipv4(q->src) || is_mapped_ipv4(q->dst))
			return NULL;
		q->proto = ip->nexthdr;
		q->l4 = at + sizeof(*ip);
		/* The first piece of a datagram has the ports. */
		if (q->proto == IPPROTO_FRAGMENT) {
			if ((void *)(frag + 1) > ctx_data_end(ctx) || lb_ntohs(frag->offset) & 0xfff8)
				return NULL;
			q->proto = frag->nexthdr;
			q->l4 += sizeof(*frag);
		}
	} else {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 4 || ip->ihl < 5 ||
		    lb_ntohs(ip->frag_off) & LB_IP_OFFSET)
			return NULL;
		q->src[2] = q->dst[2] = lb_htonl(0xffff);
		q->src[3] = sent ? ip->daddr : ip->saddr;
		q->dst[3] = sent ? ip->saddr : ip->daddr;
		q->proto = ip->protocol;
		q->l4 = at + ip->ihl * 4;
	}
	/* RFC 792: 8 bytes of what the packet carried are sure to be there, so the ports are. */
	ports = ctx_data(ctx) + at_l4(q);
	if ((q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP) ||
	    (void *)(ports + 4) > ctx_data_end(ctx) || q->l4 + 8 > p->l3 + p->l3_bytes)
		return NULL;
	q->sport = ports[sent];
	q->dport = ports[!sent];
	return q;
}

/* Is it an error about another packet, which it quotes? */
static __always_inline int is_error(lb_ctx *ctx, const struct lb_packet *p)
{
	struct icmphdr *icmp = ctx_data(ctx) + at_l4(p);

	if ((void *)(icmp + 1) > ctx_data_end(ctx) || p->fragment)
		return 0;
	if (p->ipv6) /* RFC 4443, 2.1: unreachable, too big, time exceeded, parameter problem */
		return p->proto == IPPROTO_ICMPV6 && icmp->type >= ICMPV6_DEST_UNREACH &&
		       icmp->type <= ICMPV6_PARAMPROB;
	return p->proto == IPPROTO_ICMP &&
	       (icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
		icmp->type == ICMP_PARAMETERPROB);
}

/* nat, fullnat: translates one end of the packet that an error quotes, its source or its destination; and,
 * if `own`, the address of the error itself that is the same host's: its destination or its source
 * (RFC 5508, 4.2). The quoted checksum of TCP or UDP stays: nobody checks it, and often it is cut off. */
static __always_inline int translate_error(lb_ctx *ctx, const struct lb_packet *p,
					   const struct lb_packet *q, int source, int own,
					   const __u32 *from, __u16 from_port, const __u32 *addr, __u16 port)
{
	__u32 changed = csum_diff_addr(from, addr, p->ipv6);
	struct icmphdr *icmp;
	__u64 sum;
	__u16 *ports;

	if (!port)
		port = from_port;
	ports = ctx_data(ctx) + at_l4(q);
	if ((void *)(ports + 2) > ctx_data_end(ctx))
		return -1;
	ports[!source] = port;
	sum = csum_diff_u16(from_port, port);
	if (p->ipv6) {
		struct ipv6hdr *ip = ctx_data(ctx) + at_l3(p), *inner = ctx_data(ctx) + (q->l3 & 0x7fff);

		if ((void *)(ip + 1) > ctx_data_end(ctx) || (void *)(inner + 1) > ctx_data_end(ctx))
			return -1;
		__builtin_memcpy(source ? &inner->saddr : &inner->daddr, addr, 16);
		sum += changed;
		if (own) {
			__builtin_memcpy(source ? &ip->daddr : &ip->saddr, addr, 16);
			sum += changed; /* of the pseudo header */
		}
	} else {
		struct iphdr *ip = ctx_data(ctx) + at_l3(p), *inner = ctx_data(ctx) + (q->l3 & 0x7fff);

		if ((void *)(ip + 1) > ctx_data_end(ctx) || (void *)(inner + 1) > ctx_data_end(ctx))
			return -1;
		sum += (__u64)changed + csum_diff_u16(inner->check, csum_apply(inner->check, changed));
		inner->check = csum_apply(inner->check, changed);
		if (source)
			inner->saddr = addr[3];
		else
			inner->daddr = addr[3];
		if (own) {
			if (source)
				ip->daddr = addr[3];
			else
				ip->saddr = addr[3];
			ip->check = csum_apply(ip->check, changed);
		}
	}
	icmp = ctx_data(ctx) + at_l4(p);
	if ((void *)(icmp + 1) > ctx_data_end(ctx))
		return -1;
	icmp->checksum = csum_apply(icmp->checksum, csum_fold64(sum));
	return 0;
}

/* Longer than the way to the backend takes: the client is told what would fit (RFC 1191, RFC 8201), also
 * where it didn't set DF, as a tunnel's packets are never cut. */
static __always_inline int too_big(lb_ctx *ctx, const struct lb_packet *p, __u32 mtu)
{
	if (p->fragment || !source_is_unicast(p) ||
	    p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6)
		return drop(p, LB_DROP_TOO_BIG);
	if (p->ipv6)
		return send_error(ctx, p, ICMPV6_PKT_TOOBIG, 0, mtu, LB_REJECT_TOO_BIG, LB_DROP_TOO_BIG);
	return send_error(ctx, p, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, mtu, LB_REJECT_TOO_BIG,
			  LB_DROP_TOO_BIG);
}

#endif
