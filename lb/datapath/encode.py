"""Services and backends as the bytes that the kernel maps hold."""

from __future__ import annotations

import ctypes
import socket
import sys

from lb.core.plan import WantedBackend
from lb.datapath import consts, mapkeys, structs
from lb.model.objects import Service


def index_key(number: int) -> bytes:
    """Key of an array map."""
    return number.to_bytes(4, sys.byteorder)


def service(
    document: Service,
    seed: tuple[int, int],
    *,
    has_rules: bool = False,
    patience: int = 0,
    mirror_table: int = 0,
) -> bytes:
    """A struct lb_service. `patience`: seconds that an answer may take, if it is observed; else 0.
    `mirror_table`: id of the table that places copies of its flows, if there are any; else 0."""
    mirror = document.mirrored if mirror_table else None
    return bytes(
        structs.Service(
            seed=(ctypes.c_uint64 * 2)(*seed),
            vip=(ctypes.c_uint8 * 16)(*mapkeys.address_bytes(document.vip)),
            port=0 if document.end_port else socket.htons(document.port),
            proto=consts.PROTOCOL_NUMBER[document.protocol],
            mode=consts.MODE_NUMBER[document.mode],
            affinity=consts.AFFINITY_NUMBER[document.affinity],
            tracking=consts.TRACKING_NUMBER[document.tracking],
            no_backend=consts.NO_BACKEND_NUMBER[document.no_backend],
            has_rules=has_rules,
            quic_bytes=document.quic_id_bytes,
            quic_config=document.quic_config,
            patience=patience,
            mirror_table=mirror_table,
            mirror_limit=round(mirror.percent * consts.SLOTS / 100) if mirror else 0,
        )
    )


def backend(wanted: WantedBackend, generation: int) -> bytes:
    """A struct lb_backend."""
    raw = structs.Backend(
        addr=(ctypes.c_uint8 * 16)(*mapkeys.address_bytes(wanted.address)),
        generation=generation,
        port=socket.htons(wanted.port),
        flags=(consts.BackendFlag.USABLE if wanted.usable else 0)
        | (consts.BackendFlag.RESETS if wanted.resets else 0),
    )
    if wanted.gets_copies:
        raw.flags |= consts.BackendFlag.MIRROR
    hop = wanted.next_hop
    if hop:
        raw.flags |= consts.BackendFlag.RESOLVED
        raw.ifindex = hop.ifindex
        raw.dmac[:] = hop.destination_mac
        raw.smac[:] = hop.source_mac
        raw.mtu = min(hop.mtu, 65535)
        if hop.source:
            raw.source[:] = mapkeys.address_bytes(hop.source)
    return bytes(raw)


def is_elsewhere(raw: bytes, wanted: WantedBackend) -> bool:
    """Is the backend wanted at another address or port than this struct lb_backend says?"""
    held, there = structs.Backend.from_buffer_copy(raw), mapkeys.address_bytes(wanted.address)
    return (bytes(held.addr), socket.ntohs(held.port)) != (there, wanted.port)


def is_usable(raw: bytes) -> bool:
    """May flows go to this struct lb_backend?"""
    return bool(structs.Backend.from_buffer_copy(raw).flags & consts.BackendFlag.USABLE)
