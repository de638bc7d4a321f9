"""Which Linux this is: what needs a newer one than the least that lb runs on, and what to do without it.

Nothing in the data path of a node does. `lbctl doctor` names what is missing.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

Version = tuple[int, int]

LEAST: Version = (5, 10)


def version(release: str | None = None) -> Version:
    """Major and minor number of the running kernel, or of what `uname -r` says elsewhere; (0, 0) where
    it says no numbers."""
    found = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True)
class Feature:
    """Something that a kernel can do `since` a version; `instead`: what to do on an older one."""

    since: Version
    what: str
    instead: str

    @property
    def words(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.since))

    def is_here(self) -> bool:
        """Can the running kernel do it?"""
        return version() >= self.since


# BPF_PROG_TEST_RUN says by which interface a frame came in.
XDP_REPLAY = Feature((5, 15), "`lbctl replay` under XDP", "it works under tc (`lbd --hook tc`)")
# A program may tell the kernel that a packet's family changes: BPF_F_ADJ_ROOM_DECAP_L3_*.
OTHER_FAMILY = Feature(
    (6, 3),
    "`lbctl backend-node` opens IPv4 in IPv6, and IPv6 in IPv4",
    "the kernel's own tunnel devices do (`ip link add … type sit`, `… type ip6tnl mode any`)",
)
FEATURES = (XDP_REPLAY, OTHER_FAMILY)
