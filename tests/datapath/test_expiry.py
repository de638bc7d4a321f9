"""Mode fullnat: flows that are over give their ports back, each after its own silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.core.reference import Binding, Client, FlowKey, NatState, Translated, World
from lb.datapath import expiry
from lb.settings import Timeouts

from .harness import Kernel

RATE = 100.0
NOW = 2**32 + 1_000_000  # jiffies that have wrapped around
TIMEOUTS = Timeouts()
CLIENT, OURS, SERVER = (ip_address(f"198.51.100.{n}") for n in (1, 2, 3))
NONE, ANSWERED, FIN, RST = NatState(0), NatState.ANSWERED, NatState.FIN, NatState.RST
OPENING = NatState.OPENING
KEY = FlowKey(CLIENT, 1, 4000, 80)
BACK = Translated(SERVER, 8080, OURS, 2000, 6)


def expire(kernel: Kernel) -> expiry.Expired:
    return expiry.expire(kernel.maps, TIMEOUTS, lambda: NOW, RATE)


def world(states: tuple[NatState, NatState], idle: float, proto: int = 6) -> World:
    seen = (NOW - int(idle * RATE)) % 2**32
    return World(
        bindings={KEY: Binding(OURS, 1, 1, seen, BACK.port, states[0])},
        translations={replace(BACK, proto=proto): Client(KEY, 1, seen, states[1])},
    )


@pytest.mark.parametrize(
    ("client", "server", "proto", "seconds"),
    [
        (OPENING, NONE, 6, TIMEOUTS.tcp_opening),
        # A SYN flood: the server answers, and nobody acknowledges.
        (OPENING, ANSWERED, 6, TIMEOUTS.tcp_opening),
        (OPENING, ANSWERED | RST, 6, TIMEOUTS.tcp_closed),
        (OPENING | RST, ANSWERED, 6, TIMEOUTS.tcp_closed),
        # Also those of an lb that didn't note what opens.
        (NONE, NONE, 6, TIMEOUTS.tcp_opening),
        (NONE, ANSWERED, 6, TIMEOUTS.tcp_established),
        (FIN, ANSWERED, 6, TIMEOUTS.tcp_closing),
        (NONE, ANSWERED | FIN, 6, TIMEOUTS.tcp_closing),
        (FIN, ANSWERED | FIN, 6, TIMEOUTS.tcp_closed),
        (RST, ANSWERED, 6, TIMEOUTS.tcp_closing),
        (NONE, ANSWERED | RST, 6, TIMEOUTS.tcp_closing),
        (RST, ANSWERED | FIN, 6, TIMEOUTS.tcp_closed),
        (RST, ANSWERED | RST, 6, TIMEOUTS.tcp_closed),
        (NONE, NONE, 17, TIMEOUTS.udp_unanswered),
        (NONE, ANSWERED, 17, TIMEOUTS.udp),
    ],
)
def test_each_state_has_its_time(
    kernels: dict[str, Kernel], client: NatState, server: NatState, proto: int, seconds: int
) -> None:
    kernel = kernels["xdp"]
    kernel.install(world((client, server), seconds - 1, proto))
    assert expire(kernel) == expiry.Expired(flows=0, left=1)
    assert len(kernel.bindings()) == len(kernel.translations()) == 1
    kernel.install(world((client, server), seconds + 1, proto))
    assert expire(kernel) == expiry.Expired(flows=1, left=0)
    assert kernel.bindings() == kernel.translations() == {}


def test_who_spoke_last_counts(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["xdp"]
    held = world((NONE, ANSWERED), TIMEOUTS.tcp_established + 100)
    for side in ("bindings", "translations"):
        fresh = {k: replace(v, seen=NOW % 2**32) for k, v in getattr(held, side).items()}
        kernel.install(replace(held, **{side: fresh}))
        assert expire(kernel).flows == 0


@pytest.mark.parametrize(
    ("client", "server", "count"),
    [
        (OPENING, NONE, 0),
        (OPENING, ANSWERED, 0),
        (NONE, ANSWERED, 1),
        (FIN, ANSWERED, 1),
        (FIN, ANSWERED | FIN, 0),
        (RST, ANSWERED, 0),
    ],
)
def test_connections_count_while_they_are_open(
    kernels: dict[str, Kernel], client: NatState, server: NatState, count: int
) -> None:
    kernels["xdp"].install(world((client, server), 0))
    found = expire(kernels["xdp"])
    assert found == expiry.Expired(flows=0, left=1)
    assert found.connections == ({(1, 1): count} if count else {})


def test_a_flow_that_is_seen_while_it_is_looked_for_stays(
    kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on while entries are read: it is asked after that."""
    kernel = kernels["xdp"]
    kernel.install(world((NONE, ANSWERED), -1))
    ticks = [NOW]
    for entries in (kernel.maps.bindings, kernel.maps.translations):

        def dump(read: Callable[[], tuple[bytes, bytes]] = entries.dump) -> tuple[bytes, bytes]:
            ticks.append(NOW + int(RATE))
            return read()

        monkeypatch.setattr(entries, "dump", dump)
    found = expiry.expire(kernel.maps, TIMEOUTS, lambda: ticks[-1], RATE)
    assert found == expiry.Expired(flows=0, left=1)


def test_half_a_flow_goes_soon(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["xdp"]
    held = world((NONE, ANSWERED), TIMEOUTS.tcp_closed + 1)
    kernel.install(replace(held, bindings={}))
    assert expire(kernel).flows == 1
    assert kernel.translations() == {}
    kernel.install(replace(held, translations={}))
    expire(kernel)
    assert kernel.bindings() == {}


def test_a_later_connection_on_the_same_ports_is_left_alone(kernels: dict[str, Kernel]) -> None:
    """The first one's way back is still there, under its own port."""
    kernel = kernels["xdp"]
    old = world((FIN, ANSWERED | FIN), TIMEOUTS.tcp_closed + 1)
    new = replace(BACK, port=3000)
    kernel.install(
        replace(
            old,
            bindings={KEY: Binding(OURS, 1, 1, NOW % 2**32, new.port)},
            translations={**old.translations, new: Client(KEY, 1, NOW % 2**32)},
        )
    )
    assert expire(kernel) == expiry.Expired(flows=1, left=1)
    assert list(kernel.translations()) == [new]
    assert kernel.bindings()[KEY].port == new.port


def test_nothing_to_do(kernels: dict[str, Kernel]) -> None:
    kernels["xdp"].install(World())
    assert expire(kernels["xdp"]) == expiry.Expired(flows=0, left=0)
