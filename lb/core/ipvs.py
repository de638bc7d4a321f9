"""IPVS rules, as `ipvsadm -S -n` prints them, as a manifest.

What IPVS can and a manifest can't say is told in remarks, line by line, never dropped silently. Where
half a service would be something else than the whole, it is left out as a whole.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, NoReturn

from lb.errors import UserError
from lb.model.objects import GUE_PORT, MAX_WEIGHT, TUNNELS, Address, Mode

# That spread flows by something else than weights. What is done instead is the same for all.
_BY_LOAD = ("lc", "wlc", "lblc", "lblcr", "sed", "nq", "twos")
_BY_ADDRESS = {"sh": "sh-port", "mh": "mh-port"}  # and the flag that hashes the port as well
_EQUAL = ("rr", "lc")  # that don't look at weights, but for 0
_HIGHEST = ("fo", "ovf")  # that give all flows to one server as long as they can
_ANY = {"port": 1, "end_port": 65535}


@dataclass(frozen=True)
class Remark:
    """Something that is not as it was. `lost`: a service or server is not in the manifest."""

    line: int
    text: str
    lost: bool = False


@dataclass(frozen=True)
class Imported:
    """The manifest, as plain values, and what it can't say."""

    manifest: dict[str, Any]
    remarks: tuple[Remark, ...]


class _Unclear(Exception):
    """A line says what can't be imported."""


@dataclass
class _Server:
    line: int
    entry: dict[str, Any]
    mode: Mode


@dataclass
class _Rule:
    line: int
    fields: dict[str, Any]
    servers: list[_Server] = field(default_factory=list)
    refused: str = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Unclear(message)


