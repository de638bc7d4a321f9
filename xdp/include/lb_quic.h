/* SPDX-License-Identifier: GPL-2.0-only */
/* QUIC by connection ID: a server writes its own ID into the connection IDs that it gives out, so that a client
 * whose address changes stays with it (draft-ietf-quic-load-balancers-21, unencrypted). */
#ifndef LB_QUIC_H
#define LB_QUIC_H

struct lb_quic_long {
	struct lb_quic head;
	__u8 cid_bytes;
};

/* What the plain form of such a connection ID begins with (section 3.1, 5.1): three bits that name the
 * configuration, five that a server may use, and its ID. */
struct lb_quic_cid {
	__u8 first;
	__u8 server[8];
} __attribute__((packed));

/* The backend whose ID stands in p's destination connection ID; LB_SLOT_EMPTY = none. A client chooses that of
 * its first packets (Initial, 0-RTT) by itself, so it means nothing there, and they go by their flow. */
static __always_inline __u32 quic_backend(lb_ctx *ctx, const struct lb_service *svc, __u32 service,
					  const struct lb_packet *p)
{
	struct lb_quic_key key = {};
	struct lb_quic_long *head;
	struct lb_quic_cid *cid;
	__u32 at = sizeof(__u8), version;
	__u32 *found;
	void *payload;

	if (!svc->quic_bytes || p->quoted || p->later)
		return LB_SLOT_EMPTY;
	payload = ctx_data(ctx) + at_l4(p) + sizeof(struct udphdr);
	head = payload;
	if ((void *)(head + 1) > ctx_data_end(ctx))
		return LB_SLOT_EMPTY;
	key.service = service;
	if (head->head.first & 0x80) { /* RFC 9000, 17.2 and RFC 9369, 3.2: a Handshake packet */
		version = quic_version(&head->head);
		if (!((head->head.first & 0xf0) == 0xe0 && version == LB_QUIC_V1) &&
		    !((head->head.first & 0xf0) == 0xf0 && version == LB_QUIC_V2))
			return LB_SLOT_EMPTY;
		if (head->cid_bytes < svc->quic_bytes + 1)
			return LB_SLOT_EMPTY;
		at = sizeof(*head);
	} else if (!(head->head.first & 0x40)) {
		return LB_SLOT_EMPTY;
	}
	cid = payload + at;
	lb_keep(cid);
	if ((void *)(cid + 1) > ctx_data_end(ctx) ||
	    at_l4(p) + sizeof(struct udphdr) + at + sizeof(*cid) > p->l3 + p->l3_bytes ||
	    cid->first >> 5 != svc->quic_config)
		return LB_SLOT_EMPTY;
#pragma unroll
	for (int i = 0; i < sizeof(cid->server); i++)
		key.server_id = key.server_id << 8 | cid->server[i];
	key.server_id >>= (8 * (sizeof(cid->server) - svc->quic_bytes)) & 63;
	found = bpf_map_lookup_elem(lb_quic_map, &key);
	return found && is_usable(*found, 0) ? *found : LB_SLOT_EMPTY;
}

#endif
