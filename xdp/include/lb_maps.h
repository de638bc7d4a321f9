/* SPDX-License-Identifier: GPL-2.0-only */
/* Maps are made, pinned and adopted by lb/datapath/maps.py, which hands their file descriptors to
 * the compiler as LB_FD_*: BCC's own table macros are rewritten in the main file only, not in
 * headers, and know no devmap_hash. */
#ifndef LB_MAPS_H
#define LB_MAPS_H

#define LB_MAP(fd) ((void *)bpf_pseudo_fd(1 /* BPF_PSEUDO_MAP_FD */, fd))

#define lb_vips LB_MAP(LB_FD_VIPS)                   /* hash: lb_endpoint -> u32 service */
#define lb_ranges LB_MAP(LB_FD_RANGES)               /* LPM trie: lb_range -> u32 service */
#define lb_editions LB_MAP(LB_FD_EDITIONS)           /* array: one lb_edition, of vips, ranges and nat_back */
#define lb_lookups LB_MAP(LB_FD_LOOKUPS)             /* per-CPU array: lb_lookup, at lookup_place() */
#define lb_services LB_MAP(LB_FD_SERVICES)           /* array: lb_service */
#define lb_rules LB_MAP(LB_FD_RULES)                 /* LPM trie: lb_rule_key -> lb_rule */
#define lb_tables LB_MAP(LB_FD_TABLES)               /* array of maps: 2 * service -> array[1] of lb_table; + 1: its past */
#define lb_backends LB_MAP(LB_FD_BACKENDS)           /* array: lb_backend */
#define lb_conntrack LB_MAP(LB_FD_CONNTRACK)         /* LRU hash: lb_flow_key -> lb_flow */
#define lb_embryonic LB_MAP(LB_FD_EMBRYONIC)         /* the same: flows of which only the begin was seen */
#define lb_senders LB_MAP(LB_FD_SENDERS)             /* LRU hash: lb_sender -> lb_place */
#define lb_nat_back_map LB_MAP(LB_FD_NAT_BACK)       /* hash: lb_endpoint -> lb_nat_back */
#define lb_bindings LB_MAP(LB_FD_BINDINGS)           /* hash: lb_flow_key -> lb_binding */
#define lb_translations LB_MAP(LB_FD_TRANSLATIONS)   /* hash: lb_translated -> lb_client */
#define lb_quic_map LB_MAP(LB_FD_QUIC)               /* hash: lb_quic_key -> u32 backend */
#define lb_fragments LB_MAP(LB_FD_FRAGMENTS)         /* LRU hash: lb_fragment_key -> lb_fragment */
#define lb_probed LB_MAP(LB_FD_PROBED)               /* array: backend -> u32 service, if checked via its VIP */
#define lb_probes LB_MAP(LB_FD_PROBES)               /* LRU hash: lb_probe_key -> lb_probe */
#define lb_links LB_MAP(LB_FD_LINKS)                 /* array: lb_link, at ifindex % LB_LINKS */
#define lb_egress LB_MAP(LB_FD_EGRESS)               /* devmap hash: ifindex -> ifindex */
#define lb_scratch LB_MAP(LB_FD_SCRATCH)             /* per-CPU array: one struct lb_packet */
#define lb_allowance LB_MAP(LB_FD_ALLOWANCE)         /* per-CPU array: enum lb_error -> u64, up to when it is spent */
#define lb_outcomes LB_MAP(LB_FD_OUTCOMES)           /* per-CPU array: lb_counter */
#define lb_service_stats LB_MAP(LB_FD_SERVICE_STATS) /* per-CPU array: lb_stats */
#define lb_backend_owners LB_MAP(LB_FD_BACKEND_OWNERS) /* array: lb_owner */
#define lb_watched_map LB_MAP(LB_FD_WATCHED)         /* LRU hash: lb_flow_key -> lb_watched */
#define lb_totals_map LB_MAP(LB_FD_TOTALS)           /* hash: u64 owner of a backend -> lb_totals */
#define lb_mirrored_map LB_MAP(LB_FD_MIRRORED)       /* LRU hash: lb_flow_key -> lb_mirrored */
#define lb_mirror_stats_map LB_MAP(LB_FD_MIRROR_STATS) /* per-CPU array: service -> lb_mirror_stats */
#define lb_backend_stats LB_MAP(LB_FD_BACKEND_STATS) /* per-CPU array: lb_stats */

#endif
