"""Mode fullnat: connections as they go on, from both ends; the kernel's programs beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPerror6, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lb.core.reference import (
    Backend,
    Endpoint,
    NatBack,
    NatState,
    Outcome,
    Range,
    Service,
    World,
    fullnat,
    process,
)
from lb.model.objects import Mode

from . import harness, netns
from .harness import Kernel
from .strategies import INGRESS, OURS, PEER

VIPS = {4: ip_address("10.0.0.1"), 6: ip_address("2001:db8::1")}
OWN = {4: ip_address("10.1.0.100"), 6: ip_address("2001:db8:b::100")}
SERVERS = {4: ip_address("10.1.0.1"), 6: ip_address("2001:db8:b::1")}
CLIENTS = {4: ip_address("198.51.100.2"), 6: ip_address("2001:db8:a::2")}
ROUTERS = {4: "10.1.0.254", 6: "2001:db8:b::fe"}
SEED = (11, 22)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
HOOKS = pytest.mark.parametrize("hook", ["xdp", "tc"])


class Flow:
    """A connection of one client through a kernel, each packet held against the model."""

    def __init__(self, kernel: Kernel, version: int, world: World) -> None:
        self.kernel, self.version, self.world = kernel, version, world
        self.port = 0  # ours
        kernel.install(world)

    def client(self, flags: str) -> Outcome:
        ends = CLIENTS[self.version], VIPS[self.version]
        outcome, out = self.run(*ends, TCP(sport=4000, dport=80, flags=flags))
        if outcome is Outcome.FORWARD_REDIRECT:
            self.port = Ether(out)[TCP].sport
        return outcome

    def server(self, flags: str) -> Outcome:
        source = self.world.backends[1].source
        segment = TCP(sport=8080, dport=self.port, flags=flags)
        return self.run(self.world.backends[1].address, source, segment)[0]

    def run(self, source: object, destination: object, inner: Packet) -> tuple[Outcome, bytes]:
        frame = wrapped(self.version, source, destination, inner)
        bindings, translations = self.kernel.bindings(), self.kernel.translations()
        (held,) = bindings.values() or (None,)
        now = replace(
            self.world,
            bindings=bindings,
            translations=translations,
            now=held.seen if held else 0,
        )
        expected, seen = process(frame, INGRESS, now), self.kernel.run(frame, INGRESS)
        assert not harness.compare(self.kernel, frame, expected, seen)
        (outcome,) = seen.outcomes
        return outcome, seen.frame

    @property
    def states(self) -> tuple[NatState, NatState]:
        """What was seen of the client, and of the server."""
        (binding,), (client,) = self.kernel.bindings().values(), self.kernel.translations().values()
        return binding.state, client.state


def wrapped(version: int, source: object, destination: object, inner: Packet) -> bytes:
    ip = (IPv6 if version == 6 else IP)(src=str(source), dst=str(destination))
    return bytes(Ether(src=PEER.hex(":"), dst=OURS.hex(":")) / ip / inner)


def one_service(version: int, source: object) -> World:
    vip, server = VIPS[version], SERVERS[version]
    backend = Backend(
        server, 8080, ifindex=netns.B, dmac=PEER, smac=bytes([2, 0, 0, 0, 4, netns.B]), source=source
    )
    return World(
        links=dict.fromkeys((INGRESS, netns.B), OURS),
        vips={Endpoint(vip, 80, 6): 1},
        services={1: Service(SEED, vip, 80, 6, mode=Mode.FULLNAT)},
        tables={1: np.ones(65536, dtype=np.uint32)},
        backends={1: backend},
        nat_back={Endpoint(server, 8080, 6): NatBack(1, 1)},
        route=netns.route,
    )


@pytest.fixture(autouse=True)
def table(kernels: dict[str, Kernel]) -> Iterator[None]:
    """Service 1's table, in both kernels."""
    shared = harness.TableMaps()
    for kernel in kernels.values():
        kernel.use_tables({1: shared})
    harness.fill_table(shared, np.ones(65536, dtype=np.uint32))
    yield
    shared.close()


ANSWERED, FIN, RST, OPENING = NatState.ANSWERED, NatState.FIN, NatState.RST, NatState.OPENING
NONE = NatState(0)


@HOOKS
@VERSIONS
def test_a_connection_opens_when_the_client_acknowledges(
    kernels: dict[str, Kernel], hook: str, version: int
) -> None:
    """Not when the server answers: so a SYN flood is not taken for connections."""
    flow = Flow(kernels[hook], version, one_service(version, OWN[version]))
    flow.client("S")
    assert flow.states == (OPENING, NONE)
    flow.server("SA")
    flow.client("S")  # sent again
    assert flow.states == (OPENING, ANSWERED)
    flow.client("A")
    assert flow.states == (NONE, ANSWERED)
    flow.client("S")  # somebody's who knows the ports
    assert flow.states == (NONE, ANSWERED)


