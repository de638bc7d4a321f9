/* SPDX-License-Identifier: GPL-2.0-only */
/* From an address and port to what stands there: a VIP, or a backend of a translating service. Each CPU keeps what
 * it found, found nothing included, because an array costs 3 ns where a hash costs 25 and a trie 48. */
#ifndef LB_LOOKUP_H
#define LB_LOOKUP_H

/* lb_lookup.what: a port, a protocol, and what was looked for. */
#define LB_LOOKUP(port, proto, kind) ((__u32)(port) << 16 | (__u32)(proto) << 8 | (kind))
#define LB_LOOKUP_VIP 1
#define LB_LOOKUP_NAT_BACK 2

/* Where a lookup is kept. No secret: whoever makes entries displace each other costs us a hash lookup. */
static __always_inline __u32 lookup_place(const __u32 *addr, __u32 what)
{
	__u64 h = (__u64)(addr[0] ^ addr[2]) << 32 | (addr[1] ^ addr[3]);

	h ^= (__u64)what << 16;
	return h * 0x9e3779b97f4a7c15ULL >> 52; /* Fibonacci hashing (Knuth, 6.4) */
}

/* Is this what was looked for, and are the maps still as they were? */
static __always_inline int is_kept(const struct lb_lookup *at, const struct lb_edition *now, const __u32 *addr,
				   __u32 what)
{
	return is_same_address(at->addr, addr) && at->what == what && at->edition == now->number;
}

static __always_inline void keep(struct lb_lookup *at, __u32 edition, const __u32 *addr, __u32 what,
				 __u32 service, __u32 backend)
{
	__builtin_memcpy(at->addr, addr, sizeof(at->addr));
	at->what = what;
	at->edition = edition;
	at->service = service;
	at->backend = backend;
}

/* What leads to the service at an address and port, one that names the port before one whose range covers it;
 * NULL = none is there. `has`: LB_HAS_*, what there is at all. */
static __always_inline __u32 *vip_entry(const __u32 *addr, __u16 port, __u8 proto, __u32 has)
{
	__u32 *found;

	{
		struct lb_endpoint vip = { .port = port, .proto = proto };

		__builtin_memcpy(vip.addr, addr, sizeof(vip.addr));
		found = bpf_map_lookup_elem(lb_vips, &vip);
	}
	if (!found && has & LB_HAS_RANGES) {
		struct lb_range range = { .prefixlen = LB_RANGE_BITS + 16, .port = port, .proto = proto };

		__builtin_memcpy(range.addr, addr, sizeof(range.addr));
		found = bpf_map_lookup_elem(lb_ranges, &range);
	}
	return found;
}

/* That service; 0 = none. */
static __always_inline __u32 find_vip(const __u32 *addr, __u16 port, __u8 proto)
{
	__u32 what = LB_LOOKUP(port, proto, LB_LOOKUP_VIP);
	__u32 place = lookup_place(addr, what), zero = 0, edition, service;
	struct lb_lookup *at = bpf_map_lookup_elem(lb_lookups, &place);
	struct lb_edition *now = bpf_map_lookup_elem(lb_editions, &zero);
	__u32 *found;

	if (!at || !now)
		return 0;
	if (is_kept(at, now, addr, what))
		return at->service;
	/* As it is before the lookup: what changes meanwhile makes this one old. */
	edition = now->number;
	found = vip_entry(addr, port, proto, now->has);
	service = found ? *found : 0;
	keep(at, edition, addr, what, service, 0);
	return service;
}

/* Which backend of a translating service has this socket (port 0: a range of them); service 0 = none. */
static __always_inline struct lb_nat_back find_nat_back(const __u32 *addr, __u16 port, __u8 proto)
{
	__u32 what = LB_LOOKUP(port, proto, LB_LOOKUP_NAT_BACK);
	__u32 place = lookup_place(addr, what), zero = 0, edition;
	struct lb_lookup *at = bpf_map_lookup_elem(lb_lookups, &place);
	struct lb_edition *now = bpf_map_lookup_elem(lb_editions, &zero);
	struct lb_endpoint from = { .port = port, .proto = proto };
	struct lb_nat_back none = {}, *found;

	if (!at || !now || !(now->has & LB_HAS_NAT_BACK))
		return none;
	if (is_kept(at, now, addr, what)) {
		none.service = at->service;
		none.backend = at->backend;
		return none;
	}
	edition = now->number;
	__builtin_memcpy(from.addr, addr, sizeof(from.addr));
	found = bpf_map_lookup_elem(lb_nat_back_map, &from);
	if (!found) { /* a server of a range of ports */
		from.port = 0;
		found = bpf_map_lookup_elem(lb_nat_back_map, &from);
	}
	if (found)
		none = *found;
	keep(at, edition, addr, what, none.service, none.backend);
	return none;
}

#endif
