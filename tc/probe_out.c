// SPDX-License-Identifier: GPL-2.0-only
/* Health checks `via: vip`, on their way out (clsact egress): see probe.h.
 *
 * In dsr and the tunnels a check's packet is addressed to the VIP, and reaches the server as a client's
 * does. In nat it comes from an address that no server has on a link of its own: so the answer only comes
 * back if the server's default route leads through this node. In fullnat it comes from the address that
 * clients' packets come from. */
#include "probe.h"

/* Where the answer will come from and go to, and what has to be made of it then. */
static __always_inline int note_probe(const struct lb_packet *p, const __u32 *peer, __u16 peer_port,
				      const __u32 *own)
{
	struct lb_probe_key key = {};
	struct lb_probe probe = { .peer_port = p->dport };

	probe_key(&key, peer, peer_port, own, p->sport, p->proto);
	__builtin_memcpy(probe.peer, p->dst, sizeof(probe.peer));
	__builtin_memcpy(probe.own, p->src, sizeof(probe.own));
	return bpf_map_update_elem(lb_probes, &key, &probe, BPF_ANY);
}

int probe_out(struct __sk_buff *ctx)
{
	struct lb_packet packet = {}, *p = &packet;
	__u32 id = ctx_read(ctx, mark) & ~LB_PROBE_MARK_MASK;
	__u32 ifindex = ctx_ifindex(ctx);
	struct lb_backend *backend;
	struct lb_service *svc;
	__u32 peer[4], own[4]; /* copies: a choice between pointers of two kinds is nothing for the verifier */
	struct ethhdr *eth;
	__u32 *service, more;
	__u16 port;

	if ((ctx_read(ctx, mark) & LB_PROBE_MARK_MASK) != LB_PROBE_MARK)
		return TC_ACT_UNSPEC;
	/* Whatever can't be sent as clients' packets are is not sent at all: a check that went straight to
	 * the server would say that all is well. */
	service = bpf_map_lookup_elem(lb_probed, &id);
	backend = bpf_map_lookup_elem(lb_backends, &id);
	if (!service || !*service || !backend || !(backend->flags & LB_BACKEND_RESOLVED))
		return TC_ACT_SHOT;
	svc = bpf_map_lookup_elem(lb_services, service);
	if (!svc || read_probe(ctx, p) || !is_same_address(p->dst, backend->addr))
		return TC_ACT_SHOT;
	__builtin_memcpy(peer, is_translated(svc) ? backend->addr : svc->vip, sizeof(peer));
	port = is_translated(svc) && backend->port ? backend->port : svc->port;
	__builtin_memcpy(own, p->src, sizeof(own));
	if (svc->mode == LB_MODE_FULLNAT) {
		__builtin_memcpy(own, backend->source, sizeof(own));
	} else if (svc->mode == LB_MODE_NAT) {
		own[0] = p->ipv6 ? lb_htonl(LB_PROBE_PREFIX6) : 0;
		own[1] = 0;
		own[2] = p->ipv6 ? 0 : lb_htonl(0xffff);
		own[3] = lb_htonl(LB_PROBE_SOURCE);
	}
	if (note_probe(p, peer, port, own) || nat_rewrite(ctx, p, 0, peer, port) ||
	    nat_rewrite(ctx, p, 1, own, 0))
		return TC_ACT_SHOT;
	__builtin_memcpy(p->dst, peer, sizeof(p->dst));
	__builtin_memcpy(p->src, own, sizeof(p->src));
	p->dport = port;
	more = overhead(svc, backend);
	lb_forget(more, p->bytes);
	if (more && tunnel_push(ctx, p, svc, backend, more))
		return TC_ACT_SHOT;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return TC_ACT_SHOT;
	__builtin_memcpy(eth->h_dest, backend->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, backend->smac, ETH_ALEN);
	ctx->mark = 0;
	return backend->ifindex == ifindex ? TC_ACT_OK : bpf_redirect(backend->ifindex, 0);
}
