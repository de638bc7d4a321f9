// SPDX-License-Identifier: GPL-2.0-only
/* Programs for suite `packet`. BPF_PROG_TEST_RUN hands a program, from its second run on, the packet
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
	__u64 verdicts[8];
	__u64 frame[BENCH_WORDS];
};

struct bench_flow {
	__u32 addr; /* source address, or its last 32 bits */
	__u16 port;
	__u16 pad;
};

struct bench_flows {
	struct bench_flow flow[BENCH_FLOWS];
};

#define bench_run_map LB_MAP(LB_FD_BENCH_RUNS)   /* array[1] of bench_run */
#define bench_flow_map LB_MAP(LB_FD_BENCH_FLOWS) /* array[1] of bench_flows */

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
