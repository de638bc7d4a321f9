"""The kernel's view (lb/datapath/view.py), as far as lbctl uses it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from lb.core.state import DesiredState
from lb.errors import LbError
from lb.model.objects import Address
from lb.model.objects import Protocol as Transport
from lb.settings import Settings


class Counter(Protocol):
    """Packets and bytes."""

    @property
    def packets(self) -> int:
        """Packets since the map was made."""

    @property
    def bytes(self) -> int:
        """Bytes since the map was made."""


class Stats(Counter, Protocol):
    """Counters of one service or backend."""

    @property
    def flows(self) -> int:
        """New flows."""

    @property
    def reply_packets(self) -> int:
        """Packets on the way back, as far as they pass through this node (mode nat)."""

    @property
    def reply_bytes(self) -> int:
        """Bytes on the way back."""


class Moving(Protocol):
    """Slots in a row that moved lately."""

    @property
    def first(self) -> int:
        """The first of them."""

    @property
    def length(self) -> int:
        """How many there are."""

    @property
    def origin(self) -> str | None:
        """The backend that they had."""

    @property
    def closes(self) -> int:
        """When the window closes, in Unix seconds."""


class Trace(Protocol):
    """Where a packet would go, and why."""

    @property
    def service(self) -> str | None:
        """The service that the packet is for."""

    @property
    def pool(self) -> str | None:
        """The pool that a rule sends the client to."""

    @property
    def slot(self) -> int | None:
        """The slot that the flow hashes to."""

    @property
    def slot_backend(self) -> str | None:
        """The backend that the slot names."""

    @property
    def tracked_backend(self) -> str | None:
        """The backend that the flow is on already."""

    @property
    def backend(self) -> str | None:
        """The backend that the packet would reach."""

    @property
    def why(self) -> Sequence[str]:
        """The steps, one sentence each."""

    @property
    def verdict(self) -> str:
        """The outcome, as the counters call it."""


class MirrorStats(Protocol):
    """What was copied of a service's traffic."""

    @property
    def copies(self) -> int:
        """Packets."""

    @property
    def bytes(self) -> int:
        """Of whole frames."""

    @property
    def flows(self) -> int:
        """Connections (TCP)."""

    @property
    def given_up(self) -> int:
        """Connections and datagrams whose copy is lost."""

    @property
    def answers(self) -> int:
        """Packets that answered copies, and were dropped."""


class Kernel(Protocol):
    """What lbctl asks of KernelView."""

    def service_stats(self, service: str) -> Stats | None:
        """Counters of a service; None if the kernel doesn't know it."""

    def mirror_stats(self, service: str) -> MirrorStats | None:
        """Of a service's copies; None if the kernel doesn't know it."""

    def backend_stats(self, service: str, backend: str) -> Stats | None:
        """Counters of a backend; None if the kernel doesn't know it."""

    def outcomes(self) -> Mapping[str, Counter]:
        """Packets and bytes per outcome."""

    def slot_counts(self, service: str) -> Mapping[str, int] | None:
        """Slots per backend that the kernel holds now."""

    def slots(self, service: str) -> Sequence[str | None] | None:
        """The backend of each slot that the kernel holds now; None if it doesn't know the service."""

    def moving(self, service: str) -> Sequence[Moving] | None:
        """The slots that moved lately, with windows that are open."""

    def trace(
        self, protocol: Transport, client: Address, client_port: int, vip: Address, vip_port: int
    ) -> Trace:
        """Where a packet of this flow would go."""


def open_kernel(settings: Settings, state: DesiredState) -> Kernel:
    """`state` has the names. Raises DatapathError: lbd was never started here, or this user may not
    look."""
    # Only here: most commands, and most machines that run lbctl, have no use for NumPy and bpf().
    from lb.datapath.view import KernelView

    return KernelView.open(settings.pin_dir, state)


def kernel_if_any(settings: Settings, state: DesiredState) -> Kernel | None:
    """None where the kernel can't be seen: lists then show `-` in its columns."""
    # Without the right to look, don't even import what would look: it takes 0.3 s.
    if not os.access(settings.pin_dir, os.R_OK | os.X_OK):
        return None
    try:
        return open_kernel(settings, state)
    except LbError:
        return None
