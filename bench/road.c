// SPDX-License-Identifier: GPL-2.0-only
/* For suite `requests`: the least that a program can do that stands in a connection's path, both ways. It knows the one
 * client and the one server, and how to reach them, when it is compiled. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>

#define ROAD_EGRESS ((void *)bpf_pseudo_fd(1 /* BPF_PSEUDO_MAP_FD */, ROAD_FD_EGRESS))

int bench_road(struct xdp_md *ctx)
{
	const __u8 to_server[2 * ETH_ALEN] = { ROAD_TO_SERVER }, to_client[2 * ETH_ALEN] = { ROAD_TO_CLIENT };
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end || eth->h_proto != __constant_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->saddr == ROAD_CLIENT && ip->daddr == ROAD_SERVER) {
		__builtin_memcpy(eth, to_server, sizeof(to_server));
		return bpf_redirect_map(ROAD_EGRESS, ROAD_BACK, 0);
	}
	if (ip->saddr == ROAD_SERVER && ip->daddr == ROAD_CLIENT) {
		__builtin_memcpy(eth, to_client, sizeof(to_client));
		return bpf_redirect_map(ROAD_EGRESS, ROAD_FRONT, 0);
	}
	return XDP_PASS;
}
