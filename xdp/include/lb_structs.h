/* SPDX-License-Identifier: GPL-2.0-only */
/* What kernel and user space share. Addresses are 16 bytes in network order, IPv4 mapped into
 * ::ffff:0:0/96 (RFC 4291, 2.5.5.2); ports are in network order; all else in host order.
 * Mirrored in lb/datapath/structs.py; a test proves both sides equal. */
#ifndef LB_STRUCTS_H
#define LB_STRUCTS_H

/* Key of the vips and nat_back maps. In vips, an entry with port 0 and an ICMP protocol says
 * "this address is a VIP". */
struct lb_endpoint {
	__u32 addr[4];
	__u16 port;
	__u8 proto; /* IPPROTO_* */
	__u8 pad;
};

/* Key of the ranges map, a trie of prefixes: a range of ports is cut into prefixes of the port. */
struct lb_range {
	__u32 prefixlen; /* in bits, of what follows: LB_RANGE_BITS without the port's */
	__u32 addr[4];
	__u8 proto;
	__u8 pad;
	__u16 port;
};

struct lb_service {
	__u64 seed[2]; /* keys the flow hash; the same on every node */
	__u32 vip[4];
	__u16 port; /* 0 = a range of them */
	__u8 proto;
	__u8 mode;       /* enum lb_mode */
	__u8 affinity;   /* enum lb_affinity */
	__u8 tracking;   /* enum lb_tracking */
	__u8 no_backend; /* enum lb_no_backend */
	__u8 has_rules;  /* in the rules map */
	__u8 quic_bytes;  /* length of the server ID in connection IDs, at most 8; 0 = not steered by them */
	__u8 quic_config; /* their first three bits */
	__u16 patience;   /* observed: seconds that an answer may take; 0 = not observed */
	__u32 mirror_table; /* that places the copies of its flows (tc/mirror.h); 0 = not mirrored */
	__u32 mirror_limit; /* of LB_SLOTS flows so many are copied */
	__u8 pad[4];
};

/* Key of the rules map, a trie of client prefixes for each service. */
struct lb_rule_key {
	__u32 prefixlen; /* in bits, of what follows: 32 for the service, 96 more for IPv4 */
	__u32 service;
	__u32 client[4];
};

/* Which table these clients' flows are placed by. While the window is open (closes: as in lb_table; 0 = the
 * rule changed long ago) older flows are where the table `before` has them. */
struct lb_rule {
	__u32 table;
	__u32 before;
	__u64 closes;
};

/* One cache line. */
struct lb_backend {
	__u32 addr[4];
	__u32 source[4];  /* outer source address of tunnels; zero otherwise */
	__u32 ifindex;    /* egress; 0 = unresolved */
	__u32 generation; /* counts allocations of this id: a flow of an earlier owner never matches */
	__u8 dmac[6];
	__u8 smac[6];
	__u16 port; /* 0 = the VIP's port; in gue, of the tunnel */
	__u16 mtu;  /* of the way there, in bytes of an IP packet; 0 = not known */
	__u8 flags; /* LB_BACKEND_* */
	__u8 pad[7];
};

/* Who an id was allocated to: cold, so kept out of the structs above. */
struct lb_owner {
	__u64 uid; /* BLAKE2b-64 of the object's key in the store; 0 = free */
};

/* A service's slots. If some moved lately there is a second one of these, their past: in it a slot is
 * the id of the backend that it had before. It means something only where the first says
 * LB_SLOT_STIRRED. It is put in place before the first, so it may be of a newer table: a slot whose window is
 * open has the same origin there. */
struct lb_table {
	__u64 closes[LB_EPOCHS]; /* when windows close: CLOCK_MONOTONIC in ns (bpf_ktime_get_ns) */
	__u32 slot[LB_SLOTS];    /* backend id, in bits 24..30 the epoch, and LB_SLOT_STIRRED */
};

struct lb_flow_key {
	__u32 client[4];
	__u32 service;
	__u16 client_port;
	__u16 vip_port;
};

struct lb_flow {
	__u32 backend;
	__u32 generation; /* of the backend, when the flow was placed */
	__u32 seen;       /* low 32 bits of jiffies, at about one update a second */
};

/* Key of the senders map. */
struct lb_sender {
	__u32 addr[4];
};

/* Where a client's frames came from. */
struct lb_place {
	__u32 ifindex;
	__u8 mac[6];
	__u8 pad[2];
};

struct lb_nat_back {
	__u32 service;
	__u32 backend;
};

/* What is in the maps that are looked up by address and port. lbd counts it up whenever it changed one. */
struct lb_edition {
	__u32 number;
	__u32 has; /* LB_HAS_*: which of them aren't empty */
};

/* What was found there lately, of that edition. */
struct lb_lookup {
	__u32 addr[4];
	__u32 what; /* LB_LOOKUP() */
	__u32 edition;
	__u32 service; /* 0 = nothing */
	__u32 backend;
};

