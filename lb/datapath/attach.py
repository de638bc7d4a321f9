"""Attaching the program to interfaces, through pyroute2: XDP (native, generic) and clsact ingress.

What is attached outlives the process. Somebody else's XDP program is found and named, never
overwritten. A newer program replaces ours in one step, so that no packet goes past unseen.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.exceptions import NetlinkError

from lb.datapath import consts
from lb.datapath.bpf import Program
from lb.errors import DatapathError, LbError, NotFoundError, UserError
from lb.settings import Hook

# uapi/linux/if_link.h
_XDP_UPDATE_IF_NOEXIST = 1 << 0
_XDP_MODE = {Hook.XDP_GENERIC: 1 << 1, Hook.XDP: 1 << 2}
_XDP_REPLACE = 1 << 4

# Our filters on clsact: before the usual default priorities, at a handle of its own.
INGRESS = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
EGRESS = 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)
_TC_HANDLE = 0x1B
# Priorities: a tunnel's packet is opened first, then looked at; answers to health checks, and to copies,
# aren't for the balancer.
BALANCER, MIRRORS, PROBES, WATCHER, DECAPSULATOR = 50, 47, 45, 42, 40
_ETH_P_ALL = 0x0003

_IFF_LOOPBACK = 0x8

# The largest MTU with native XDP on most drivers: a page, less headroom (256 bytes), struct
# skb_shared_info (320) and a MAC header with a tag.
XDP_MTU = 3498

# XDP holds a frame in one page, with room before and after (kernel: PAGE_SIZE - headroom - tailroom).
_XDP_REASONS = {
    errno.ERANGE: "its MTU is too large for XDP (a frame must fit one page: about 3,500 bytes)",
    errno.ENOMEM: "the driver has not enough queues or memory for XDP",
    errno.ENOSPC: "the driver has not enough queues for XDP; lower them with ethtool -L",
    errno.EOPNOTSUPP: "its driver has no native XDP",
    errno.EINVAL: "the driver refuses XDP in its present set-up (MTU, LRO, queues)",
    errno.EBUSY: "another program is attached",
    errno.EEXIST: "a program is attached in another mode",
    errno.EPERM: "not permitted (root is needed)",
}


@dataclass(frozen=True)
class Ours:
    """What tells our attachments from others': ids of our XDP programs, the name of our tc filter."""

    programs: frozenset[int]
    name: str


@dataclass(frozen=True)
class Interface:
    """A network interface of this namespace. `xdp_program` is an id, 0 = none."""

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool
    loopback: bool
    xdp_program: int
    xdp_generic: bool
    kind: str  # veth, vlan, bond, …; empty for a physical one
    ports: tuple[int, ...] = ()  # of a bond: their indexes. Native XDP runs on them


def find(ip: IPRoute, name: str) -> Interface:
    """Raises NotFoundError that lists the interfaces there are."""
    for interface in by_name(ip, name):
        return interface
    names = {link.get_attr("IFLA_IFNAME") for link in ip.get_links()} - {"lo"}
    raise NotFoundError(
        f"interface {name!r} does not exist",
        hint=f"there are: {', '.join(sorted(names)) or 'none'}; see ip link",
    )


def by_name(ip: IPRoute, name: str) -> list[Interface]:
    """The interface with this name in a list, or an empty list."""
    links = list(ip.get_links())
    found = [_describe_link(link) for link in links if link.get_attr("IFLA_IFNAME") == name]
    return [replace(each, ports=_ports(each, links)) for each in found]


def _ports(interface: Interface, links: Sequence[nlmsg]) -> tuple[int, ...]:
    if interface.kind != "bond":
        return ()
    return tuple(link["index"] for link in links if link.get_attr("IFLA_MASTER") == interface.index)


def by_index(ip: IPRoute, index: int) -> list[Interface]:
    """The interface with this index in a list, or an empty list if it is gone."""
    try:
        return [_describe_link(link) for link in ip.get_links(index)]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return []
        raise


