"""What can be seen of connections, by forwarding mode and from where. Pure.

docs/howto/observe.md shows the same table, and a test keeps them equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from lb.model.flows import Vantage
from lb.model.objects import TRANSLATIONS, Mode

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Sight:
    """One figure: whether it is seen where both directions pass the node (nat, fullnat), by the node
    where only the client's packets do (dsr, ipip, gue), and at the backend itself."""

    figure: str
    both_ways: str
    one_way: str
    backend: str


SIGHTS = (
    Sight("new connections, SYNs sent again", YES, YES, "yes, of what arrives"),
    Sight("refused (RST)", YES, "no: as unanswered", YES),
    Sight(
        "unanswered", YES, "yes: no ACK of the client's came", "yes, but no SYN that is lost on the way"
    ),
    Sight("resets by the client", YES, YES, YES),
    Sight("resets by the server", YES, NO, YES),
    Sight("sent again by the client", YES, YES, YES),
    Sight("sent again by the server", "yes, if lost behind the node", NO, YES),
    Sight(
        "time of the handshake",
        "node to server and back",
        "node to server, to client and back",
        "the server's own part",
    ),
    Sight("requests, unserved", YES, "yes, by the client's acknowledgements", YES),
    Sight(
        "time to the first byte",
        "node to server and back",
        "until the client acknowledges it (its delay, up to 40 ms with Linux, included)",
        "the server's own part",
    ),
    Sight("HTTP/1.x status", "yes, without TLS", NO, "yes, without TLS"),
)


def of(figure: Sight, mode: Mode, vantage: Vantage) -> str:
    """How this figure is seen in this mode from there."""
    if vantage is Vantage.BACKEND:
        return figure.backend
    return figure.both_ways if mode in TRANSLATIONS else figure.one_way


def blind(mode: Mode, vantage: Vantage) -> list[str]:
    """What isn't seen, or not as it says, in words."""
    found = []
    for figure in SIGHTS:
        words = of(figure, mode, vantage)
        if words != YES:
            found.append(f"{figure.figure}: {words.removeprefix('yes, ').removeprefix('yes: ')}")
    return found
