/* SPDX-License-Identifier: GPL-2.0-only */
/* Sizes, limits and enumerations of the data path. Mirrored in lb/datapath/consts.py; a test
 * compiles this header and proves both sides equal. */
#ifndef LB_CONSTS_H
#define LB_CONSTS_H

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define lb_ntohs(x) ((__u16)__builtin_bswap16(x))
#define lb_ntohl(x) ((__u32)__builtin_bswap32(x))
#else
#define lb_ntohs(x) ((__u16)(x))
#define lb_ntohl(x) ((__u32)(x))
#endif
#define lb_htons(x) lb_ntohs(x)
#define lb_htonl(x) lb_ntohl(x)

/* Adds and takes away a number that the verifier doesn't know: it then forgets the value of x, and
 * doesn't walk all that follows once for each value that x may have. */
#define lb_forget(x, unknown)                                              \
	do {                                                               \
		__u64 lb_x = (x), lb_y = (unknown);                        \
		asm volatile("%0 += %1\n\t%0 -= %1" : "+r"(lb_x) : "r"(lb_y)); \
		(x) = lb_x;                                                \
	} while (0)

/* What is computed once stays so: LLVM would rather add up a pointer anew than keep it, and the verifier
 * takes the sum for another pointer, whose bounds nobody checked. */
#define lb_keep(x) asm volatile("" : "+r"(x))

/* LLVM likes to compute &ctx->data once and load through it, or to shift what it loaded; the verifier
 * allows neither. Inline assembly keeps the load in one piece. */
#define ctx_read(ctx, field)                                                                     \
	({                                                                                       \
		__u64 value_;                                                                    \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                            \
			     : "=r"(value_)                                                      \
			     : "r"(ctx), "i"(offsetof(lb_ctx, field)));                          \
		value_;                                                                          \
	})

#define LB_SLOTS 65536u /* slots in one service's table; a power of two so that picking is a mask */
#define LB_SLOT_MASK (LB_SLOTS - 1)
#define LB_SLOT_EMPTY 0u    /* backend id 0 is never allocated: an empty slot names it */
#define LB_SLOT_BACKEND 0x00ffffffu /* a slot's bits that are its backend's id */
#define LB_SLOT_STIRRED 0x80000000u /* it moved lately: the table's past has its origin */
#define LB_EPOCHS 128u      /* different times at which windows of one service may close */
#define LB_LINKS 4096u      /* attached interfaces, hashed by ifindex; collisions are refused at attach */

#define LB_VLAN_DEPTH 2     /* 802.1Q inside 802.1ad */
#define LB_IPV6_EXT_DEPTH 6 /* extension headers walked; a packet with more is left to the kernel */
#define LB_REPLY_TTL 64     /* TTL of packets that we originate (RFC 1700's default) */

#define LB_GUE_PORT 6080    /* UDP port of gue tunnels (IANA) */

/* The mark of a health check's socket that goes the way of clients' packets: this, and its backend's id. */
#define LB_PROBE_MARK 0x6c000000
#define LB_PROBE_MARK_MASK 0xff000000
/* Where it says it comes from in mode nat: 192.0.0.8 (RFC 7600's dummy address), or 100::c000:8 (RFC 6666).
 * Nobody has these on a link, so the answer comes by the server's default route, as those to clients do. */
#define LB_PROBE_SOURCE 0xc0000008
#define LB_PROBE_PREFIX6 0x01000000

/* The mark of a copy of mirrored traffic (tc/mirror.h), between the two programs: this, and its backend's id. */
#define LB_MIRROR_MARK 0x6d000000
#define LB_MIRROR_MARK_MASK 0xff000000
#define LB_MIRROR_SALT 0x6d6972726f72ULL /* "mirror": which flows are copied, and where they go, are two questions */

/* For how long the pieces of a datagram follow the first: as long as a receiver waits for the last of them
 * (RFC 8200, 4.5; RFC 1122, 3.3.2). */
#define LB_FRAGMENT_NS (60ULL * 1000000000)

/* ICMP errors of each kind that one CPU sends in a second. Far more than a node's clients cause, and few enough that
 * a flood from invented sources doesn't become a flood to them. */
#define LB_ERRORS_PER_SECOND 1000
/* Index of the allowance map. What fits is said from an allowance of its own: a flood to a service that has no
 * backends must not keep others from learning their path MTU. */
enum lb_error { LB_ERROR_UNREACH = 0, LB_ERROR_TOO_BIG = 1, LB_ERRORS = 2 };

/* What was seen of a translated connection, from either side: lb_binding.state, lb_client.state. OPENING is of the
 * client: it has sent nothing but what begins a flow. (Its opposite would be wrong of entries that another version of
 * lb made: their connections would count as never acknowledged.) */
