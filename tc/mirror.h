/* SPDX-License-Identifier: GPL-2.0-only */
/* Mirrored traffic (docs/howto/mirror.md), what both directions share. A copy of what a client sends goes to a backend of
 * another pool, whose answers end here. On the way in (mirror_in.c, before the balancer) packets are copied, marked with
 * the backend's id, and given to its interface; there (mirror_out.c) the copy is made what that backend expects. So
 * the packet itself, which the balancer sees next, is never changed.
 *
 * The copy's server chooses sequence numbers of its own, and its answers differ in length. So its acknowledgements
 * can't be the client's: those are made here, as soon as it has sent something, and a copy that carries data says
 * that all that this server has sent so far has come. */
#ifndef LB_MIRROR_H
#define LB_MIRROR_H

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

/* Where Linux puts the timestamps option (RFC 7323): behind two NOPs, first of all; in a SYN-ACK behind the MSS. */
#define LB_TCP_TIMESTAMPS 0x080a /* kind, length */
#define LB_TCP_TIMESTAMPS_AT 22
#define LB_TCP_SYN_TIMESTAMPS_AT 26

struct lb_timestamps {
	__u16 kind;
	__u16 value[2]; /* halves: the option isn't aligned */
	__u16 echo[2];
};

/* The key of a copied flow: the client's side, as in conntrack. */
static __always_inline void mirrored_key(struct lb_flow_key *key, const __u32 *client, __u16 client_port,
					 __u32 service, __u16 vip_port)
{
	__builtin_memcpy(key->client, client, sizeof(key->client));
	key->service = service;
	key->client_port = client_port;
	key->vip_port = vip_port;
}

#endif
