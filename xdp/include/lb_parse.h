/* SPDX-License-Identifier: GPL-2.0-only */
/* One cursor-style parser for XDP and tc: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with
 * extension headers, TCP, UDP, ICMP. It reads, and changes nothing. */
#ifndef LB_PARSE_H
#define LB_PARSE_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>

#define LB_IP_DF 0x4000     /* RFC 791: don't fragment */
#define LB_IP_MF 0x2000     /* RFC 791: more fragments */
#define LB_IP_OFFSET 0x1fff /* RFC 791: fragment offset, in units of 8 bytes */

enum lb_parsed {
	LB_PARSED = 0,      /* everything below is filled in */
	LB_PARSED_OTHER,    /* not IP, or nothing that a service could match */
	LB_PARSED_ADDRESS,  /* IP with addresses and protocol, but no usable ports: see `fault` */
	LB_PARSED_LATER,    /* the same: a piece of a datagram, and not the first */
};

struct lb_packet {
	__u32 src[4];
	__u32 dst[4];
	__u32 ifindex; /* that it came in by */
	__u32 bytes;   /* of the whole frame */
	__u16 l3;      /* offsets from the start of the frame */
	__u16 l4;
	__u16 l3_bytes; /* length that the IP header states; never beyond the frame */
	__u16 sport;
	__u16 dport;
	__u16 ethertype; /* behind the tags */
	__u8 proto;
	__u8 ipv6;
	__u8 l4_bytes; /* of the TCP or UDP header */
	__u8 begins;   /* this packet can only be the first of its flow: TCP SYN, QUIC Initial */
	__u8 fragment; /* a part of a datagram that comes in several */
	__u8 later;    /* and not the first of them: it has no ports */
	__u8 fault;    /* enum lb_outcome: why ports are missing */
	__u8 parsed;   /* enum lb_parsed */
	__u8 hops;     /* that are left: TTL or hop limit */
	__u8 quoted;   /* read from an ICMP error: it tells of a flow, and isn't part of it */
	__u32 fragment_id;
	struct lb_fragment first; /* of a later one: where the first went; undefined otherwise */
};

/* Offsets of the IP header and of what it carries, with bounds that the verifier can see: behind two
 * tags, and behind the longest extension headers that we walk. */
static __always_inline __u32 at_l3(const struct lb_packet *p)
{
	return p->l3 & 0x1f;
}

static __always_inline __u32 at_l4(const struct lb_packet *p)
{
	return p->l4 & 0x3fff;
}

struct lb_vlan {
	__u16 tci;
	__u16 proto;
};

struct lb_fragment6 {
	__u8 nexthdr;
	__u8 reserved;
	__u16 offset; /* RFC 8200, 4.5: 13 bits of offset, 2 reserved, M */
	__u32 id;
};

struct lb_ext6 {
	__u8 nexthdr;
	__u8 len; /* units of 8 bytes, less the first */
	__u8 routing_type;
	__u8 segments_left; /* of a routing header */
};

struct lb_quic {
	__u8 first; /* RFC 9000, 17.2: header form, fixed bit, packet type, and 4 protected bits */
	__u8 version[4];
};

#define LB_QUIC_INITIAL_BYTES 1200 /* a client pads to this (RFC 9000, 14.1) */
#define LB_QUIC_V1 1
#define LB_QUIC_V2 0x6b3343cf

static __always_inline __u32 quic_version(const struct lb_quic *quic)
{
	return quic->version[0] << 24 | quic->version[1] << 16 | quic->version[2] << 8 | quic->version[3];
}

/* A client's first datagram: version 1 (RFC 9000, 17.2.2) or version 2 (RFC 9369, 3.2). */
static __always_inline int is_quic_initial(struct lb_quic *quic, void *data_end)
{
	__u32 version;

	if ((void *)(quic + 1) > data_end)
		return 0;
	version = quic_version(quic);
	return ((quic->first & 0xf0) == 0xc0 && version == LB_QUIC_V1) ||
	       ((quic->first & 0xf0) == 0xd0 && version == LB_QUIC_V2);
}

static __always_inline int parse_ports(void *data, void *data_end, struct lb_packet *p)
{
	void *l4 = data + p->l4;
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;
	struct icmphdr *icmp = l4;
	__u16 room;

	p->fault = LB_DROP_MALFORMED;
	if (p->l4 > p->l3 + p->l3_bytes)
		return LB_PARSED_ADDRESS;
	room = p->l3 + p->l3_bytes - p->l4;
	switch (p->proto) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > data_end || room < sizeof(*tcp) || tcp->doff < 5)
			return LB_PARSED_ADDRESS;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->l4_bytes = tcp->doff * 4;
		p->begins = tcp->syn && !tcp->ack;
		return LB_PARSED;
	case IPPROTO_UDP:
		if ((void *)(udp + 1) > data_end || room < sizeof(*udp))
			return LB_PARSED_ADDRESS;
		p->l4_bytes = sizeof(*udp);
		p->sport = udp->source;
		p->dport = udp->dest;
		p->begins = room >= sizeof(*udp) + LB_QUIC_INITIAL_BYTES &&
			    is_quic_initial((void *)(udp + 1), data_end);
		return LB_PARSED;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(icmp + 1) > data_end || room < sizeof(*icmp))
			return LB_PARSED_ADDRESS;
		return LB_PARSED;
	default:
		return LB_PARSED_OTHER;
	}
}

