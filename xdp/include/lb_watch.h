/* SPDX-License-Identifier: GPL-2.0-only */
/* Watching the TCP connections of services that are observed, from whichever side packets are seen: what became
 * of them, and how long it took, is counted for each backend (struct lb_totals). It changes no packet. The
 * nodes' programs and the backends' (tc/watch.c) share it; docs/howto/observe.md says what it can't see.
 *
 * A connection is noted at its SYN, so one that is older than the observation stays unknown. What is overdue
 * is for user space to find, by `since` (lb/datapath/watch.py). Two CPUs may have packets of one connection
 * at the same time: then one of two events may be missed, and no more. */
#ifndef LB_WATCH_H
#define LB_WATCH_H

struct lb_segment {
	__u32 seq;
	__u32 ack;
	__u32 bytes; /* of payload */
	__u32 flags; /* LB_TCP_* */
};

/* RFC 9293, 3.1: of the 14th byte. */
#define LB_TCP_FIN 0x01
#define LB_TCP_SYN 0x02
#define LB_TCP_RST 0x04
#define LB_TCP_ACK 0x10

/* 0 = done */
static __always_inline int read_segment(lb_ctx *ctx, const struct lb_packet *p, struct lb_segment *seg)
{
	struct tcphdr *tcp = ctx_data(ctx) + at_l4(p);
	__u32 end = p->l3 + p->l3_bytes, begin = p->l4 + p->l4_bytes;

	if ((void *)(tcp + 1) > ctx_data_end(ctx))
		return -1;
	seg->seq = lb_ntohl(tcp->seq);
	seg->ack = lb_ntohl(tcp->ack_seq);
	seg->flags = ((__u8 *)tcp)[13];
	seg->bytes = end > begin ? end - begin : 0;
	return 0;
}

/* Is a sequence number after another (RFC 9293, 3.4)? */
static __always_inline int is_after(__u32 seq, __u32 other)
{
	return (__s32)(seq - other) > 0;
}

static __always_inline void count_event(struct lb_totals *totals, __u32 event)
{
	if (event < LB_EVENTS)
		__sync_fetch_and_add(&totals->event[event], 1);
}

/* "HTTP/1.1 200": the class of a response's status (RFC 9112, 4). */
static __always_inline void count_status(lb_ctx *ctx, const struct lb_packet *p, struct lb_totals *totals)
{
	__u8 *line = ctx_data(ctx) + at_l4(p) + (p->l4_bytes & 0x3c);
	__u64 class; /* the register as it is: Linux 5.10's verifier bounds no copy by the check of another */

	lb_keep(line);
	if (line + 10 > (__u8 *)ctx_data_end(ctx))
		return;
	if ((line[0] ^ 'H') | (line[1] ^ 'T') | (line[2] ^ 'T') | (line[3] ^ 'P') | (line[4] ^ '/') |
	    (line[5] ^ '1') | (line[6] ^ '.') | (line[8] ^ ' '))
		return;
	class = (__u64)line[9] - '1';
	lb_keep(class);
	if (class < LB_EVENT_HTTP_5XX - LB_EVENT_HTTP_1XX + 1)
		count_event(totals, LB_EVENT_HTTP_1XX + class);
}

static __always_inline int is_watchable(const struct lb_packet *p)
{
	return p->proto == IPPROTO_TCP && !p->quoted && !p->later;
}

static __always_inline void open_watched(const struct lb_flow_key *key, __u64 owner, __u32 seq, __u64 now)
{
	struct lb_watched fresh = { .owner = owner, .since = now, .client_next = seq + 1 };
	struct lb_totals *totals = bpf_map_lookup_elem(lb_totals_map, &owner);

	if (!totals)
		return;
	count_event(totals, LB_EVENT_OPENED);
	bpf_map_update_elem(lb_watched_map, (void *)key, &fresh, BPF_ANY);
}

/* What awaited an answer has it. */
static __always_inline void answered(struct lb_watched *w, struct lb_totals *totals, __u64 now)
{
	w->stage = LB_WATCH_OPEN;
	count_time(totals->first_byte, w->since, now);
}

/* Does this segment say nothing but what was acknowledged? */
static __always_inline int is_bare(const struct lb_segment *seg)
{
	return !seg->bytes && !(seg->flags & (LB_TCP_SYN | LB_TCP_FIN | LB_TCP_RST));
}

/* Where no answers are seen, the client's acknowledgements tell of them. One that advances by one byte may be
 * of a FIN: no answer. */
static __always_inline void infer_answer(struct lb_watched *w, struct lb_totals *totals,
					 const struct lb_segment *seg, __u64 now)
{
	if (w->stage == LB_WATCH_OPENING) {
		w->stage = LB_WATCH_OPEN;
		count_event(totals, LB_EVENT_ESTABLISHED);
		count_time(totals->handshake, w->since, now);
	} else if (w->stage == LB_WATCH_ASKED && is_after(seg->ack, w->server_next + 1)) {
		answered(w, totals, now);
	}
	if (w->stage == LB_WATCH_OPEN)
		w->server_next = seg->ack;
}

