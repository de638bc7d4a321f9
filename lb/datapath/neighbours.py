"""Next hops, resolved through the kernel's routes and neighbour tables and kept fresh.

The packet path needs no FIB lookup: it finds interface and MAC addresses in the backend map. This
module fills them in: a route lookup gives interface and gateway, the neighbour table the MAC. Netlink
notifications say when either changes. A next hop once known stays known while its neighbour entry is
being confirmed or fails: forwarding doesn't depend on the moment, and telling dead backends is the
health checks' business.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice
from queue import SimpleQueue
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV4_RULE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_IPV6_RULE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)

from lb.core.nexthop import NextHop
from lb.model.objects import Address

# uapi/linux/neighbour.h
_NTF_USE = 0x01
_NUD_NONE = 0
_NUD_CONFIRMED = 0x02 | 0x40 | 0x80  # REACHABLE, NOARP, PERMANENT
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE … PROBE, NOARP, PERMANENT

_GROUPS = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
)

_RTN_UNICAST = 1  # uapi/linux/rtnetlink.h; local, blackhole, … lead to no neighbour

_ROUTES_CHANGED = {
    "RTM_NEWROUTE", "RTM_DELROUTE", "RTM_NEWRULE", "RTM_DELRULE", "RTM_NEWLINK", "RTM_DELLINK",
    "RTM_NEWADDR", "RTM_DELADDR",
}  # fmt: skip

_Gateway = tuple[int, Address]  # interface, and the address there that has the MAC

# With one look at what no notification tells of: half a second, where a lookup takes 1.2 ms.
_AT_ONCE = 400

_PAUSE = 1.0  # seconds

_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ENODEV}


@dataclass(frozen=True)
class _Way:
    """What the kernel's routes say of an address; an mtu of 0: that of the link."""

    via: _Gateway
    source: Address | None
    mtu: int


