/* SPDX-License-Identifier: GPL-2.0-only */
/* The interfaces that lbd attached to, and which frames are addressed to them. */
#ifndef LB_LINKS_H
#define LB_LINKS_H

static __always_inline struct lb_link *find_link(__u32 ifindex)
{
	__u32 at = ifindex & (LB_LINKS - 1);

	return bpf_map_lookup_elem(lb_links, &at);
}

static __always_inline int is_same_mac(const __u8 *one, const __u8 *other)
{
	const __u16 *a = (const __u16 *)one, *b = (const __u16 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	__u16 *a = (__u16 *)to;
	const __u16 *b = (const __u16 *)from;

	a[0] = b[0];
	a[1] = b[1];
	a[2] = b[2];
}

static __always_inline int is_attached(__u32 ifindex)
{
	struct lb_link *link = find_link(ifindex);

	return link && link->ifindex == ifindex;
}

/* A switch floods frames whose owner it doesn't know, and a bridge port sees everybody's: only what
 * is addressed to this interface's own MAC may be balanced. What comes in by a port of a bond (where native
 * XDP runs) came in by the bond. */
static __always_inline int is_for_us(void *data, void *data_end, struct lb_packet *p)
{
	const struct lb_link *link = find_link(p->ifindex);
	const struct ethhdr *eth = data;

	if (!link || link->ifindex != p->ifindex || data + sizeof(*eth) > data_end)
		return 0;
	p->ifindex = link->master;
	return is_same_mac(eth->h_dest, link->mac);
}

#endif
