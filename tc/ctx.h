/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between XDP and tc, the tc side: how to read, reshape and send a packet. Checksums
 * are changed through helpers that know of offload (CHECKSUM_PARTIAL and CHECKSUM_COMPLETE). */
#ifndef LB_CTX_H
#define LB_CTX_H

#include <uapi/linux/pkt_cls.h>

typedef struct __sk_buff lb_ctx;

/* On to the filters behind ours, and then to the kernel. (TC_ACT_OK would end classification here.) */
#define LB_VERDICT_PASS TC_ACT_UNSPEC
#define LB_VERDICT_DROP TC_ACT_SHOT

/* Ethernet, two tags, IPv6, some extension headers, TCP. */
#define LB_READABLE 192u

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
	return ctx_read(ctx, len);
}

static __always_inline __u32 ctx_ifindex(lb_ctx *ctx)
{
	return ctx_read(ctx, ifindex);
}

static __always_inline void ctx_make_readable(lb_ctx *ctx)
{
	__u32 want = ctx_bytes(ctx) < LB_READABLE ? ctx_bytes(ctx) : LB_READABLE;

	if (ctx_data(ctx) + want > ctx_data_end(ctx))
		bpf_skb_pull_data(ctx, want);
}

static __always_inline int ctx_resize(lb_ctx *ctx, __u32 bytes)
{
	return bpf_skb_change_tail(ctx, bytes, 0);
}

/* What is cut off in front, below: more than Ethernet and IPv6 headers, behind which a checksum begins; and once more. */
#define LB_CUT 56u
#define LB_CUT_AGAIN 8u

/* The same, for a packet that we write from its IP header on, with its checksums. The one that it becomes may have had
 * one that is left to a card (CHECKSUM_PARTIAL: out of GRO, from a virtual machine), which would be written over ours;
 * the kernel only forgets it where its place is cut off in front. Kernels before 6.1.5 and 5.10.163 look for that
 * before they cut (54c3f1a81421), and must not be left with such a place: hence twice. Where a second tag stands inside
 * the frame nothing can be cut. */