@HOOKS
@VERSIONS
def test_a_reset_is_no_acknowledgement(kernels: dict[str, Kernel], hook: str, version: int) -> None:
    flow = Flow(kernels[hook], version, one_service(version, OWN[version]))
    flow.client("S")
    flow.server("SA")
    flow.client("R")
    assert flow.states == (OPENING | RST, ANSWERED)


@HOOKS
@VERSIONS
def test_who_goes_on_was_not_reset(kernels: dict[str, Kernel], hook: str, version: int) -> None:
    """A RST need not have the right sequence number (RFC 7857, 2.2)."""
    flow = Flow(kernels[hook], version, one_service(version, OWN[version]))
    for who, flags in ((flow.client, "S"), (flow.server, "SA"), (flow.client, "A")):
        who(flags)
    flow.client("R")
    flow.server("R")
    assert flow.states == (RST, ANSWERED | RST)
    flow.client("PA")
    assert flow.states == (NONE, ANSWERED | RST)
    flow.server("FA")
    assert flow.states == (NONE, ANSWERED | FIN)
    flow.server("A")
    assert flow.states == (NONE, ANSWERED | FIN)


@HOOKS
@VERSIONS
def test_a_server_that_moved_gets_new_connections(
    kernels: dict[str, Kernel], hook: str, version: int
) -> None:
    """lbd gives it another generation (test_kernel.py). What was bound to its old socket is told."""
    flow = Flow(kernels[hook], version, one_service(version, OWN[version]))
    for who, flags in ((flow.client, "S"), (flow.server, "SA"), (flow.client, "A")):
        who(flags)
    server = ip_address(int(SERVERS[version]) + 1)
    world = replace(
        flow.world,
        backends={1: replace(flow.world.backends[1], address=server, generation=2)},
        nat_back={Endpoint(server, 8080, 6): NatBack(1, 1)},
        bindings=kernels[hook].bindings(),
        translations=kernels[hook].translations(),
    )
    flow = Flow(kernels[hook], version, world)
    assert flow.client("A") is Outcome.REJECT_RST
    assert flow.client("S") is Outcome.FORWARD_REDIRECT
    assert flow.server("SA") is Outcome.REPLY_REDIRECT


@HOOKS
@VERSIONS
def test_ports_of_services_are_not_ours_to_give(
    kernels: dict[str, Kernel], hook: str, version: int
) -> None:
    """Where packets to servers come from an address that is a VIP, too: the answers to such a port would
    be taken for that service's."""
    vip = VIPS[version]
    first, second, third, *_ = fullnat.candidates(SEED, CLIENTS[version], 4000, 80)
    world = one_service(version, vip)
    spans = {Range(vip, second, second, 6): 1}
    world = replace(world, vips={**world.vips, Endpoint(vip, first, 6): 1}, ranges=spans)
    flow = Flow(kernels[hook], version, world)
    assert flow.client("S") is Outcome.FORWARD_REDIRECT
    assert flow.port == third
    assert flow.server("SA") is Outcome.REPLY_REDIRECT
    # The same port of another protocol is nobody's.
    world = one_service(version, vip)
    world = replace(world, vips={**world.vips, Endpoint(vip, first, 17): 1})
    flow = Flow(kernels[hook], version, world)
    flow.client("S")
    assert flow.port == first


@HOOKS
@VERSIONS
def test_errors_about_what_a_vip_sent_to_servers_reach_the_client(
    kernels: dict[str, Kernel], hook: str, version: int
) -> None:
    vip = VIPS[version]
    flow = Flow(kernels[hook], version, one_service(version, vip))
    flow.client("S")
    ip, about = (IPv6, IPerror6) if version == 6 else (IP, IPerror)
    sent = ip(src=str(vip), dst=str(SERVERS[version])) / TCP(sport=flow.port, dport=8080)
    answered = ip(src=str(vip), dst=str(CLIENTS[version])) / TCP(sport=80, dport=4000)
    unknown = ip(src=str(vip), dst=str(SERVERS[version])) / TCP(sport=flow.port + 1, dport=8080)
    outcomes = []
    for quote in (sent, answered, unknown):
        too_big = ICMPv6PacketTooBig(mtu=1300) if version == 6 else ICMP(type=3, code=4, nexthopmtu=1300)
        outcome, out = flow.run(ROUTERS[version], vip, too_big / quote)
        outcomes.append(outcome)
        if quote is sent:
            got = Ether(out)
            assert got[ip].dst == str(CLIENTS[version])
            assert (got[about].src, got[about].dst) == (str(CLIENTS[version]), str(vip))
            assert (got[TCPerror].sport, got[TCPerror].dport) == (4000, 80)
    assert outcomes == [Outcome.REPLY_REDIRECT, Outcome.FORWARD_REDIRECT, Outcome.PASS_NOT_OURS]
