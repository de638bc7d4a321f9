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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from queue import SimpleQueue

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)

from lb.core.nexthop import NextHop
from lb.model.objects import Address

# uapi/linux/neighbour.h
_NTF_USE = 0x01
_NUD_NONE = 0
_NUD_STALE = 0x04
_NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE … PROBE, NOARP, PERMANENT

_GROUPS = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
)

_RTN_UNICAST = 1  # uapi/linux/rtnetlink.h; local, blackhole, … lead to no neighbour

_ROUTES_CHANGED = {
    "RTM_NEWROUTE", "RTM_DELROUTE", "RTM_NEWLINK", "RTM_DELLINK", "RTM_NEWADDR", "RTM_DELADDR",
}  # fmt: skip

_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ENODEV}


@dataclass
class Resolver:
    """Keeps the next hops of a set of addresses. Not thread-safe: one owner, who passes
    notifications in."""

    ip: IPRoute
    _via: dict[Address, tuple[int, Address]] = field(default_factory=dict)
    _macs: dict[tuple[int, Address], bytes] = field(default_factory=dict)
    _stale: set[tuple[int, Address]] = field(default_factory=set)
    _links: dict[int, bytes] = field(default_factory=dict)
    _unrouted: set[Address] = field(default_factory=set)
    _fresh: set[Address] = field(default_factory=set)

    def watch(self, addresses: Iterable[Address]) -> None:
        """From now on these addresses are of interest, and no others. New ones are looked up, and
        the kernel is asked to resolve those that it doesn't know."""
        wanted = set(addresses)
        for gone in self._via.keys() - wanted:
            del self._via[gone]
        self._unrouted &= wanted
        new = wanted - self._via.keys() - self._unrouted
        if new:
            self._fresh |= new
            self._read_tables()
            self._route(new)
            self._ask(only_unknown=True)

    def reroute(self) -> None:
        """Routes, links or addresses changed: look everything up again."""
        self._read_tables()
        self._route(set(self._via) | self._unrouted)
        self._ask(only_unknown=True)

    def refresh(self) -> bool:
        """Have the kernel confirm entries that nobody used lately. Our packets bypass its stack, so
        it sees no use of them; call this more often than its gc_stale_time (60 s). True if a next
        hop turns out to have changed without a notification."""
        before = self.hops()
        self._read_tables()
        self._route(self._unrouted.copy())
        self._ask(only_unknown=False)
        return self.hops() != before

    def hops(self) -> dict[Address, NextHop]:
        """Next hop of each address that has one."""
        found = {}
        for address, (ifindex, gateway) in self._via.items():
            mac = self._macs.get((ifindex, gateway))
            source = self._links.get(ifindex)
            if mac is not None and source is not None:
                found[address] = NextHop(ifindex, source, mac, gateway != address)
        return found

    def pending(self) -> bool:
        """Is the kernel still resolving an address that is new?"""
        return bool(self._fresh & self._via.keys() - self.hops().keys())

    def give_up(self) -> None:
        """Wait for the new ones no longer; they may still be resolved later."""
        self._fresh.clear()

    def notify(self, event: dict[str, object]) -> bool:
        """Take a netlink notification in. True if a next hop may have changed."""
        kind = event.get("event")
        if kind in _ROUTES_CHANGED:
            self.reroute()
            return True
        return kind == "RTM_NEWNEIGH" and self._learn(event)

    def _read_tables(self) -> None:
        self._links = {
            link["index"]: bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
            for link in self.ip.get_links()
        }
        for entry in self.ip.get_neighbours():
            self._learn(entry)

    def _route(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            via = self._lookup(address)
            if via is None:
                self._via.pop(address, None)
                self._unrouted.add(address)
            else:
                self._unrouted.discard(address)
                self._via[address] = via

    def _lookup(self, address: Address) -> tuple[int, Address] | None:
        try:
            (route,) = self.ip.route("get", dst=str(address))
        except NetlinkError as error:
            if error.code in _NO_ROUTE:
                return None
            raise
        ifindex, gateway = route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY")
        if ifindex is None or route["type"] != _RTN_UNICAST:
            return None
        return ifindex, ip_address(gateway) if gateway else address

    def _learn(self, entry: dict[str, object]) -> bool:
        attrs = dict(entry["attrs"])  # type: ignore[call-overload]
        target, mac = attrs.get("NDA_DST"), attrs.get("NDA_LLADDR")
        if target is None or mac is None or not int(entry["state"]) & _NUD_USABLE:  # type: ignore[call-overload]
            return False
        key = (int(entry["ifindex"]), ip_address(target))  # type: ignore[call-overload]
        (self._stale.add if entry["state"] == _NUD_STALE else self._stale.discard)(key)
        raw = bytes.fromhex(mac.replace(":", ""))
        if self._macs.get(key) == raw:
            return False
        self._macs[key] = raw
        return True

    def _ask(self, *, only_unknown: bool) -> None:
        """NTF_USE makes the kernel resolve or confirm an entry as if it had a packet to send."""
        for ifindex, gateway in set(self._via.values()):
            key = (ifindex, gateway)
            if key in self._macs and (only_unknown or key not in self._stale):
                continue
            try:
                self.ip.neigh(
                    "replace", dst=str(gateway), ifindex=ifindex, flags=_NTF_USE, state=_NUD_NONE
                )
            except NetlinkError as error:
                if error.code not in _NO_ROUTE:
                    raise


def listen(deliver: Callable[[dict[str, object]], None]) -> None:
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
            except OSError:  # ENOBUFS: messages were lost, so anything may have changed
                deliver({"event": "RTM_NEWLINK"})

    threading.Thread(target=loop, name="netlink", daemon=True).start()
    if (error := ready.get()) is not None:
        raise error
