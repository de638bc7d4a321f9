"""Documents that are valid in themselves but contradict others. Pure.

Of two that claim the same thing, the one that was in force before keeps it; else the one whose key was
written first, as far as the store can tell; else the first by name. lb/core/settling.py decides what
is in force instead of those that are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lb.model import keys
from lb.model.describe import describe_socket, describe_vip
from lb.model.health import ExecCheck, Via
from lb.model.objects import (
    TRANSLATIONS,
    Address,
    Backend,
    Mode,
    Protocol,
    Service,
)

Refusal = tuple[str, str]  # message, hint
Turn = tuple[int, int]  # HELD, NEW or LATE, and since when: who has the smaller one goes first
HELD, NEW, LATE = range(3)
_Place = tuple[Address, Protocol]
_Socket = tuple[Address, int, Protocol]


def contested(service: Service) -> tuple[object, ...]:
    """What of a service is compared with others."""
    via = service.health and service.health.via
    return service.name, service.endpoint, service.mode, service.quic_id_bytes, via


def claimed(backend: Backend) -> tuple[object, ...]:
    """What of a backend is compared with others."""
    limit = backend.max_connections
    return backend.address, backend.port, backend.quic_id, limit, backend.health


def _way(service: Service) -> tuple[object, ...]:
    """What of a service decides which sockets its backends need, and how."""
    return service.mode, service.port, service.end_port, service.protocol


@dataclass(frozen=True)
class Standing:
    """Who goes first. `services` and `backends`: what was in force before, backends by "service/name".
    `since`: the revision that each key was written at. `latecomers`: keys of those who go after all
    others."""

    services: Mapping[str, Service] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    since: Mapping[str, int] = field(default_factory=dict)
    latecomers: Collection[str] = frozenset()

    def among_services(self, name: str, service: Service) -> Turn:
        """For its VIP with protocol and ports."""
        before = self.services.get(name)
        same = before is not None and before.endpoint == service.endpoint
        return self._turn(keys.SERVICES + name, same)

    def among_backends(self, path: str, backend: Backend, owner: Service | None) -> Turn:
        """For what a backend needs for itself, which its service has a part in."""
        before, served = self.backends.get(path), self.services.get(backend.service)
        same = before is backend or (before is not None and claimed(before) == claimed(backend))
        if served is not owner:
            same = same and served is not None and owner is not None and _way(served) == _way(owner)
        return self._turn(keys.BACKENDS + path, same)

    def is_vip_first(self, service: Service, path: str, backend: Backend) -> bool:
        """Whose is an address that is the VIP of one, and the other's own?"""
        before, held = self.services.get(service.name), self.backends.get(path)
        same = before is not None and before.vip == service.vip
        vip = self._turn(keys.SERVICES + service.name, same)
        key, same = keys.BACKENDS + path, held is not None and held.address == backend.address
        address = self._turn(key, same)
        if key in self.latecomers:  # else two services could outdo each other by their backends
            return vip[0] <= address[0]
        return vip <= address

    def _turn(self, key: str, was_in_force: bool) -> Turn:
        rank = LATE if key in self.latecomers else HELD if was_in_force else NEW
        return rank, self.since.get(key, 0)


def conflicts(
    services: Mapping[str, Service], backends: Mapping[str, Backend], standing: Standing
) -> dict[str, Refusal]:
    """Keys of documents that can't be in force beside the others. `backends` is keyed by "service/name".

    Services go first: while some are refused, nothing is said of backends, as those of these services
    may get along with what is in force instead.
    """
    claims, refused = _Claims(), dict[str, Refusal]()
    vips: dict[Address, list[Service]] = {}
    for name in sorted(services, key=lambda n: (standing.among_services(n, services[n]), n)):
        service = services[name]
        vips.setdefault(service.vip, []).append(service)
        if refusal := claims.refuse_service(service):
            refused[keys.service(name)] = refusal
    if refused:
        return refused
    outdone: dict[str, Refusal] = {}

    def turn(path: str) -> tuple[Turn, str]:
        backend = backends[path]
        return standing.among_backends(path, backend, services.get(backend.service)), path

    for path in sorted(backends, key=turn):
        backend = backends[path]
        owner = services.get(backend.service)
        at_vip = vips.get(backend.address, ())
        if owner is None:
            refusal = _without(backend.service)
        elif any(standing.is_vip_first(each, path, backend) for each in at_vip):
            refusal = (
                f"address {backend.address} is a VIP itself",
                "give the address of the server's own interface",
            )
        else:
            refusal = claims.refuse_backend(path, owner, backend)
        if refusal:
            refused[keys.BACKENDS + path] = refusal
        for each in () if refusal else at_vip:
            outdone.setdefault(keys.service(each.name), _of_a_server(each, path))
    return outdone or refused


