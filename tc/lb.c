// SPDX-License-Identifier: GPL-2.0-only
/* The balancer at the tc hook (clsact ingress, direct action). */
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
#include "lb_core.h"

int lb(struct __sk_buff *ctx)
{
	return process_packet(ctx);
}
