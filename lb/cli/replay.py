"""lbctl replay: what the program would do with the frames of a capture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from lb.cli.options import command
from lb.cli.output import Table, number
from lb.cli.session import Session
from lb.errors import NotFoundError, UserError
from lb.settings import Hook

if TYPE_CHECKING:
    from lb.datapath.attach import Interface

_ETHERNET = 1  # DLT_EN10MB
_LONGEST = 10_000  # bytes of a frame: jumbo ones, and room


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "replay")(replay)


def replay(
    session: Session,
    capture: Annotated[
        Path, typer.Argument(metavar="CAPTURE.pcap", help="pcap or pcapng, of Ethernet frames.")
    ],
    interface: Annotated[
        str | None,
        typer.Option(
            "--interface",
            metavar="IFACE",
            help="Where the frames come in. Default: the first in lb.toml.",
        ),
    ] = None,
    to_us: Annotated[
        bool,
        typer.Option(
            "--to-us", help="Address each frame to that interface: for a capture made elsewhere."
        ),
    ] = False,
    hook: Annotated[
        Hook | None,
        typer.Option("--hook", help="Which program: xdp or tc. They treat every frame alike."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="OUT.pcap", help="Write the frames as they would have left."),
    ] = None,
) -> None:
    """Send every frame of a capture through the program in the kernel, and show what became of it.

    Nothing is sent, and nothing that is alive is touched: services, backends and slots are the live
    ones, flows and counters are copies. It needs root, on a node.
    """
    from lb.datapath.replay import replaying

    if hook is Hook.AUTO or hook is Hook.XDP_GENERIC:
        raise UserError(
            f"--hook {hook} is no program of its own", hint="give xdp or tc, or leave it out"
        )
    frames = list(_frames(capture))
    state = session.state()
    where = _interface(session, interface)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        out = stack.enter_context(_created(write)) if write else None
        player = stack.enter_context(replaying(session.settings.pin_dir, state, where.index, hook))
        writer = _writer(out) if out else None
        for at, (seconds, frame) in enumerate(frames, 1):
            done = player.send(where.mac + frame[6:] if to_us else frame, where.index)
            pool = (
                state.backends[done.service, done.backend].pool
                if done.service and done.backend and (done.service, done.backend) in state.backends
                else None
            )
            rows.append(
                {
                    "frame": at,
                    "time": seconds,
                    "bytes": len(frame),
                    "verdict": done.verdict,
                    "outcome": done.outcome,
                    "service": done.service,
                    "pool": pool,
                    "backend": done.backend,
                }
            )
            if writer and done.frame is not None:
                writer.writepkt(done.frame, seconds)
        data = {"hook": player.hook.value, "interface": where.name, "frames": rows}
    outcomes = Counter(row["outcome"] for row in rows)
    said = ", ".join(f"{name} {number(count)}" for name, count in outcomes.most_common())
    columns = ("FRAME", "BYTES", "VERDICT", "OUTCOME", "SERVICE", "POOL", "BACKEND")
    session.emit(
        data,
        Table(
            columns,
            [tuple(str(row[name.lower()] or "-") for name in columns) for row in rows],
            right=frozenset({"FRAME", "BYTES"}),
        ),
        f"{number(len(rows))} frames: {said or 'none'}",
    )


def _frames(capture: Path) -> Iterator[tuple[float, bytes]]:
    import dpkt

    try:
        with capture.open("rb") as file:
            reader = dpkt.pcap.UniversalReader(file)
            if reader.datalink() != _ETHERNET:
                raise UserError(
                    f"{capture} holds no Ethernet frames (link type {reader.datalink()})",
                    hint="capture on one interface: tcpdump -i eth0 -w FILE",
                )
            for seconds, frame in reader:
                if len(frame) > _LONGEST:
                    raise UserError(
                        f"{capture} holds a frame of {len(frame):,} bytes, which no wire carries",
                        hint="capture with offloads off: ethtool -K IFACE gro off tso off gso off",
                    )
                yield float(seconds), bytes(frame)
    except FileNotFoundError:
        raise NotFoundError(f"{capture} does not exist", hint="make it: tcpdump -w FILE") from None
    except IsADirectoryError:
        raise UserError(f"{capture} is a directory", hint="name a capture in it") from None
    except OSError as error:
        raise UserError(
            f"{capture}: {error.strerror}", hint="check the name and its permissions"
        ) from None
    except (ValueError, dpkt.dpkt.Error) as error:
        raise UserError(f"{capture} is no capture: {error}", hint="give a pcap or pcapng file") from None


@contextmanager
def _created(file: Path) -> Iterator[BinaryIO]:
    try:
        stream = file.open("wb")
    except OSError as error:
        raise UserError(
            f"--write {file}: {error.strerror}", hint="name a file in a folder that is there"
        ) from None
    with stream:
        yield stream


def _writer(file: Any) -> Any:
    import dpkt

    return dpkt.pcap.Writer(file, nano=True)


def _interface(session: Session, name: str | None) -> Interface:
    from pyroute2 import IPRoute

    from lb.datapath import attach

    named = name or next(iter(session.settings.interfaces), None)
    if named is None:
        raise UserError("no interface is named", hint="give --interface, or interfaces in lb.toml")
    with IPRoute() as ip:
        return attach.find(ip, named)