def _describe_link(link: nlmsg) -> Interface:
    xdp, info = link.get_attr("IFLA_XDP"), link.get_attr("IFLA_LINKINFO")
    program = (xdp and xdp.get_attr("IFLA_XDP_PROG_ID")) or 0
    generic = bool(xdp and xdp.get_attr("IFLA_XDP_SKB_PROG_ID"))
    return Interface(
        name=link.get_attr("IFLA_IFNAME"),
        index=link["index"],
        mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "00:00:00:00:00:00").replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"),
        up=link["flags"] & 1 == 1,
        loopback=bool(link["flags"] & _IFF_LOOPBACK),
        xdp_program=program,
        xdp_generic=generic,
        kind=(info and info.get_attr("IFLA_INFO_KIND")) or "",
    )


def check(ip: IPRoute, names: Sequence[str]) -> list[Interface]:
    """The interfaces, if lb may attach to all of them. Raises an error that says what to do."""
    if not names:
        raise UserError(
            "no interface to attach to",
            hint="name them: lbd --interface eth0, or interfaces = [...] in lb.toml",
        )
    found = [find(ip, name) for name in dict.fromkeys(names)]
    places: dict[int, str] = {}
    for each in found:
        if each.loopback:
            raise UserError(
                f"interface {each.name!r} is the loopback",
                hint="attach to an interface that clients' packets come in by",
            )
        if not each.up:
            raise DatapathError(f"interface {each.name!r} is down", hint=f"ip link set {each.name} up")
        for index in (each.index, *each.ports):
            other = places.setdefault(index % consts.LINKS, each.name)
            if other != each.name:
                raise DatapathError(
                    f"interfaces {other!r} and {each.name!r} have indexes that differ by a multiple"
                    f" of {consts.LINKS}",
                    hint="make one of them anew, or attach to one of them only",
                )
    return found


def check_foreign(interface: Interface, ours: Ours) -> None:
    """Raises DatapathError if the interface carries an XDP program that isn't one of ours."""
    if interface.xdp_program and interface.xdp_program not in ours.programs:
        raise DatapathError(
            f"interface {interface.name!r} carries somebody else's XDP program"
            f" {program_name(interface.xdp_program)}",
            hint=f"detach it (ip link set {interface.name} xdp off), or use lbd --hook tc",
        )


def attach(ip: IPRoute, interface: Interface, hook: Hook, program: Program, ours: Ours) -> None:
    """Attach `program`, replacing one of ours if it is there."""
    if hook is Hook.TC:
        attach_filter(ip, interface, program, ours.name)
        return
    check_foreign(interface, ours)
    attrs: list[list[object]] = [["IFLA_XDP_FD", program.fd]]
    flags = _XDP_MODE[hook]
    if interface.xdp_program and interface.xdp_generic == (hook is Hook.XDP_GENERIC):
        # Only if it still is the one that we saw.
        expected = Program.by_id(interface.xdp_program)
        attrs.append(["IFLA_XDP_EXPECTED_FD", expected.fd])
        flags |= _XDP_REPLACE
    else:
        if interface.xdp_program:
            detach_xdp(ip, interface)
        flags |= _XDP_UPDATE_IF_NOEXIST
    attrs.append(["IFLA_XDP_FLAGS", flags])
    try:
        ip.link("set", index=interface.index, xdp={"attrs": attrs})
    except NetlinkError as error:
        raise _refusal(interface, hook, error) from None


def detach(ip: IPRoute, interface: Interface, ours: Ours) -> bool:
    """Take our programs off, whichever hooks they are on. False if there was none of ours."""
    hooks = attached_hooks(ip, interface, ours)
    for hook in hooks:
        detach_from(ip, interface, hook, ours)
    return bool(hooks)


def detach_from(ip: IPRoute, interface: Interface, hook: Hook, ours: Ours) -> None:
    """Take our program off one hook."""
    if hook is Hook.TC:
        detach_filter(ip, interface)
    elif interface.xdp_program in ours.programs:
        detach_xdp(ip, interface)