def _without(service: str) -> Refusal:
    return (
        f"its service {service!r} does not exist",
        f"add the service first: lbctl service add {service} --vip ADDRESS:PORT",
    )


def _of_a_server(service: Service, path: str) -> Refusal:
    return (
        f"VIP {describe_vip(service)} is the address of backend {path!r} already",
        "choose another address, or give that backend another one first",
    )


@dataclass
class _Claims:
    """What has been claimed so far, and by whom."""

    endpoints: dict[tuple[object, ...], str] = field(default_factory=dict)
    ranges: dict[_Place, list[Service]] = field(default_factory=dict)
    quic_ids: dict[tuple[str, str], str] = field(default_factory=dict)
    # In mode nat: the ports that a server answers from.
    answers: dict[_Place, list[tuple[int, int, str]]] = field(default_factory=dict)
    modes: dict[_Socket, Mode] = field(default_factory=dict)
    sockets: dict[tuple[_Socket, str], str] = field(default_factory=dict)

    def refuse_service(self, service: Service) -> Refusal | None:
        """Why it can't be in force; otherwise its VIP is taken from here on."""
        beside = self.ranges.setdefault((service.vip, service.protocol), [])
        crossed = [each.name for each in beside if _do_cross(each, service)]
        holder = crossed[0] if crossed else self.endpoints.setdefault(service.endpoint, service.name)
        if holder != service.name:
            return (
                f"VIP {describe_vip(service)} belongs to service {holder!r} already",
                "choose another address, port or protocol, or remove the other service first",
            )
        if service.end_port:
            beside.append(service)
        return None

    def refuse_backend(self, path: str, owner: Service, backend: Backend) -> Refusal | None:
        """Why it can't be in force; otherwise what it needs for itself is taken from here on."""
        return (
            _misfit(owner, backend)
            or self._refuse_quic_id(path, backend)
            or self._refuse_answers(path, owner, backend)
            or self._refuse_mode(owner, backend)
            or self._refuse_socket(path, owner, backend)
        )

    def _refuse_quic_id(self, path: str, backend: Backend) -> Refusal | None:
        if backend.quic_id is None:
            return None
        twin = self.quic_ids.setdefault((backend.service, backend.quic_id), path)
        if twin == path:
            return None
        return (
            f"quic_id {backend.quic_id} is that of backend {twin!r} already",
            "give each server an ID of its own",
        )

    def _refuse_answers(self, path: str, owner: Service, backend: Backend) -> Refusal | None:
        """A server's range of ports is found by its address alone, so there is one of them at most."""
        if owner.mode is not Mode.NAT:
            return None
        first, last = backend.port or owner.port, backend.port or owner.end_port or owner.port
        spans = self.answers.setdefault((backend.address, owner.protocol), [])
        for low, high, other in spans:
            two_ranges = low < high and first < last
            overlap = low <= last and first <= high and (low, high) != (first, last)
            if two_ranges or overlap:
                return (
                    f"answers from {backend.address} could be those of backend {other!r}, too: one of"
                    " the two serves a range of ports",
                    "use mode fullnat for one of the services, or another server",
                )
        spans.append((first, last, path))
        return None

    def _refuse_mode(self, owner: Service, backend: Backend) -> Refusal | None:
        """A socket is one of nat or of fullnat."""
        if owner.mode not in TRANSLATIONS:
            return None
        at = _socket(owner, backend)
        other = self.modes.setdefault(at, owner.mode)
        if other is owner.mode:
            return None
        return (
            f"{_describe(at)} is a backend in mode {other} already",
            f"use one mode for both services, or another port than {at[1]}",
        )

    def _refuse_socket(self, path: str, owner: Service, backend: Backend) -> Refusal | None:
        """In nat mode the way back is one lookup, so a socket may belong to one service only. In
        fullnat it may belong to several, as each flow has a port of ours there."""
        at = _socket(owner, backend)
        scope = "" if owner.mode is Mode.NAT else owner.name
        holder = self.sockets.setdefault((at, scope), path)
        if holder == path:
            return None
        return (
            f"{_describe(at)} is backend {holder!r} already",
            "give that one the weight instead; in nat mode, another service needs another port",
        )