/* Mode fullnat: what a flow (lb_flow_key) is bound to. */
struct lb_binding {
	__u32 source[4]; /* ours: what the backend takes for the client */
	__u32 backend;
	__u32 generation; /* of the backend */
	__u32 seen;       /* as in lb_flow: of the client's packets */
	__u16 port;       /* ours */
	__u8 state;       /* LB_NAT_*: seen of the client */
	__u8 pad;
};

/* Mode fullnat: key of the way back, by the addresses of a packet that the backend sends. */
struct lb_translated {
	__u32 backend[4];
	__u32 source[4];
	__u16 backend_port;
	__u16 port;
	__u8 proto;
	__u8 pad[3];
};

struct lb_client {
	struct lb_flow_key flow;
	__u32 backend;
	__u32 seen;  /* of the backend's packets */
	__u8 state;  /* LB_NAT_*: seen of the backend */
	__u8 pad[3];
};

/* Key of the quic map: a server ID, as a number, of a service. */
struct lb_quic_key {
	__u64 server_id;
	__u32 service;
	__u32 pad;
};

/* Key of the fragments map: what the pieces of one datagram have in common (RFC 791, 3.2; RFC 8200, 4.5). */
struct lb_fragment_key {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;   /* as it stands in the header */
	__u8 proto; /* 0 in IPv6 */
	__u8 pad[3];
};

/* Where the first of them went. */
struct lb_fragment {
	__u32 addr[4]; /* of a backend's answer, the client; else in fullnat our source, as in lb_binding */
	__u32 service;
	__u32 backend;
	__u32 generation;
	__u8 mode;
	__u8 is_answer;
	__u8 pad[2];
	__u64 until; /* as in lb_table.closes */
};

/* Key of the probes map: a health check's connection as it is on the wire, seen from here. */
struct lb_probe_key {
	__u32 peer[4];
	__u32 own[4];
	__u16 peer_port;
	__u16 own_port;
	__u8 proto;
	__u8 pad[3];
};

/* The same as its socket knows it. */
struct lb_probe {
	__u32 peer[4]; /* the backend's address */
	__u32 own[4];
	__u16 peer_port;
	__u8 pad[2];
};

struct lb_link {
	__u32 ifindex;
	__u32 master; /* the bond that it is a port of, which is what we are attached to; else itself */
	__u8 mac[6];
	__u8 pad[2];
};

/* A connection to a service that is observed; its key is an lb_flow_key. */
struct lb_watched {
	__u64 owner; /* of its backend: as in lb_owner, so that an id's next owner isn't taken for it */
	__u64 since; /* when its SYN came, or what now awaits an answer: CLOCK_MONOTONIC in ns */
	__u32 client_next; /* what follows the last that was seen of the client's sequence numbers */
	__u32 server_next;
	__u8 stage; /* enum lb_watch_stage */
	__u8 ended; /* enum lb_watch_end */
	__u8 pad[6];
};

/* What was seen of a backend's connections. The key is its owner, so totals go on where a backend comes back
 * under its name. */
struct lb_totals {
	__u64 service; /* uid of its key in the store */
	__u64 epoch;   /* the same for all of a service's: they began anew together */
	__u64 event[LB_EVENTS];
	__u64 handshake[LB_TIME_BUCKETS];
	__u64 first_byte[LB_TIME_BUCKETS];
};

/* What lbd found to be overdue, by a backend's owner; under owner 0 up to when (as in watched.since) it has
 * looked. Only lbd writes it. */
struct lb_overdue {
	__u64 unanswered;
	__u64 unserved;
};

/* A flow that is copied; its key is an lb_flow_key. */
struct lb_mirrored {
	__u32 backend;      /* of the copies */
	__u32 client_first; /* sequence number of the client's SYN */
	__u32 client_next;  /* what follows the last that was copied */
	__u32 server_next;  /* what follows the last that this backend has sent */
	__u16 time[2];      /* that it told last (RFC 7323), in network order */
	__u8 stage;         /* enum lb_mirror_stage */
	__u8 pad[3];
};

/* What was copied of a service's traffic. */
struct lb_mirror_stats {
	__u64 copies; /* packets */
	__u64 bytes;
	__u64 flows;    /* TCP connections of which copies were sent */
	__u64 given_up; /* of these, those whose copies have a hole; and those, and datagrams, that nobody could take */
	__u64 answers;  /* packets of the copies' servers, which ended here */
};

/* At a backend that observes itself (tc/watch.c), by a VIP that it serves. */
struct lb_watch_vip {
	__u64 owner;   /* itself: as in lb_owner */
	__u32 service; /* a number that is its own, for the key of watched connections */
	__u32 patience; /* as in lb_service */
};

struct lb_counter {
	__u64 packets;
	__u64 bytes;
};

/* Per service and per backend. Bytes are of the whole frame as it came in. */
struct lb_stats {
	__u64 packets;
	__u64 bytes;
	__u64 flows; /* new flows: SYNs and QUIC Initials placed; for tracking always, also other UDP */
	__u64 reply_packets;
	__u64 reply_bytes;
};

#endif
