// SPDX-License-Identifier: GPL-2.0-only
/* Programs for the suites `packet` and `live`. BPF_PROG_TEST_RUN hands a program, from its second run on, the packet
 * that it changed itself; so each of these first writes the frame anew from a template and the flow
 * from a table, then calls what is measured inline, and undoes any adjust_head.
 *
 * bench_empty restores and returns: the floor of the measurement. bench_swap restores, parses, swaps
 * the MAC addresses and returns XDP_TX: the floor of any forwarding. bench_lb is the balancer itself,
 * whatever xdp/lb.c includes. bench/packet.py mirrors the structs. */
#define lb static __always_inline balance
#include "lb.c"
#undef lb

#define BENCH_WORDS 10 /* of 8 bytes: Ethernet, IPv6 and TCP headers fit */
#define BENCH_FLOWS (1u << 20)
#define BENCH_L4_IPV4 (sizeof(struct ethhdr) + sizeof(struct iphdr))
#define BENCH_L4_IPV6 (sizeof(struct ethhdr) + sizeof(struct ipv6hdr))

struct bench_run {
	__u32 next;  /* flow of the next packet */
	__u32 flows; /* how many are in use */
	__u32 ipv6;
	__u32 ports; /* write the source port, too */
	__u32 spread; /* and the lower half of the destination (IPv4) */
	__u32 pad;
	__u64 verdicts[8];
	__u64 frame[BENCH_WORDS];
};

struct bench_flow {
	__u32 addr; /* source address, or its last 32 bits */
	__u16 port;
	__u16 to; /* lower half of the destination */
};

struct bench_flows {
	struct bench_flow flow[BENCH_FLOWS];
};

#define bench_run_map LB_MAP(LB_FD_BENCH_RUNS)   /* array[1] of bench_run */
#define bench_flow_map LB_MAP(LB_FD_BENCH_FLOWS) /* array[1] of bench_flows */
#define bench_sunk_map LB_MAP(LB_FD_BENCH_SUNK)  /* array[1] of u64: frames that came to a sink */

static __always_inline struct bench_run *restore(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct bench_run *run = bpf_map_lookup_elem(bench_run_map, &zero);
	struct bench_flows *flows = bpf_map_lookup_elem(bench_flow_map, &zero);
	void *data = (void *)(long)ctx->data;
	__u64 *word = data;
	struct bench_flow *flow;
	__u32 at;

	if (!run || !flows || (void *)(word + BENCH_WORDS) > (void *)(long)ctx->data_end)
		return NULL;
#pragma unroll
	for (int i = 0; i < BENCH_WORDS; i++)
		word[i] = run->frame[i];
	at = run->next;
	run->next = at + 1 < run->flows ? at + 1 : 0;
	flow = &flows->flow[at & (BENCH_FLOWS - 1)];
	if (run->ipv6) {
		((struct ipv6hdr *)(data + sizeof(struct ethhdr)))->saddr.in6_u.u6_addr32[3] = flow->addr;
		if (run->ports)
			*(__u16 *)(data + BENCH_L4_IPV6) = flow->port;
	} else {
		((struct iphdr *)(data + sizeof(struct ethhdr)))->saddr = flow->addr;
		if (run->ports)
			*(__u16 *)(data + BENCH_L4_IPV4) = flow->port;
		if (run->spread)
			*(__u16 *)(data + BENCH_L4_IPV4 - sizeof(__u16)) = flow->to;
	}
	return run;
}

static __always_inline int finish(struct bench_run *run, int verdict)
{
	run->verdicts[verdict & 7]++;
	return verdict;
}

int bench_empty(struct xdp_md *ctx)
{
	struct bench_run *run = restore(ctx);

	return run ? finish(run, XDP_PASS) : XDP_ABORTED;
}

int bench_swap(struct xdp_md *ctx)
{
	struct bench_run *run = restore(ctx);
	struct lb_packet p = {};
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];

	if (!run)
		return XDP_ABORTED;
	p.ifindex = ctx->ingress_ifindex;
	p.bytes = ctx_bytes(ctx);
	if (parse_packet(ctx_data(ctx), ctx_data_end(ctx), &p) != LB_PARSED)
		return finish(run, XDP_PASS);
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return XDP_ABORTED;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return finish(run, XDP_TX);
}

int bench_lb(struct xdp_md *ctx)
{
	struct bench_run *run = restore(ctx);
	__u32 before = ctx_bytes(ctx), after;
	int verdict;

	if (!run)
		return XDP_ABORTED;
	verdict = balance(ctx);
	after = ctx_bytes(ctx);
	/* Keeps LLVM from adding `before` to a packet pointer, which the verifier refuses. */
	asm volatile("" : "+r"(after));
	if (after != before)
		bpf_xdp_adjust_head(ctx, (int)after - (int)before);
	return finish(run, verdict);
}

/* For suite `live`, on frames that travel: the generator, what is measured on the other end of its link, and the
 * sinks behind that. */

/* The kernel's own forwarding checks the header's sum; the source address in it changes from frame to frame. */
static __always_inline void write_header_sum(void *data)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);
	const __u32 *word = (void *)ip;

	ip->check = 0;
	/* Halves of it were just written. */
	asm volatile("" : "+r"(word) : : "memory");
	ip->check = csum_fold32(csum_fold64(csum_u32s(word, sizeof(*ip) / 4)));
}

int bench_generate(struct xdp_md *ctx)
{
	struct bench_run *run = restore(ctx);
	void *data = (void *)(long)ctx->data;

	if (!run || data + BENCH_WORDS * 8 > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (!run->ipv6)
		write_header_sum(data);
	return XDP_TX;
}

/* Ends a frame's way, and counts it. */
int bench_sink(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *sunk = bpf_map_lookup_elem(bench_sunk_map, &zero);

	if (sunk)
		__sync_fetch_and_add(sunk, 1);
	return XDP_DROP;
}

static __always_inline int swap_live(struct xdp_md *ctx, int verdict)
{
	struct lb_packet p = {};
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];

	p.ifindex = ctx->ingress_ifindex;
	p.bytes = ctx_bytes(ctx);
	if (parse_packet(ctx_data(ctx), ctx_data_end(ctx), &p) != LB_PARSED)
		return XDP_PASS;
	eth = ctx_data(ctx);
	if ((void *)(eth + 1) > ctx_data_end(ctx))
		return XDP_ABORTED;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return verdict;
}

int bench_live_tx(struct xdp_md *ctx)
{
	return swap_live(ctx, XDP_TX);
}

int bench_live_redirect(struct xdp_md *ctx)
{
	int verdict = swap_live(ctx, XDP_REDIRECT);

	return verdict == XDP_REDIRECT ? bpf_redirect_map(lb_egress, BENCH_OTHER, 0) : verdict;
}

int bench_live_lb(struct xdp_md *ctx)
{
	return balance(ctx);
}
