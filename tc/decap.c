// SPDX-License-Identifier: GPL-2.0-only
/* The backend's side of modes ipip and gue, at its tc ingress hook: takes the outer header off what an
 * lb node sent, so that the kernel sees the client's own packet to the VIP, and answers it itself. For
 * machines without tunnel devices; with them, the kernel does the same (docs/backends.md).
 *
 * Only a packet whose inner destination is one of the VIPs that were named is opened: everything else
 * goes on to the kernel as it came. Whatever is let through the filters behind this one see, too. */
#include <uapi/linux/bpf.h>
#include "lb_consts.h"
#include "lb_structs.h"
#include "lb_csum.h"
#include "lb_parse.h"
#include "ctx.h"

#define lb_decap_vips ((void *)bpf_pseudo_fd(1, LB_FD_DECAP_VIPS))   /* hash: address -> u32 */
#define lb_decap_stats ((void *)bpf_pseudo_fd(1, LB_FD_DECAP_STATS)) /* per-CPU array: lb_counter */

/* Mirrored in lb/datapath/decap.py. */
enum lb_decap_outcome {
	LB_DECAP_OPENED = 0,
	LB_DECAP_NOT_A_VIP = 1, /* a tunnel's packet, but for nobody here: left alone */
	LB_DECAP_CONGESTED = 2, /* marked on the way, but not ECN-capable: dropped (RFC 6040, 4.2) */
	LB_DECAP_FAILED = 3,    /* the kernel refused to cut it */
};

/* Newer than the headers that we may be compiled with (Linux 6.3). Without them the kernel can't be told
 * that the family changes: 4 in 6 and 6 in 4 then need a tunnel device. */
#define LB_DECAP_L3_IPV4 (1ULL << 7)
#define LB_DECAP_L3_IPV6 (1ULL << 8)

#define LB_ECN_MASK 0x3
#define LB_ECN_CE 0x3

static __always_inline int counted(struct __sk_buff *ctx, __u32 outcome, int verdict)
{
	struct lb_counter *c = bpf_map_lookup_elem(lb_decap_stats, &outcome);

	if (c) {
		c->packets++;
		c->bytes += ctx_bytes(ctx);
	}
	return verdict;
}

/* Bytes of the outer headers, and what they carry; 0 = not a tunnel's packet. */
static __always_inline __u32 outer_bytes(struct __sk_buff *ctx, __u8 *proto, __u8 *tos)
{
	struct ethhdr *eth = ctx_data(ctx);
	struct udphdr *udp;
	__u32 bytes;

	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return 0;
	if (eth->h_proto == lb_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 4 || ip->ihl != 5 ||
		    lb_ntohs(ip->frag_off) & (LB_IP_MF | LB_IP_OFFSET))
			return 0;
		*proto = ip->protocol;
		*tos = ip->tos;
		bytes = sizeof(*ip);
	} else if (eth->h_proto == lb_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 6)
			return 0;
		*proto = ip->nexthdr;
		*tos = lb_ntohs(*(__u16 *)ip) >> 4;
		bytes = sizeof(*ip);
	} else {
		return 0;
	}
	if (*proto != IPPROTO_UDP)
		return *proto == IPPROTO_IPIP || *proto == IPPROTO_IPV6 ? bytes : 0;
	udp = (void *)(eth + 1) + bytes;
	lb_keep(udp);
	if ((void *)(udp + 1) + 1 > ctx_data_end(ctx) || udp->dest != lb_htons(LB_GUE_PORT))
		return 0;
	/* Variant 1: the inner packet tells its family by its own first bits. */
	switch (*(__u8 *)(udp + 1) >> 4) {
	case 4:
		*proto = IPPROTO_IPIP;
		break;
	case 6:
		*proto = IPPROTO_IPV6;
		break;
	default:
		return 0;
	}
	return bytes + sizeof(*udp);
}

int decap(struct __sk_buff *ctx)
{
	__u8 proto = 0, tos = 0;
	__u32 dst[4] = {};
	__u32 bytes;
	__u64 flags;
	void *inner;
	__u16 *word, old;

	ctx_make_readable(ctx);
	if (ctx_read(ctx, pkt_type) != 0 /* PACKET_HOST */)
		return TC_ACT_UNSPEC;
	bytes = outer_bytes(ctx, &proto, &tos);
	if (!bytes)
		return TC_ACT_UNSPEC;
	inner = ctx_data(ctx) + sizeof(struct ethhdr) + (bytes & 0x3f);
	lb_keep(inner);
	if (proto == IPPROTO_IPIP) {
		struct iphdr *ip = inner;

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 4 || ip->ihl < 5)
			return TC_ACT_UNSPEC;
		dst[2] = lb_htonl(0xffff);
		dst[3] = ip->daddr;
		flags = LB_DECAP_L3_IPV4;
		word = inner;
		old = *word;
		if (bpf_map_lookup_elem(lb_decap_vips, dst) && (tos & LB_ECN_MASK) == LB_ECN_CE) {
			if (!(ip->tos & LB_ECN_MASK))
				return counted(ctx, LB_DECAP_CONGESTED, TC_ACT_SHOT);
			ip->tos |= LB_ECN_CE;
			ip->check = csum_apply(ip->check, csum_diff_u16(old, *word));
		}
	} else {
		struct ipv6hdr *ip = inner;

		if ((void *)(ip + 1) > ctx_data_end(ctx) || ip->version != 6)
			return TC_ACT_UNSPEC;
		__builtin_memcpy(dst, &ip->daddr, 16);
		flags = LB_DECAP_L3_IPV6;
		word = inner;
		old = *word;
		if (bpf_map_lookup_elem(lb_decap_vips, dst) && (tos & LB_ECN_MASK) == LB_ECN_CE) {
			if (!(old & lb_htons(LB_ECN_MASK << 4)))
				return counted(ctx, LB_DECAP_CONGESTED, TC_ACT_SHOT);
			*word = old | lb_htons(LB_ECN_CE << 4);
			ctx_update_frame_csum(ctx, csum_diff_u16(old, *word));
		}
	}
	if (!bpf_map_lookup_elem(lb_decap_vips, dst))
		return counted(ctx, LB_DECAP_NOT_A_VIP, TC_ACT_UNSPEC);
	/* Told only where the family changes: kernels before 6.3 refuse the flags. */
	{
		struct ethhdr *eth = ctx_data(ctx);
		__u16 type = proto == IPPROTO_IPIP ? lb_htons(ETH_P_IP) : lb_htons(ETH_P_IPV6);

		if ((void *)(eth + 1) > ctx_data_end(ctx))
			return TC_ACT_UNSPEC;
		if (eth->h_proto == type)
			flags = 0;
		eth->h_proto = type;
	}
	/* Segments (GSO) keep their size: those of UDP the kernel wouldn't cut otherwise. */
	if (bpf_skb_adjust_room(ctx, -(int)bytes, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_FIXED_GSO))
		return counted(ctx, LB_DECAP_FAILED, TC_ACT_SHOT);
	return counted(ctx, LB_DECAP_OPENED, TC_ACT_UNSPEC);
}