static __always_inline int ctx_resize_own(lb_ctx *ctx, const struct lb_packet *p, __u32 bytes)
{
	if (p->l3 != sizeof(struct ethhdr))
		return ctx_resize(ctx, bytes);
	if (ctx_resize(ctx, bytes + LB_CUT + LB_CUT_AGAIN))
		return -1;
	if (bpf_skb_adjust_room(ctx, -(int)LB_CUT, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return bpf_skb_adjust_room(ctx, -(int)LB_CUT_AGAIN, BPF_ADJ_ROOM_MAC, 0);
}

/* Is it several segments, of TCP or UDP, to be cut apart on the way out (GSO)? */
static __always_inline int ctx_is_several(lb_ctx *ctx)
{
	return !!ctx_read(ctx, gso_size);
}

/* What ctx_push() pushes. */
#define LB_PUSH_IPV4 BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
#define LB_PUSH_IPV6 BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
#define LB_PUSH_UDP BPF_F_ADJ_ROOM_ENCAP_L4_UDP

/* Size of the IP packet, or of the largest of the packets that it is cut into on its way out (GSO). */
static __always_inline __u32 ctx_segment_bytes(lb_ctx *ctx, const struct lb_packet *p)
{
	__u32 segment = ctx_read(ctx, gso_size);

	return segment ? segment + p->l4 - p->l3 + p->l4_bytes : p->l3_bytes;
}

/* Puts an outer header between the Ethernet header and the IP header. Segments keep their size (FIXED_GSO, since Linux
 * 4.20): that they fit has been seen to, a datagram's must not change, and without the flag the kernel refuses those of
 * UDP. */
static __always_inline int ctx_push(lb_ctx *ctx, struct lb_packet *p, const __u32 *header, __u32 bytes,
				    __u32 flags)
{
	__u16 type = flags & LB_PUSH_IPV4 ? lb_htons(ETH_P_IP) : lb_htons(ETH_P_IPV6);
	struct ethhdr *eth;

	if (bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_FIXED_GSO))
		return -1;
	if (bpf_skb_store_bytes(ctx, sizeof(struct ethhdr), (void *)header, bytes, BPF_F_RECOMPUTE_CSUM))
		return -1;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return -1;
	eth->h_proto = type;
	return 0;
}

/* What the routing lookup shall compare with the route's MTU. 0: the kernel looks at the socket buffer
 * itself, which may be several segments in one (GSO), but then only with the device's MTU in mind. */
static __always_inline __u16 ctx_fib_bytes(lb_ctx *ctx, const struct lb_packet *p)
{
	return ctx_read(ctx, gso_size) ? 0 : p->l3_bytes;
}

static __always_inline int ctx_is_tagged(lb_ctx *ctx, __u16 l3)
{
	return l3 != sizeof(struct ethhdr) || ctx_read(ctx, vlan_present);
}

/* The outer tag normally stands beside the packet (skb->vlan_tci) and the inner one inside;
 * bpf_skb_vlan_pop() takes the outermost one, wherever it is. */
static __always_inline int ctx_strip_vlan(lb_ctx *ctx, __u32 l3, __u16 ethertype)
{
#pragma unroll
	for (int i = 0; i < LB_VLAN_DEPTH; i++) {
		int inside = l3 > sizeof(struct ethhdr) + i * sizeof(struct lb_vlan);

		if (!ctx_read(ctx, vlan_present) && !inside)
			break;
		if (bpf_skb_vlan_pop(ctx))
			return -1;
	}
	return 0;
}

/* With CHECKSUM_COMPLETE the kernel holds the sum of the whole packet, which changes with what no
 * checksum inside makes up for: IPv6 headers have none. Does nothing otherwise. BCC declares the
 * helper with 16 bits of sum. */
static __always_inline void ctx_update_frame_csum(lb_ctx *ctx, __u32 diff)
{
	bpf_csum_update(ctx, (__u16)~csum_fold32(diff));
}

static __always_inline int ctx_update_l4_csum(lb_ctx *ctx, const struct lb_packet *p, __u32 pseudo,
					      __u32 ports)
{
	int udp = p->proto == IPPROTO_UDP;
	__u32 offset = at_l4(p) + (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));
	__u64 keep_none = udp ? BPF_F_MARK_MANGLED_0 : 0;

	if (bpf_l4_csum_replace(ctx, offset, 0, pseudo, BPF_F_PSEUDO_HDR | keep_none))
		return -1;
	/* The helper takes it that a header checksum makes up for the addresses. (BPF_F_IPV6 says that
	 * none does, from 6.16 on.) */
	if (p->ipv6)
		ctx_update_frame_csum(ctx, pseudo);
	return bpf_l4_csum_replace(ctx, offset, 0, ports, keep_none);
}

/* With CHECKSUM_PARTIAL the field must hold the pseudo header's sum, otherwise the whole checksum;
 * a program can't see which. But a change that isn't of the pseudo header is ignored in the first
 * case, so: make the second case right with such a change, less what the length adds to both. */
static __always_inline int ctx_set_tcp_csum(lb_ctx *ctx, __u16 offset, __u16 was, __u16 check,
					    __u32 length_diff)
{
	__u32 segment = csum_fold64((__u64)(__u16)~check + was + (__u32)~length_diff);

	if (bpf_l4_csum_replace(ctx, offset, 0, segment, 0))
		return -1;
	return bpf_l4_csum_replace(ctx, offset, 0, length_diff, BPF_F_PSEUDO_HDR);
}

static __always_inline int ctx_can_send_to(__u32 ifindex)
{
	return 1;
}

static __always_inline int ctx_send_back(lb_ctx *ctx)
{
	return bpf_redirect(ctx_ifindex(ctx), 0);
}

static __always_inline int ctx_send_to(lb_ctx *ctx, __u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

#endif
