/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between XDP and tc, the XDP side: how to read, reshape and send a packet. */
#ifndef LB_CTX_H
#define LB_CTX_H

typedef struct xdp_md lb_ctx;

#define LB_VERDICT_PASS XDP_PASS
#define LB_VERDICT_DROP XDP_DROP

static __always_inline void *ctx_data(lb_ctx *ctx)
{
	return (void *)(long)ctx_read(ctx, data);
}

static __always_inline void *ctx_data_end(lb_ctx *ctx)
{
	return (void *)(long)ctx_read(ctx, data_end);
}

static __always_inline __u32 ctx_bytes(lb_ctx *ctx)
{
	return ctx_data_end(ctx) - ctx_data(ctx);
}

static __always_inline __u32 ctx_ifindex(lb_ctx *ctx)
{
#ifdef LB_INGRESS /* for test runs before Linux 5.15, in which every frame comes in by lo */
	return LB_INGRESS;
#else
	return ctx_read(ctx, ingress_ifindex);
#endif
}

/* XDP sees the whole frame in one piece. */
static __always_inline void ctx_make_readable(lb_ctx *ctx)
{
}

/* Room between the front of the frame (Ethernet header and tags) and the rest, for the caller to write. */
static __always_inline int ctx_resize_head(lb_ctx *ctx, int more)
{
	struct {
		__u16 word[(sizeof(struct ethhdr) + LB_VLAN_DEPTH * sizeof(struct lb_vlan)) / 2];
	} l2, *front = ctx_data(ctx);

	if ((void *)(front + 1) > ctx_data_end(ctx))
		return -1;
	l2 = *front;
	if (bpf_xdp_adjust_head(ctx, -more))
		return -1;
	front = ctx_data(ctx);
	if ((void *)(front + 1) > ctx_data_end(ctx))
		return -1;
	*front = l2;
	return 0;
}

/* Shrinks at the tail but grows at the head, where every driver leaves room; what follows the tags is
 * for the caller to write. */
static __always_inline int ctx_resize(lb_ctx *ctx, __u32 bytes)
{
	int more = (int)bytes - (int)ctx_bytes(ctx);

	return more <= 0 ? bpf_xdp_adjust_tail(ctx, more) : ctx_resize_head(ctx, more);
}

/* A frame has no checksum beside the ones in it. */
static __always_inline int ctx_resize_own(lb_ctx *ctx, const struct lb_packet *p, __u32 bytes)
{
	return ctx_resize(ctx, bytes);
}

static __always_inline int ctx_is_several(lb_ctx *ctx)
{
	return 0;
}

/* What ctx_push() pushes. */
#define LB_PUSH_IPV4 0x1
#define LB_PUSH_IPV6 0x2
#define LB_PUSH_UDP 0x4

/* Size of the IP packet, for the largest piece of it that goes over a wire. */
static __always_inline __u32 ctx_segment_bytes(lb_ctx *ctx, const struct lb_packet *p)
{
	return p->l3_bytes;
}

/* Puts an outer header between the Ethernet header and the IP header. The MAC addresses are for the caller to write. */
static __always_inline int ctx_push(lb_ctx *ctx, struct lb_packet *p, const __u32 *header, __u32 bytes,
				    __u32 flags)
{
	__u16 type = flags & LB_PUSH_IPV4 ? lb_htons(ETH_P_IP) : lb_htons(ETH_P_IPV6);
	struct ethhdr *eth;
	__u32 *to;

	if (bpf_xdp_adjust_head(ctx, -(int)bytes))
		return -1;
	eth = ctx_data(ctx);
	to = (void *)(eth + 1);
	if ((void *)to + bytes > ctx_data_end(ctx))
		return -1;
	eth->h_proto = type;
#pragma unroll
	for (int i = 0; i < bytes / 4; i++)
		to[i] = header[i];
	return 0;
}

/* What the routing lookup shall compare with the MTU. */
static __always_inline __u16 ctx_fib_bytes(lb_ctx *ctx, const struct lb_packet *p)
{
	return p->l3_bytes;
}

static __always_inline int ctx_is_tagged(lb_ctx *ctx, __u16 l3)
{
	return l3 != sizeof(struct ethhdr);
}

/* Cuts the VLAN tags out, so that the IP header stands at sizeof(struct ethhdr) again. The caller
 * writes the MAC addresses anew. */
static __always_inline int ctx_strip_vlan(lb_ctx *ctx, __u32 l3, __u16 ethertype)
{
	struct ethhdr *eth;

	if (l3 == sizeof(*eth))
		return 0;
	if (bpf_xdp_adjust_head(ctx, (int)l3 - (int)sizeof(*eth)))
		return -1;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return -1;
	eth->h_proto = ethertype;
	return 0;
}

/* Brings a TCP or UDP checksum up to date: `pseudo` is what changed in the addresses, `ports` what
 * changed in the segment. A UDP checksum of 0 says "none" (RFC 768) and stays. */
static __always_inline int ctx_update_l4_csum(lb_ctx *ctx, const struct lb_packet *p, __u32 pseudo,
					      __u32 ports)
{
	int udp = p->proto == IPPROTO_UDP;
	__u16 *check = ctx_data(ctx) + at_l4(p) +
		       (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));

	if ((void *)(check + 1) > ctx_data_end(ctx))
		return -1;
	if (udp && *check == 0)
		return 0;
	*check = csum_apply(*check, csum_fold64((__u64)pseudo + ports));
	if (udp && *check == 0)
		*check = 0xffff;
	return 0;
}

/* A frame has no checksum beside the ones in it. */
static __always_inline void ctx_update_frame_csum(lb_ctx *ctx, __u32 diff)
{
}

/* Sets the checksum of a TCP segment that we wrote ourselves. */
static __always_inline int ctx_set_tcp_csum(lb_ctx *ctx, __u16 offset, __u16 was, __u16 check,
					    __u32 length_diff)
{
	__u16 *field = ctx_data(ctx) + offset;

	if ((void *)(field + 1) > ctx_data_end(ctx))
		return -1;
	*field = check;
	return 0;
}

/* Only attached interfaces are in the devmap. */
static __always_inline int ctx_can_send_to(__u32 ifindex)
{
	return is_attached(ifindex);
}

static __always_inline int ctx_send_back(lb_ctx *ctx)
{
	return XDP_TX;
}

/* A frame for an interface that left the devmap meanwhile is dropped by the kernel, visibly
 * (xdp:xdp_redirect_err), as nobody else could take it. */
static __always_inline int ctx_send_to(lb_ctx *ctx, __u32 ifindex)
{
	return bpf_redirect_map(lb_egress, ifindex, 0);
}

#endif