@dataclass
class Resolver:
    """Keeps the next hops of a set of addresses. Not thread-safe: one owner, who passes
    notifications in."""

    ip: IPRoute
    _ways: dict[Address, _Way] = field(default_factory=dict)  # those looked up longest ago first
    _macs: dict[_Gateway, bytes] = field(default_factory=dict)
    _confirmed: set[_Gateway] = field(default_factory=set)
    _links: dict[int, bytes] = field(default_factory=dict)
    _mtus: dict[int, int] = field(default_factory=dict)
    _unrouted: set[Address] = field(default_factory=set)
    _fresh: set[Address] = field(default_factory=set)
    _watched: frozenset[Address] = frozenset()
    _hops: dict[Address, NextHop] = field(default_factory=dict)
    _is_stale: bool = False  # is _hops older than what it is made of?

    def watch(self, wanted: frozenset[Address]) -> None:
        """From now on these addresses are of interest, and no others. New ones are looked up, and
        the kernel is asked to resolve those that it doesn't know."""
        if wanted is self._watched:
            return
        self._watched, self._is_stale = wanted, True
        known = self._ways.keys() | self._unrouted
        self._ways = {address: way for address, way in self._ways.items() if address in wanted}
        self._unrouted &= wanted
        self._fresh &= wanted
        if new := wanted - known:
            self._fresh |= new
            self._route(new)
            self._read_tables()
            self._ask(only_unknown=True)

    def reroute(self) -> bool:
        """Routes, links or addresses changed: look everything up again. True if a next hop changed."""
        return self._look_up({*self._ways, *self._unrouted})

    def doubt(self) -> bool:
        """What nobody notifies of: a path MTU that the kernel learned, or forgot again. Looks the next
        few hundred addresses up again, in turn. True if a next hop changed."""
        return self._look_up(list(islice(self._ways, _AT_ONCE)))

    def _look_up(self, addresses: Iterable[Address]) -> bool:
        before = self.hops()
        self._route(addresses)
        self._read_tables()
        self._ask(only_unknown=True)
        return self.hops() != before

    def refresh(self) -> bool:
        """Have the kernel confirm entries that nobody used lately. Our packets bypass its stack, so
        it sees no use of them; call this more often than its gc_stale_time (60 s). True if a next
        hop turns out to have changed without a notification."""
        before = self.hops()
        self._route(self._unrouted.copy())
        self._read_tables()
        self._ask(only_unknown=False)
        return self.hops() != before

    def hops(self) -> dict[Address, NextHop]:
        """Next hop of each address that has one; the same object for as long as they are the same."""
        if not self._is_stale:
            return self._hops
        self._is_stale = False
        found = {}
        for address, way in self._ways.items():
            ifindex, gateway = way.via
            mac = self._macs.get(way.via)
            source = self._links.get(ifindex)
            if mac is not None and source is not None:
                found[address] = NextHop(
                    ifindex,
                    source,
                    mac,
                    gateway != address,
                    way.source,
                    way.mtu or self._mtus.get(ifindex, 0),
                )
        if found != self._hops:
            self._hops = found
        return self._hops

    def pending(self) -> bool:
        """Is the kernel still resolving an address that is new?"""
        return bool(self._fresh) and bool(self._fresh & self._ways.keys() - self.hops().keys())

    def give_up(self) -> None:
        """Wait for the new ones no longer; they may still be resolved later."""
        self._fresh.clear()

    def notify(self, event: Mapping[str, Any]) -> bool:
        """Take in a notification about a neighbour. True if a next hop changed."""
        return event.get("event") == "RTM_NEWNEIGH" and self._learn(event, self._used())

    def _used(self) -> set[_Gateway]:
        return {way.via for way in self._ways.values()}

    def _read_tables(self) -> None:
        """Links and neighbours as they are now; what is no gateway of ours is forgotten."""
        self._is_stale = True
        links = list(self.ip.get_links())
        self._links = {
            link["index"]: mac
            for link in links
            if (mac := _mac(link.get_attr("IFLA_ADDRESS"))) is not None
        }
        self._mtus = {link["index"]: link.get_attr("IFLA_MTU") or 0 for link in links}
        used = self._used()
        self._macs = {key: mac for key, mac in self._macs.items() if key in used}
        self._confirmed.clear()
        for entry in self.ip.get_neighbours():
            self._learn(entry, used)

    def _route(self, addresses: Iterable[Address]) -> None:
        """An address that had a way keeps it while it has no other: a route that is gone for a moment
        (a link that flaps) must not stop established flows."""
        self._is_stale = True
        for address in addresses:
            way = self._lookup(address)
            if way is None:
                self._unrouted.add(address)
                way = self._ways.get(address)
            else:
                self._unrouted.discard(address)
            self._ways.pop(address, None)
            if way is not None:
                self._ways[address] = way

    def _lookup(self, address: Address) -> _Way | None:
        try:
            (route,) = self.ip.route("get", dst=str(address))
        except NetlinkError as error:
            if error.code in _NO_ROUTE:
                return None
            raise
        ifindex, gateway = route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY")
        if ifindex is None or route["type"] != _RTN_UNICAST:
            return None
        if via := route.get_attr("RTA_VIA"):  # IPv4 by an IPv6 router (RFC 8950; Linux 5.2)
            gateway = via["addr"]
        source, metrics = route.get_attr("RTA_PREFSRC"), route.get_attr("RTA_METRICS")
        return _Way(
            (ifindex, ip_address(gateway) if gateway else address),
            ip_address(source) if source else None,
            (metrics.get_attr("RTAX_MTU") or 0) if metrics else 0,
        )

    def _learn(self, entry: Mapping[str, Any], used: Container[_Gateway]) -> bool:
        attrs = dict(entry["attrs"])
        target, mac = attrs.get("NDA_DST"), _mac(attrs.get("NDA_LLADDR"))
        if target is None or mac is None or not entry["state"] & _NUD_USABLE:
            return False
        key = (entry["ifindex"], ip_address(target))
        if key not in used:
            return False
        self._is_stale = True
        if entry["state"] & _NUD_CONFIRMED:
            self._confirmed.add(key)
        if self._macs.get(key) == mac:
            return False
        self._macs[key] = mac
        return True

    def _ask(self, *, only_unknown: bool) -> None:
        """NTF_USE makes the kernel resolve or confirm an entry as if it had a packet to send. Entries
        that the kernel has dropped meanwhile are made anew."""
        for key in self._used():
            if key in self._confirmed or (only_unknown and key in self._macs):
                continue
            ifindex, gateway = key
            # One that can't be asked for (a full neighbour table, a link that is down) is asked for
            # again with the next refresh, and must not keep the others from being asked.
            with suppress(NetlinkError):
                self.ip.neigh(
                    "replace", dst=str(gateway), ifindex=ifindex, flags=_NTF_USE, state=_NUD_NONE
                )


def is_topology(event: Mapping[str, Any]) -> bool:
    """Is this notification about links, addresses or routes?"""
    return event.get("event") in _ROUTES_CHANGED


def _mac(text: str | None) -> bytes | None:
    """An Ethernet address; None for links and neighbours that have another kind, or none."""
    raw = bytes.fromhex(text.replace(":", "")) if text else b""
    return raw if len(raw) == 6 else None


def listen(deliver: Callable[[dict[str, Any]], None]) -> None:
    """Start a thread that passes each netlink notification about links, addresses, routes and
    neighbours of this network namespace to `deliver`, until the process ends. Returns when none is
    missed any more."""
    ready: SimpleQueue[BaseException | None] = SimpleQueue()

    def loop() -> None:
        # A pyroute2 socket belongs to the thread that opened it.
        try:
            source = IPRoute()
            source.bind(groups=_GROUPS)
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            ready.put(error)
            return
        ready.put(None)
        while True:
            try:
                for message in source.get():
                    deliver(message)
            except OSError as error:  # ENOBUFS: messages were lost, so anything may have changed
                deliver({"event": "RTM_NEWLINK"})
                if error.errno != errno.ENOBUFS:
                    time.sleep(_PAUSE)  # a broken socket must not be a loop without a pause

    threading.Thread(target=loop, name="netlink", daemon=True).start()
    if (error := ready.get()) is not None:
        raise error