def _parser() -> _Parser:
    """The options of ipvsadm(8) that a saved rule can have."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    command = parser.add_mutually_exclusive_group(required=True)
    for short, long in (("-A", "--add-service"), ("-a", "--add-server")):
        command.add_argument(short, long, action="store_const", const=short, dest="command")
    kind = parser.add_mutually_exclusive_group(required=True)
    for short, name in (("-t", "tcp"), ("-u", "udp"), ("-f", "fwmark")):
        kind.add_argument(short, f"--{name}" + ("-service" if name != "fwmark" else ""), dest=name)
    kind.add_argument("--sctp-service", dest="sctp")
    parser.add_argument("-s", "--scheduler", default="wlc")  # ipvsadm's own default
    parser.add_argument("-p", "--persistent", nargs="?", const=300, type=int)
    parser.add_argument("-M", "--netmask")
    parser.add_argument("-b", "--sched-flags", default="")
    parser.add_argument("-o", "--ops", action="store_true")
    parser.add_argument("--pe")
    parser.add_argument("-6", "--ipv6", action="store_true")
    parser.add_argument("-r", "--real-server")
    way = parser.add_mutually_exclusive_group()
    for short, long, mode in (
        ("-g", "--gatewaying", Mode.DSR),
        ("-i", "--ipip", Mode.IPIP),
        ("-m", "--masquerading", Mode.NAT),
    ):
        way.add_argument(short, long, action="store_const", const=mode, dest="mode", default=Mode.DSR)
    parser.add_argument("-w", "--weight", type=int, default=1)
    parser.add_argument("-x", "--u-threshold", type=int, default=0)
    parser.add_argument("-y", "--l-threshold", type=int, default=0)
    parser.add_argument("--tun-type", default="ipip")
    parser.add_argument("--tun-port", type=int, default=0)
    for each in ("nocsum", "csum", "remcsum"):
        parser.add_argument(f"--tun-{each}", action="store_true")
    return parser


def read(text: str) -> Imported:
    """Read saved rules. Raises UserError if there is no rule at all in them."""
    parser, rules, remarks = _parser(), dict[tuple[str, str], _Rule](), list[Remark]()
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        try:
            _take(parser.parse_args(_words(line)), number, rules, remarks)
        except _Unclear as why:
            remarks.append(Remark(number, f"left out: {why}: {line}", lost=True))
    if not rules and not remarks:
        raise UserError("there are no rules in it", hint="save them with: ipvsadm -S -n")
    services = [_service(rule, remarks) for rule in rules.values()]
    return Imported(
        {"services": [each for each in services if each]},
        tuple(sorted(remarks, key=lambda remark: remark.line)),
    )


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as why:
        raise _Unclear(str(why)) from None
    return words[1:] if words[0].rpartition("/")[2] == "ipvsadm" else words


def _take(
    given: argparse.Namespace, line: int, rules: dict[tuple[str, str], _Rule], remarks: list[Remark]
) -> None:
    kind = next(each for each in ("tcp", "udp", "fwmark", "sctp") if getattr(given, each) is not None)
    name = getattr(given, kind)
    if given.command == "-A":
        if (kind, name) in rules:
            raise _Unclear("the service is there already")
        rules[kind, name] = rule = _Rule(line, {})
        try:
            rule.fields = _service_fields(kind, name, given, line, remarks)
        except _Unclear as why:
            rule.refused = str(why)
    elif (kind, name) not in rules:
        raise _Unclear("no line before it adds that service")
    elif not given.real_server:
        raise _Unclear("it names no server (-r)")
    else:
        rules[kind, name].servers.append(_server(given, line, remarks))


def _service_fields(
    kind: str, name: str, given: argparse.Namespace, line: int, remarks: list[Remark]
) -> dict[str, Any]:
    if kind == "fwmark":
        raise _Unclear("lb has no services by firewall mark; name the VIP and its ports instead")
    if kind == "sctp":
        raise _Unclear("lb has no SCTP")
    if given.scheduler in _HIGHEST:
        raise _Unclear(
            f"scheduler {given.scheduler} gives all flows to one server: say so with a pool of its own"
            " for the others, as the backup (lbctl service set NAME --backup-pool POOL)"
        )
    address, port = _endpoint(name)
    flags, by_address = given.sched_flags.split(","), given.scheduler in _BY_ADDRESS
    by_port = by_address and (_BY_ADDRESS[given.scheduler] in flags or "flag-2" in flags)
    sticky = given.persistent is not None or (by_address and not by_port)

    def remark(text: str) -> None:
        remarks.append(Remark(line, text))

    if given.scheduler in _BY_LOAD:
        remark(f"scheduler {given.scheduler} looks at connections; lb spreads new flows by weight")
    elif given.scheduler not in ("rr", "wrr", *_BY_ADDRESS):
        remark(f"scheduler {given.scheduler} is unknown to lb, which spreads new flows by weight")
    if given.persistent is not None:
        remark(
            f"persistence of {given.persistent} s is affinity `client`: for as long as the weights stay"
            " as they are, without a time"
        )
    if given.netmask:
        remark(f"persistence by {given.netmask} can't be said: each address counts for itself")
    if given.pe:
        remark(f"persistence engine {given.pe} can't be said")
    if given.ops:
        remark("one-packet scheduling can't be said: packets of a flow go to one server")
    return {
        "name": f"{kind}-{_label(address)}-{port or 'any'}",
        "vip": str(address),
        **({"port": port} if port else _ANY),
        "protocol": kind,
        **({"affinity": "client"} if sticky else {}),
        "equal": given.scheduler in _EQUAL,
    }


def _server(given: argparse.Namespace, line: int, remarks: list[Remark]) -> _Server:
    address, port = _endpoint(given.real_server)
    if not 0 <= given.weight <= MAX_WEIGHT:
        raise _Unclear(f"weight {given.weight} is more than {MAX_WEIGHT}")
    if given.u_threshold or given.l_threshold:
        remarks.append(
            Remark(line, f"limits of connections (-x {given.u_threshold} -y {given.l_threshold})"
                   " can't be said")
        )  # fmt: skip
    mode = given.mode
    if mode is Mode.IPIP and given.tun_type == "gue":
        mode = Mode.GUE
        port = None if given.tun_port == GUE_PORT else given.tun_port or None
    elif mode is Mode.IPIP and given.tun_type != "ipip":
        raise _Unclear(f"lb has no tunnels of type {given.tun_type}")
    entry = {"name": _label(address), "address": str(address), "weight": given.weight}
    if port and mode in (Mode.NAT, Mode.GUE):
        entry["port"] = port
    return _Server(line, entry, mode)


def _service(rule: _Rule, remarks: list[Remark]) -> dict[str, Any] | None:
    modes = list(dict.fromkeys(server.mode for server in rule.servers))
    if not rule.refused and len(modes) > 1:
        rule.refused = f"its servers are reached in several ways ({', '.join(modes)}), a service has one"
    if rule.refused:
        servers = f" (and its {len(rule.servers)} servers)" if rule.servers else ""
        remarks.append(Remark(rule.line, f"left out{servers}: {rule.refused}", lost=True))
        return None
    fields = dict(rule.fields)
    equal, mode = fields.pop("equal"), modes[0] if modes else Mode.DSR
    if mode in (Mode.DSR, *TUNNELS):
        _check_ports(rule, remarks)
    backends: list[dict[str, Any]] = []
    port = fields["port"]
    for server in rule.servers:
        entry = dict(server.entry)
        if equal:
            entry["weight"] = min(entry["weight"], 1)
        if mode is Mode.NAT and entry.get("port") == port:
            del entry["port"]  # the VIP's, unless it says something else
        if any(each["name"] == entry["name"] for each in backends):
            entry["name"] = f"{entry['name']}-{entry.get('port', port)}"
        backends.append(entry)
    return {**fields, "mode": mode.value, "backends": backends}


def _check_ports(rule: _Rule, remarks: list[Remark]) -> None:
    """One address twice is one server twice: only nat can tell them apart."""
    seen: set[str] = set()
    for server in list(rule.servers):
        if server.entry["address"] in seen:
            rule.servers.remove(server)
            remarks.append(
                Remark(server.line, "left out: the server is named twice, and the way there has no port",
                       lost=True)
            )  # fmt: skip
        seen.add(server.entry["address"])


def _endpoint(text: str) -> tuple[Address, int | None]:
    """ADDRESS:PORT; port 0 = any."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "0")
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")), int(port) or None
    except ValueError:
        raise _Unclear(f"{text!r} is no address and port: save the rules with ipvsadm -S -n") from None


def _label(address: Address) -> str:
    label = str(address).replace(".", "-").replace(":", "-")
    return f"0{label}" if label.startswith("-") else f"{label}0" if label.endswith("-") else label
