/* SPDX-License-Identifier: GPL-2.0-only */
/* Datagrams that come in pieces: only the first has ports, and the others follow it. One that comes before
 * the first has nobody to follow. */
#ifndef LB_FRAGMENT_H
#define LB_FRAGMENT_H

static __always_inline void fragment_key(struct lb_fragment_key *key, const struct lb_packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->src, p->src, sizeof(key->src));
	__builtin_memcpy(key->dst, p->dst, sizeof(key->dst));
	key->id = p->fragment_id;
	key->proto = p->ipv6 ? 0 : p->proto;
}

/* p is the first piece of a datagram: where the others are to go. */
static __always_inline void lead_fragments(const struct lb_packet *p, const struct lb_service *svc,
					   __u32 service, __u32 id, const __u32 *addr, int is_answer)
{
	struct lb_backend *backend = bpf_map_lookup_elem(lb_backends, &id);
	struct lb_fragment first = {
		.service = service,
		.backend = id,
		.mode = svc->mode,
		.is_answer = is_answer,
	};
	struct lb_fragment_key key;

	if (!backend)
		return;
	fragment_key(&key, p);
	first.generation = backend->generation;
	first.until = bpf_ktime_get_ns() + LB_FRAGMENT_NS;
	__builtin_memcpy(first.addr, addr, sizeof(first.addr));
	bpf_map_update_elem(lb_fragments, &key, &first, BPF_ANY);
}

/* Fills in p->first, if the first piece came by lately and those that it concerned are still the same. */
static __always_inline int follow_first(struct lb_packet *p)
{
	struct lb_fragment_key key;
	struct lb_fragment *first;
	struct lb_backend *backend;
	struct lb_service *svc;
	__u32 id;

	fragment_key(&key, p);
	first = bpf_map_lookup_elem(lb_fragments, &key);
	if (!first || first->until <= bpf_ktime_get_ns())
		return 0;
	id = first->service;
	svc = bpf_map_lookup_elem(lb_services, &id);
	/* Removed since, or changed, or the id is another's. */
	if (!svc || !svc->proto || svc->mode != first->mode || is_mapped_ipv4(svc->vip) == p->ipv6)
		return 0;
	id = first->backend;
	backend = bpf_map_lookup_elem(lb_backends, &id);
	if (!backend || backend->generation != first->generation)
		return 0;
	p->first = *first;
	p->proto = svc->proto;
	return 1;
}

#endif
