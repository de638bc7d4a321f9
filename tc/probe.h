/* SPDX-License-Identifier: GPL-2.0-only */
/* Health checks `via: vip`, what both directions share. A check's socket is connected to its backend's own
 * address, and marked with the backend's id. On the way out (probe_out.c) its packets become what the data
 * path makes of a client's packets to the VIP; on the way in (probe_back.c) the answers become again what
 * the socket waits for. So the kernel needs no way to the VIP, which may be an address of this machine. */
#ifndef LB_PROBE_H
#define LB_PROBE_H

#include <uapi/linux/bpf.h>
#include "lb_consts.h"
#include "lb_structs.h"
#include "lb_maps.h"
#include "lb_csum.h"
#include "lb_parse.h"
#include "lb_hash.h"
#include "lb_links.h"
#include "lb_lookup.h"
#include "ctx.h"
#include "lb_send.h"
#include "lb_answer.h"
#include "lb_tunnel.h"
#include "lb_errors.h"
#include "lb_pick.h"
#include "lb_fragment.h"
#include "lb_quic.h"
#include "lb_fullnat.h"
#include "lb_histogram.h"
#include "lb_watch.h"
#include "lb_nat.h"

/* Reads a frame. 0 = a TCP segment or a whole datagram. */
static __always_inline int read_probe(lb_ctx *ctx, struct lb_packet *p)
{
	ctx_make_readable(ctx);
	p->bytes = ctx_bytes(ctx);
	if (parse_packet(ctx_data(ctx), ctx_data_end(ctx), p) != LB_PARSED || p->fragment)
		return -1;
	return p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP ? 0 : -1;
}

static __always_inline void probe_key(struct lb_probe_key *key, const __u32 *peer, __u16 peer_port,
				      const __u32 *own, __u16 own_port, __u8 proto)
{
	__builtin_memcpy(key->peer, peer, sizeof(key->peer));
	__builtin_memcpy(key->own, own, sizeof(key->own));
	key->peer_port = peer_port;
	key->own_port = own_port;
	key->proto = proto;
}

#endif