def _socket(owner: Service, backend: Backend) -> _Socket:
    return backend.address, backend.port or owner.one_port or 0, owner.protocol


def _describe(at: _Socket) -> str:
    address, port, protocol = at
    return f"{describe_socket(address, port)}/{protocol}"


def _misfit(service: Service, backend: Backend) -> Refusal | None:
    """Why this backend can't serve this service."""
    if backend.quic_id is not None and len(backend.quic_id) != 2 * service.quic_id_bytes:
        return (
            f"quic_id {backend.quic_id} has {len(backend.quic_id) // 2} bytes, but service"
            f" {service.name!r} has quic_id_bytes {service.quic_id_bytes}",
            f"lbctl service set {service.name} --quic-id-bytes {len(backend.quic_id) // 2}",
        )
    if service.mode is Mode.NAT and service.end_port and backend.port:
        return (
            f"in mode nat, answers from port {backend.port} don't tell which of the ports"
            f" {service.ports} they are for",
            "leave the port out, or use mode fullnat",
        )
    if service.mode not in TRANSLATIONS and backend.port not in (None, service.one_port):
        return (
            f"mode {service.mode} can't change the port from {service.ports} to {backend.port}",
            "leave the port out, or use mode nat or fullnat",
        )
    if service.mode in TRANSLATIONS and backend.address.version != service.vip.version:
        return (
            f"mode {service.mode} can't turn IPv{service.vip.version} into IPv{backend.address.version}",
            f"give the server's IPv{service.vip.version} address",
        )
    if backend.max_connections is not None and service.mode is not Mode.FULLNAT:
        return (
            f"max_connections: in mode {service.mode} connections leave nothing behind that could be"
            " counted",
            "leave it out, use mode fullnat, or let the server's own check answer 503 when it is full",
        )
    if service.health and service.health.via is Via.VIP:
        return _misfit_of_check(service, backend)
    return None


def _misfit_of_check(service: Service, backend: Backend) -> Refusal | None:
    """Why it can't be checked by the way of clients' packets."""
    own = backend.health
    if own is not None and not own.enabled:
        return None
    if backend.address.version != service.vip.version:
        return (
            f"a check via the VIP can't go from IPv{service.vip.version} to"
            f" IPv{backend.address.version}",
            f"give the server's IPv{service.vip.version} address, or check it straight (via: backend)",
        )
    port = own and (own.port or (own.check and own.check.port))
    if port not in (None, backend.port or service.port):
        return (
            f"a check via the VIP can't ask port {port}: clients' packets go to"
            f" {backend.port or service.port}",
            "leave the port out, or check straight (via: backend)",
        )
    if own is not None and isinstance(own.check, ExecCheck):
        return (
            "a program makes connections of its own, which can't be sent by the VIP",
            "use another kind of check, or check straight (via: backend)",
        )
    return None


def _do_cross(one: Service, other: Service) -> bool:
    """Do both have a range of ports, with some in common?"""
    if not one.end_port or not other.end_port:
        return False
    return one.port <= other.end_port and other.port <= one.end_port