def detach_xdp(ip: IPRoute, interface: Interface) -> None:
    """Take the XDP program off."""
    mode = _XDP_MODE[Hook.XDP_GENERIC if interface.xdp_generic else Hook.XDP]
    attrs = [["IFLA_XDP_FD", -1], ["IFLA_XDP_FLAGS", mode]]
    ip.link("set", index=interface.index, xdp={"attrs": attrs})


def attached_hooks(ip: IPRoute, interface: Interface, ours: Ours) -> set[Hook]:
    """Where our programs are attached here now."""
    hooks = set()
    if interface.xdp_program in ours.programs:
        hooks.add(Hook.XDP_GENERIC if interface.xdp_generic else Hook.XDP)
    if filter_name(ip, interface) == ours.name:
        hooks.add(Hook.TC)
    return hooks


def _refusal(interface: Interface, hook: Hook, error: NetlinkError) -> DatapathError:
    reason = _XDP_REASONS.get(error.code, os.strerror(error.code))
    return DatapathError(
        f"{hook} can't be attached to {interface.name!r}: {reason}",
        hint="use lbd --hook auto (it takes what works), or --hook tc",
    )


def program_name(number: int) -> str:
    """A loaded program in words: its name and id."""
    try:
        return f"{Program.by_id(number).name!r} (id {number})"
    except LbError:
        return f"with id {number}"


def filter_name(
    ip: IPRoute, interface: Interface, priority: int = BALANCER, parent: int = INGRESS
) -> str:
    """Name of the filter at our place; "" = none. (It tells whose it is: pyroute2 doesn't decode the
    program's id.)"""
    for each in ip.get_filters(index=interface.index, parent=parent):
        if each.get("info", 0) >> 16 == priority and each.get("handle") == _TC_HANDLE:
            return str(each.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME"))
    return ""


def _has_qdisc(ip: IPRoute, interface: Interface, kind: str) -> bool:
    return any(each.get_attr("TCA_KIND") == kind for each in ip.get_qdiscs(index=interface.index))


def attach_filter(
    ip: IPRoute,
    interface: Interface,
    program: Program,
    name: str,
    priority: int = BALANCER,
    parent: int = INGRESS,
) -> None:
    """Attach `program` to clsact, replacing one of this name."""
    present = filter_name(ip, interface, priority, parent)
    if present and present != name:
        raise DatapathError(
            f"interface {interface.name!r} carries another lbd's tc filter {present!r}",
            hint="lbd --detach that one first; two balancers on one interface can't work",
        )
    try:
        if not _has_qdisc(ip, interface, "clsact"):
            ip.tc("add", "clsact", interface.index)
        ip.tc(
            "replace-filter",
            "bpf",
            interface.index,
            _TC_HANDLE,
            fd=program.fd,
            name=name,
            parent=parent,
            prio=priority,
            protocol=_ETH_P_ALL,
            direct_action=True,
        )
    except NetlinkError as error:
        if error.code == errno.EEXIST and _has_qdisc(ip, interface, "ingress"):
            raise DatapathError(
                f"tc can't be attached to {interface.name!r}: the older qdisc `ingress` is there"
                " (policing, shaping by ifb), in clsact's place",
                hint="clsact takes the same filters: have whatever made it use that instead;"
                f" `tc qdisc del dev {interface.name} ingress` removes it, and its filters",
            ) from None
        raise DatapathError(
            f"tc can't be attached to {interface.name!r}: {os.strerror(error.code)}",
            hint="the kernel needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
        ) from None


def detach_filter(
    ip: IPRoute, interface: Interface, priority: int = BALANCER, parent: int = INGRESS
) -> None:
    """Take the filter at our place off."""
    ip.tc("del-filter", "bpf", interface.index, _TC_HANDLE, parent=parent, prio=priority)
    # clsact may be shared; the last one out turns off the light.
    if not any(ip.get_filters(index=interface.index, parent=p) for p in (INGRESS, EGRESS)):
        ip.tc("del", "clsact", interface.index)