enum lb_nat_state { LB_NAT_ANSWERED = 0x1, LB_NAT_FIN = 0x2, LB_NAT_RST = 0x4, LB_NAT_OPENING = 0x8 };
/* Of observed services: what happened, counted in lb_totals.event. In order of the pinned map: append only. */
enum lb_event {
	LB_EVENT_OPENED = 0,
	LB_EVENT_ESTABLISHED = 1,
	LB_EVENT_REFUSED = 2,
	LB_EVENT_SYN_RETRANSMISSIONS = 3,
	LB_EVENT_RESETS_BY_CLIENT = 4,
	LB_EVENT_RESETS_BY_SERVER = 5,
	LB_EVENT_RETRANSMITS_BY_CLIENT = 6,
	LB_EVENT_RETRANSMITS_BY_SERVER = 7,
	LB_EVENT_REQUESTS = 8,
	LB_EVENT_UNSERVED = 9, /* closed without an answer; those that are overdue lbd counts */
	LB_EVENT_HTTP_1XX = 10,
	LB_EVENT_HTTP_2XX = 11,
	LB_EVENT_HTTP_3XX = 12,
	LB_EVENT_HTTP_4XX = 13,
	LB_EVENT_HTTP_5XX = 14,
	LB_EVENTS = 16, /* room for more */
};

/* Histograms of times in us: lb/core/histogram.py */
#define LB_TIME_SUB_BITS 3
#define LB_TIME_BITS 27
#define LB_TIME_BUCKETS 200

/* watched.stage: an answer to the SYN is awaited; nothing is; an answer to data of the client is */
enum lb_watch_stage { LB_WATCH_OPENING = 0, LB_WATCH_OPEN = 1, LB_WATCH_ASKED = 2 };
/* watched.ended: who has sent a FIN */
enum lb_watch_end { LB_WATCH_CLIENT = 0x1, LB_WATCH_SERVER = 0x2 };

/* mirrored.stage: the SYN was copied; it was answered; the copies have a hole, and are given up */
enum lb_mirror_stage { LB_MIRROR_OPENING = 0, LB_MIRROR_OPEN = 1, LB_MIRROR_LOST = 2 };

/* service.mode */
enum lb_mode { LB_MODE_DSR = 0, LB_MODE_NAT = 1, LB_MODE_IPIP = 2, LB_MODE_GUE = 3, LB_MODE_FULLNAT = 4 };
/* service.affinity: what is hashed */
enum lb_affinity { LB_AFFINITY_FLOW = 0, LB_AFFINITY_CLIENT = 1 };
/* service.tracking: which flows get a conntrack entry */
enum lb_tracking { LB_TRACK_NEVER = 0, LB_TRACK_ALWAYS = 1, LB_TRACK_MOVING = 2 };
/* service.no_backend: what a client gets when no backend is usable */
enum lb_no_backend { LB_NO_BACKEND_REJECT = 0, LB_NO_BACKEND_DROP = 1 };

/* In the vips map, what an entry with port 0 and protocol ICMP says of its address. */
#define LB_RANGE_BITS 144

/* edition.has */
#define LB_HAS_RANGES 0x1
#define LB_HAS_NAT_BACK 0x2

#define LB_LOOKUPS 4096u /* that each CPU keeps: as many as lookup_place() tells apart */

#define LB_VIP_TCP 0x1
#define LB_VIP_UDP 0x2

/* backend.flags */
#define LB_BACKEND_USABLE 0x1   /* tracked flows may go on here (up, weight 0 or draining) */
#define LB_BACKEND_RESOLVED 0x2 /* ifindex and MACs are known */
#define LB_BACKEND_RESETS 0x4   /* not usable, and its established TCP flows are answered with a reset */
#define LB_BACKEND_MIRROR 0x8   /* in a pool that gets copies, and nothing else */

/* Every packet ends in exactly one outcome, and every drop names its reason.
 * Append only: the numbers are indexes of the pinned counter map. */
enum lb_outcome {
	LB_PASS_NOT_OURS = 0,      /* no service here: handed to the kernel untouched */
	LB_PASS_UNRESOLVED = 1,    /* nat, next hop unknown: the kernel routes it to the backend */
	LB_FORWARD_TX = 2,         /* sent back out of the interface that it came in by */
	LB_FORWARD_REDIRECT = 3,   /* sent out of another interface */
	LB_REPLY_REDIRECT = 4,     /* nat: a backend's answer, translated back and sent */
	LB_REPLY_PASS = 5,         /* nat: translated back, routed by the kernel */
	LB_ECHO_REPLY = 6,         /* ICMP echo to a VIP, answered here */
	LB_REJECT_RST = 7,         /* no usable backend: TCP RST sent */
	LB_REJECT_UNREACH = 8,     /* no usable backend: ICMP port unreachable sent */
	LB_DROP_NO_BACKEND = 9,    /* no usable backend, policy is drop (or nothing may be answered) */
	LB_DROP_MALFORMED = 10,    /* to a VIP, but truncated or inconsistent */
	LB_DROP_FRAGMENT = 11,     /* to a VIP, a fragment without ports */
	LB_DROP_TTL = 12,          /* TTL or hop limit used up */
	LB_DROP_NO_SPACE = 13,     /* the packet buffer could not be reshaped for an answer */
	LB_DROP_UNRESOLVED = 14,   /* next hop unknown, and the kernel could not route it */
	LB_REJECT_TOO_BIG = 15,    /* larger than the way to the backend takes: the client is told */
	LB_DROP_TOO_BIG = 16,      /* the same, and nothing may be answered */
	LB_REJECT_NAT_FULL = 17,   /* fullnat: no port was free for a new flow: refused as if by nobody */
	LB_DROP_NAT_FULL = 18,     /* the same, and policy is drop (or nothing may be answered) */
	LB_OUTCOMES = 19,
};

#endif