/* A packet of the client's. `owner`: of the backend that it goes to; `one_way`: answers don't come by here. */
static __always_inline void watch_client(lb_ctx *ctx, const struct lb_packet *p,
					 const struct lb_flow_key *key, __u64 owner, int one_way)
{
	struct lb_segment seg;
	struct lb_totals *totals;
	struct lb_watched *w;
	__u64 now;

	if (read_segment(ctx, p, &seg) || (!one_way && is_bare(&seg)))
		return;
	w = bpf_map_lookup_elem(lb_watched_map, (void *)key);
	if (one_way && w && w->stage == LB_WATCH_OPEN && is_bare(&seg)) { /* of the rest of an answer */
		w->server_next = seg.ack;
		return;
	}
	now = bpf_ktime_get_ns();
	if (p->begins && (!w || w->owner != owner || w->client_next != seg.seq + 1)) {
		open_watched(key, owner, seg.seq, now);
		return;
	}
	if (!w)
		return;
	totals = bpf_map_lookup_elem(lb_totals_map, &w->owner);
	if (!totals)
		return;
	if (p->begins) {
		count_event(totals, LB_EVENT_SYN_RETRANSMISSIONS);
		return;
	}
	if (seg.flags & LB_TCP_RST) {
		count_event(totals, LB_EVENT_RESETS_BY_CLIENT);
		bpf_map_delete_elem(lb_watched_map, (void *)key);
		return;
	}
	if (one_way && seg.flags & LB_TCP_ACK)
		infer_answer(w, totals, &seg, now);
	if (seg.bytes && w->stage != LB_WATCH_OPENING) {
		if (!is_after(seg.seq + seg.bytes, w->client_next)) {
			count_event(totals, LB_EVENT_RETRANSMITS_BY_CLIENT);
		} else {
			w->client_next = seg.seq + seg.bytes;
			w->since = now; /* of what a request consists of, the last counts */
			if (w->stage == LB_WATCH_OPEN)
				count_event(totals, LB_EVENT_REQUESTS);
			w->stage = LB_WATCH_ASKED;
		}
	}
	if (seg.flags & LB_TCP_FIN) {
		if (w->ended & LB_WATCH_SERVER)
			bpf_map_delete_elem(lb_watched_map, (void *)key);
		else
			w->ended |= LB_WATCH_CLIENT;
	}
}

/* A packet of the server's. A server that closes without having answered doesn't serve; one that takes longer
 * than `patience` (ns) to do so was overdue before. */
static __always_inline void watch_server(lb_ctx *ctx, const struct lb_packet *p,
					 const struct lb_flow_key *key, __u64 patience)
{
	struct lb_segment seg;
	struct lb_totals *totals;
	struct lb_watched *w;
	__u64 now;

	if (read_segment(ctx, p, &seg) || is_bare(&seg))
		return;
	w = bpf_map_lookup_elem(lb_watched_map, (void *)key);
	if (!w)
		return;
	if (w->stage == LB_WATCH_OPEN && !(seg.flags & (LB_TCP_SYN | LB_TCP_FIN | LB_TCP_RST)) &&
	    is_after(seg.seq + seg.bytes, w->server_next)) { /* the rest of an answer */
		w->server_next = seg.seq + seg.bytes;
		return;
	}
	now = bpf_ktime_get_ns();
	totals = bpf_map_lookup_elem(lb_totals_map, &w->owner);
	if (!totals)
		return;
	if (seg.flags & LB_TCP_RST) {
		count_event(totals, w->stage == LB_WATCH_OPENING ? LB_EVENT_REFUSED :
								   LB_EVENT_RESETS_BY_SERVER);
		bpf_map_delete_elem(lb_watched_map, (void *)key);
		return;
	}
	if (seg.flags & LB_TCP_SYN) {
		if (w->stage == LB_WATCH_OPENING) {
			w->stage = LB_WATCH_OPEN;
			w->server_next = seg.seq + 1;
			count_event(totals, LB_EVENT_ESTABLISHED);
			count_time(totals->handshake, w->since, now);
		}
		return;
	}
	if (w->stage == LB_WATCH_OPENING)
		return;
	if (seg.bytes) {
		if (!is_after(seg.seq + seg.bytes, w->server_next)) {
			count_event(totals, LB_EVENT_RETRANSMITS_BY_SERVER);
		} else {
			w->server_next = seg.seq + seg.bytes;
			if (w->stage == LB_WATCH_ASKED) {
				answered(w, totals, now);
				count_status(ctx, p, totals);
			}
		}
	}
	if (seg.flags & LB_TCP_FIN) {
		if (w->stage == LB_WATCH_ASKED && now - w->since < patience)
			count_event(totals, LB_EVENT_UNSERVED);
		w->stage = LB_WATCH_OPEN;
		if (w->ended & LB_WATCH_CLIENT)
			bpf_map_delete_elem(lb_watched_map, (void *)key);
		else
			w->ended |= LB_WATCH_SERVER;
	}
}

#endif
