"""Does this machine forward? Modes nat and fullnat ask the kernel's FIB for the way back to a client,
and it answers only for interfaces that forward (bpf_fib_lookup: BPF_FIB_LKUP_RET_FWD_DISABLED). Without,
each answer of a backend is lost, and nothing but its counter `reply_pass` would tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lb.model.objects import TRANSLATIONS, Service
from lb.model.reports import Problem

SETTINGS = Path("/proc/sys/net")
_SWITCHES = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def translated(services: Iterable[Service]) -> frozenset[int]:
    """The IP versions of clients whose answers have to find their way back."""
    return frozenset(each.vip.version for each in services if each.mode in TRANSLATIONS)


def switch(version: int) -> str:
    """The sysctl that turns it on for all interfaces."""
    return _SWITCHES[version]


@dataclass
class Forwarding:
    """What was found when somebody looked last."""

    node: str
    problems: tuple[Problem, ...] = ()
    _versions: frozenset[int] = frozenset()

    def follow(self, versions: frozenset[int], interfaces: Iterable[str]) -> None:
        """These are needed from now on."""
        self._versions = versions
        self.look(interfaces)

    def look(self, interfaces: Iterable[str]) -> bool:
        """True if something else is found than before: no notification tells of it."""
        before, names = self.problems, list(interfaces)
        self.problems = tuple(
            self._problem(version, closed)
            for version in sorted(self._versions)
            if (closed := [name for name in names if _is_off(version, name)])
        )
        return before != self.problems

    def _problem(self, version: int, closed: list[str]) -> Problem:
        return Problem(
            where=self.node,
            message=f"IPv{version} is not forwarded on {', '.join(closed)}: answers of backends in modes"
            " nat and fullnat that come in there don't get back to clients",
            hint=f"sysctl -w {switch(version)}=1",
            warning=True,
        )


def _is_off(version: int, interface: str) -> bool:
    # Each name is one component: those of VLANs have dots, so sysctl's own spelling won't do.
    try:
        return (SETTINGS / f"ipv{version}/conf/{interface}/forwarding").read_text().strip() == "0"
    except OSError:  # no such interface now, or none of this IP version: others tell
        return False