static __always_inline int parse_ipv4(void *data, void *data_end, struct lb_packet *p)
{
	struct iphdr *ip = data + p->l3;
	__u16 offset;

	if ((void *)(ip + 1) > data_end)
		return LB_PARSED_OTHER;
	p->src[2] = p->dst[2] = lb_htonl(0xffff);
	p->src[3] = ip->saddr;
	p->dst[3] = ip->daddr;
	p->proto = ip->protocol;
	p->hops = ip->ttl;
	p->l3_bytes = lb_ntohs(ip->tot_len);
	p->fault = LB_DROP_MALFORMED;
	/* RFC 1122, 3.2.1: a header that contradicts itself or the frame isn't to be believed. */
	if (ip->version != 4 || ip->ihl < 5 || p->l3_bytes < ip->ihl * 4 ||
	    p->l3 + p->l3_bytes > p->bytes)
		return LB_PARSED_ADDRESS;
	p->l4 = p->l3 + ip->ihl * 4;
	offset = lb_ntohs(ip->frag_off);
	if (offset & (LB_IP_MF | LB_IP_OFFSET)) {
		p->fragment = 1;
		p->fragment_id = ip->id;
	}
	if (offset & LB_IP_OFFSET) {
		p->later = 1;
		p->fault = LB_DROP_FRAGMENT;
		return LB_PARSED_LATER;
	}
	return parse_ports(data, data_end, p);
}

/* Without branches: each would double what the verifier has to look at. */
static __always_inline int is_mapped_ipv4(const __u32 *addr)
{
	return !(addr[0] | addr[1] | (addr[2] ^ lb_htonl(0xffff)));
}

static __always_inline int is_same_address(const __u32 *a, const __u32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

static __always_inline int parse_ipv6(void *data, void *data_end, struct lb_packet *p)
{
	struct ipv6hdr *ip = data + p->l3;
	__u32 offset = p->l3 + sizeof(*ip);
	__u32 end;
	__u8 next;

	if ((void *)(ip + 1) > data_end)
		return LB_PARSED_OTHER;
	p->ipv6 = 1;
	__builtin_memcpy(p->src, &ip->saddr, 16);
	__builtin_memcpy(p->dst, &ip->daddr, 16);
	/* Our keys say ::ffff:a.b.c.d for IPv4. On the wire such addresses are somebody's try to reach
	 * an IPv4 service past its filters (RFC 4942, 2.2). */
	if (is_mapped_ipv4(p->src) || is_mapped_ipv4(p->dst))
		return LB_PARSED_OTHER;
	p->proto = next = ip->nexthdr;
	p->hops = ip->hop_limit;
	p->fault = LB_DROP_MALFORMED;
	end = offset + lb_ntohs(ip->payload_len);
	if (ip->version != 6 || end > p->bytes)
		return LB_PARSED_ADDRESS;
	p->l3_bytes = end - p->l3;

#pragma unroll
	for (int i = 0; i < LB_IPV6_EXT_DEPTH; i++) {
		struct lb_ext6 *ext = data + offset;
		struct lb_fragment6 *frag = data + offset;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		if ((void *)(frag + 1) > data_end || offset + sizeof(*frag) > end)
			return LB_PARSED_ADDRESS;
		if (next == IPPROTO_FRAGMENT) {
			/* With neither offset nor M it is a whole datagram (RFC 6946). */
			p->fragment |= lb_ntohs(frag->offset) & 1;
			p->fragment_id = frag->id;
			if (lb_ntohs(frag->offset) & 0xfff8) {
				p->fragment = 1;
				p->later = 1;
				p->proto = frag->nexthdr;
				p->fault = LB_DROP_FRAGMENT;
				return LB_PARSED_LATER;
			}
			offset += sizeof(*frag);
		} else {
			/* Segments left: the destination is only a stop on the way (RFC 8200, 4.4). */
			if (next == IPPROTO_ROUTING && ext->segments_left)
				return LB_PARSED_OTHER;
			offset += (ext->len + 1) * 8;
		}
		next = ext->nexthdr;
	}
	p->proto = next;
	p->l4 = offset;
	return parse_ports(data, data_end, p);
}

/* struct ethhdr is packed, which the compiler would read byte by byte. */
static __always_inline __u16 *ethertype_of(struct ethhdr *eth)
{
	return (__u16 *)((void *)eth + offsetof(struct ethhdr, h_proto));
}

/* data..data_end is the frame as far as it can be read; p comes zeroed but for ifindex and bytes. */
static __always_inline int parse_packet(void *data, void *data_end, struct lb_packet *p)
{
	struct ethhdr *eth = data;
	__u16 proto;

	if ((void *)(eth + 1) > data_end)
		return LB_PARSED_OTHER;
	proto = *ethertype_of(eth);
	p->l3 = sizeof(*eth);
#pragma unroll
	for (int i = 0; i < LB_VLAN_DEPTH; i++) {
		struct lb_vlan *vlan = data + p->l3;

		if (proto != lb_htons(ETH_P_8021Q) && proto != lb_htons(ETH_P_8021AD))
			break;
		if ((void *)(vlan + 1) > data_end)
			return LB_PARSED_OTHER;
		proto = vlan->proto;
		p->l3 += sizeof(*vlan);
	}
	p->ethertype = proto;
	if (proto == lb_htons(ETH_P_IP))
		return parse_ipv4(data, data_end, p);
	if (proto == lb_htons(ETH_P_IPV6))
		return parse_ipv6(data, data_end, p);
	return LB_PARSED_OTHER;
}

#endif
