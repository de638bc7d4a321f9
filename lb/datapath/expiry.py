"""Mode fullnat: giving ports back. The programs only make entries; lbd removes those that are over.

How long an entry may be silent depends on what was seen of its flow (RFC 5382, REQ-5; RFC 4787, REQ-5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.core.flowhash import mix_words
from lb.datapath.consts import NatState
from lb.datapath.maps import Maps
from lb.settings import Timeouts

_FLOW = [("client", "V16"), ("service", "=u4"), ("client_port", ">u2"), ("vip_port", ">u2")]
FLOW = np.dtype(_FLOW)
BINDING = np.dtype(
    [("source", "V16"), ("backend", "=u4"), ("generation", "=u4"), ("seen", "=u4"), ("port", ">u2"),
     ("state", "u1"), ("pad", "u1")]
)  # fmt: skip
TRANSLATED = np.dtype(
    [("backend", "V16"), ("source", "V16"), ("backend_port", ">u2"), ("port", ">u2"), ("proto", "u1"),
     ("pad", "V3")]
)  # fmt: skip
CLIENT = np.dtype([("flow", FLOW), ("backend", "=u4"), ("seen", "=u4"), ("state", "u1"), ("pad", "V3")])

_TCP = 6
_ANSWERED, _FIN, _RST, _OPENING = (
    np.uint8(each) for each in (NatState.ANSWERED, NatState.FIN, NatState.RST, NatState.OPENING)
)


@dataclass(frozen=True)
class Expired:
    """How many flows were over, and how many entries are left. `connections`: by id and generation of
    a backend, how many of its flows are under way: of TCP those that both ends have opened, and that
    have neither ended nor been reset."""

    flows: int
    left: int
    connections: Mapping[tuple[int, int], int] = field(default_factory=dict, compare=False)


def expire(maps: Maps, timeouts: Timeouts, clock: Callable[[], int], rate: float) -> Expired:
    """Remove the entries of flows that said nothing for too long. `clock` tells jiffies, `rate` is
    jiffies per second."""
    flows, bindings = table(maps.bindings.dump(), FLOW, BINDING)
    backs, clients = table(maps.translations.dump(), TRANSLATED, CLIENT)
    # After them: what is seen later than `now` would count as not seen for 2^32 jiffies.
    now = clock()
    # A flow's two entries find each other by the flow; a binding that has another port by now is of a
    # later connection on the same two ports.
    binding = find(flows, clients["flow"])
    known = binding >= 0
    binding[known] = np.where(
        bindings["port"][binding[known]] == backs["port"][known], binding[known], -1
    )
    paired = binding >= 0
    mine = bindings[binding[paired]]

    idle = _idle(clients["seen"], now)
    idle[paired] = np.minimum(idle[paired], _idle(mine["seen"], now))
    server, client = clients["state"], np.zeros(len(clients), dtype=np.uint8)
    client[paired] = mine["state"]
    state = server | client
    reset = _has(state, _RST)
    # Without a binding only stragglers of an ended flow are left.
    closed = ~paired | (_has(server, _FIN | _RST) & _has(client, _FIN | _RST))
    closed |= reset & _has(state, _OPENING)
    over = idle > _limits(state, closed, backs["proto"], timeouts) * rate

    # The programs write the way back first: a binding without one has lost it.
    single = np.ones(len(flows), dtype=bool)
    single[binding[paired]] = False
    gone = single & (_idle(bindings["seen"], now) > rate)
    gone[binding[over & paired]] = True
    maps.bindings.delete_many([key.tobytes() for key in flows[gone]])
    maps.translations.delete_many([key.tobytes() for key in backs[over]])
    open_ = _has(state, _ANSWERED) & ~_has(state, _OPENING) | (backs["proto"] != _TCP)
    under_way = open_ & ~(over | closed | reset)
    return Expired(int(over.sum()), int((~over).sum()), _by_backend(bindings[binding[under_way]]))


def _by_backend(bindings: NDArray[Any]) -> dict[tuple[int, int], int]:
    both = bindings["backend"].astype(np.uint64) << np.uint64(32) | bindings["generation"]
    values, counts = np.unique(both, return_counts=True)
    return {
        (int(each) >> 32, int(each) & 0xFFFFFFFF): int(count)
        for each, count in zip(values, counts, strict=True)
    }


def table(
    dump: tuple[bytes, bytes], key: np.dtype[Any], value: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A map's keys and values, as Map.dump() gives them, as arrays of one row each."""
    keys, values = dump
    return np.frombuffer(keys, key), np.frombuffer(values, value)


def find(flows: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of the wanted stands among the flows; -1 = nowhere."""
    have, ask = _words(flows), _words(wanted)
    found = np.full(len(ask), -1, dtype=np.int64)
    if not len(have):
        return found
    digests, asked = (mix_words(mix_words(mix_words(w[:, 0]) ^ w[:, 1]) ^ w[:, 2]) for w in (have, ask))
    order = np.argsort(digests)
    at = order[np.minimum(np.searchsorted(digests, asked, sorter=order), len(order) - 1)]
    same = (have[at] == ask).all(axis=1)
    found[same] = at[same]
    return found


def _words(flows: NDArray[Any]) -> NDArray[np.uint64]:
    """Keys as rows of three 64-bit words."""
    return np.frombuffer(flows.tobytes(), np.uint64).reshape(-1, 3)


def _idle(seen: NDArray[Any], now: int) -> NDArray[np.uint32]:
    """Jiffies since then."""
    return np.uint32(now % 2**32) - seen.astype(np.uint32)


def _has(state: NDArray[np.uint8], bits: np.uint8) -> NDArray[np.bool_]:
    """Any of these bits?"""
    return (state & bits) > 0


def _limits(
    state: NDArray[np.uint8], closed: NDArray[np.bool_], proto: NDArray[np.uint8], timeouts: Timeouts
) -> NDArray[np.float64]:
    """Seconds for which each flow may be silent. A connection that one end has reset, as it seems, gets
    no less than one that is closing: RFC 7857, 2.2, as a RST's sequence number is not checked."""
    tcp = proto == _TCP
    answered = _has(state, _ANSWERED)
    return np.select(
        [
            tcp & closed,
            tcp & _has(state, _OPENING),
            tcp & _has(state, _FIN | _RST),
            tcp & answered,
            tcp,
            answered,
        ],
        [
            timeouts.tcp_closed,
            timeouts.tcp_opening,
            timeouts.tcp_closing,
            timeouts.tcp_established,
            timeouts.tcp_opening,
            timeouts.udp,
        ],
        timeouts.udp_unanswered,
    ).astype(np.float64)
