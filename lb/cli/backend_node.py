"""lbctl backend-node: what a server needs that takes traffic through a tunnel (modes ipip and gue), or
that observes its own connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lb.cli import words
from lb.cli.options import command
from lb.cli.output import Table, note, number
from lb.cli.session import Session
from lb.errors import UserError
from lb.model.objects import Address

if TYPE_CHECKING:
    from pyroute2 import IPRoute

app = typer.Typer(
    help="On a server: open what nodes send through a tunnel; observe its connections.",
    no_args_is_help=True,
)

PINS = Path("/sys/fs/bpf/lb-backend")
PinsOption = Annotated[
    Path, typer.Option("--pin-dir", metavar="PATH", help="Where maps and program are pinned (bpffs).")
]


@command(app, "attach")
def attach(
    session: Session,
    interface: Annotated[
        list[str],
        typer.Option(
            "--interface",
            metavar="IFACE",
            help="Where the tunnel's packets come in; repeat it for more.",
        ),
    ],
    vip: Annotated[
        list[str],
        typer.Option("--vip", metavar="ADDRESS", help="VIP to open them for; repeat it for more."),
    ],
    pin_dir: PinsOption = PINS,
) -> None:
    """Take the outer header off what nodes send here by ipip or gue, with a tc program.

    Run it on the server, as root; it stays when the command ends, and until the machine restarts. The
    VIPs replace those of an earlier call. A server that has tunnel devices doesn't need it.
    """
    from lb.datapath import decap
    from lb.datapath.release import OTHER_FAMILY

    vips = [words.address(text, "--vip") for text in vip]
    with _netlink() as ip:
        decap.attach_to(ip, interface, vips, pin_dir)
        for missing in _not_local(ip, vips):
            note(
                f"{missing} is no address of this machine yet, so the kernel won't take its packets:"
                f" ip addr add {missing}/{missing.max_prefixlen} dev lo"
            )
        if not OTHER_FAMILY.is_here():
            note(f"{OTHER_FAMILY.what}: from Linux {OTHER_FAMILY.words} on; here {OTHER_FAMILY.instead}")
    _show(session, pin_dir)


@command(app, "observe")
def observe(
    session: Session,
    interface: Annotated[
        list[str],
        typer.Option(
            "--interface",
            metavar="IFACE",
            help="Where clients' packets come in and answers go out; repeat it for more.",
        ),
    ],
    service: Annotated[
        list[str],
        typer.Option("--service", metavar="NAME", help="Service to observe; repeat it for more."),
    ],
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Its backend that this machine is; by default the one with an address of this machine.",
        ),
    ] = "",
    pin_dir: PinsOption = PINS,
) -> None:
    """Count what becomes of connections to services here, and report it to the store, until stopped.

    For modes dsr, ipip and gue, whose answers pass no node. Run it on the server, as root: it attaches
    a tc program that looks and changes nothing, and that goes on counting when this command has ended,
    until `lbctl backend-node detach`. `lbctl service metrics` prefers what it reports to what nodes do.
    """
    import signal
    import threading

    from lb.datapath import selfwatch
    from lb.node.selfwatch import SelfObserver

    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    settings = session.settings
    with _netlink() as ip:
        watch = selfwatch.attach_to(ip, interface, settings.limits, settings.observation, pin_dir)
        note(f"attached to {', '.join(interface)}")
        SelfObserver(session.store, ip, watch, service, backend).run(stop)


@command(app, "detach")
def detach(session: Session, pin_dir: PinsOption = PINS) -> None:
    """Take the programs off all interfaces, and remove their maps."""
    from lb.datapath import decap, selfwatch

    with _netlink() as ip:
        released = sorted({*selfwatch.detach_all(ip, pin_dir), *decap.detach_all(ip, pin_dir)})
    session.emit({"interfaces": released}, f"detached from {', '.join(released) or 'no interface'}")


@command(app, "show")
def show(session: Session, pin_dir: PinsOption = PINS) -> None:
    """Show what is attached here, and what it has seen."""
    _show(session, pin_dir)


def _show(session: Session, pin_dir: Path) -> None:
    from lb.datapath import decap

    with _netlink() as ip:
        found = decap.look(ip, pin_dir)
    counters = {each.name.lower(): count for each, count in found.counters.items()}
    session.emit(
        {
            "interfaces": list(found.interfaces),
            "vips": [str(vip) for vip in found.vips],
            "other_family": found.other_family,
            "counters": {
                name: {"packets": packets, "bytes": size} for name, (packets, size) in counters.items()
            },
        },
        f"attached to {', '.join(found.interfaces)} for {', '.join(map(str, found.vips))}"
        + (
            "" if found.other_family else "; not between IPv4 and IPv6, for which this kernel is too old"
        ),
        Table(
            ("OUTCOME", "PACKETS", "BYTES"),
            [(name, number(packets), number(size)) for name, (packets, size) in counters.items()],
            right=frozenset({"PACKETS", "BYTES"}),
        ),
    )


def _netlink() -> IPRoute:
    from pyroute2 import IPRoute

    if os.geteuid() != 0:
        raise UserError("this needs root", hint="sudo lbctl backend-node …")
    return IPRoute()


def _not_local(ip: IPRoute, vips: list[Address]) -> list[Address]:
    local = {each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS") for each in ip.get_addr()}
    return [vip for vip in vips if str(vip) not in local]
