"""Health on the command line: the options that set checks, and how nodes' findings are shown."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from lb.cli.output import Table
from lb.core.state import DesiredState
from lb.errors import UserError
from lb.model.checkwords import FORMS, describe_check, parse_check
from lb.model.health import Health, NoCheck, Via
from lb.model.objects import Service
from lb.model.reports import BackendHealth

CheckOption = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="CHECK",
        help=f"How backends are checked: {FORMS}; none = not at all. All settings: `lbctl apply`.",
    ),
]
ViaOption = Annotated[
    Via | None,
    typer.Option(
        "--check-via",
        help="Which way checks go: straight to the backend, or as clients' packets to the VIP.",
    ),
]
PassiveOption = Annotated[
    bool | None,
    typer.Option(
        "--passive/--no-passive",
        help="Eject who fails for clients, by what the data path sees (modes nat, fullnat); settings:"
        " `lbctl apply`.",
    ),
]
IntervalOption = Annotated[
    str | None,
    typer.Option("--interval", metavar="TIME", help="From one check to the next: 2, 500ms, 10s."),
]
CheckTimeoutOption = Annotated[
    str | None,
    typer.Option("--check-timeout", metavar="TIME", help="After which no answer is a failure."),
]
RiseOption = Annotated[
    int | None, typer.Option("--rise", metavar="N", help="Passed checks in a row that make healthy.")
]
FallOption = Annotated[
    int | None, typer.Option("--fall", metavar="N", help="Failed checks in a row that make unhealthy.")
]
SlowStartOption = Annotated[
    str | None,
    typer.Option(
        "--slow-start", metavar="TIME", help="In which the weight of who got healthy ramps up."
    ),
]
PanicOption = Annotated[
    float | None,
    typer.Option(
        "--panic", metavar="PERCENT", help="If fewer of a pool are healthy, all are used; 0 = never."
    ),
]


def asked_health(
    current: Health | None, check: str | None, passive: bool | None, **settings: Any
) -> dict[str, Any] | None:
    """The health of a service as options ask for it, for the model to check. Raises UserError."""
    if check == "none" and passive is None and current and current.passive:
        passive = True  # which is another matter
    asked = _asked_checks(current, check, **settings)
    if not passive:
        asked = asked and {**asked, **({"passive": None} if passive is False else {})}
        only_passive = asked and asked["check"]["kind"] == "none" and not asked["passive"]
        return None if only_passive else asked
    held = current and current.passive
    return {
        **(asked or {"check": {"kind": "none"}}),
        "passive": held.model_dump() if held else {},
    }


def _asked_checks(current: Health | None, check: str | None, **settings: Any) -> dict[str, Any] | None:
    given = {name: value for name, value in settings.items() if value is not None}
    first = _option(next(iter(given), ""))
    if check == "none":
        if given:
            raise UserError("--check none leaves nothing to set", hint=f"leave out {first}")
        return None
    if check is None and current is None:
        if not given:
            return None
        raise UserError(
            f"{first.removeprefix('--')} of which check?", hint="add --check tcp, for example"
        )
    health = current.model_dump() if current else {}
    if check is not None:
        health["check"] = check_fields(check)
    return {**health, **given}


def _option(setting: str) -> str:
    name = f"check-{setting}" if setting in ("timeout", "via") else setting
    return "--" + name.replace("_", "-")


def check_fields(text: str) -> dict[str, Any]:
    """The short form of a check as plain values. Raises UserError."""
    try:
        return parse_check(text).model_dump()
    except ValueError as error:
        raise UserError(f"--check: {error}", hint="for example --check http:/healthz") from None


def summary(service: Service) -> str:
    """A service's check in half a line."""
    if service.health is None:
        return "not checked"
    health = service.health
    if isinstance(health.check, NoCheck):
        return "not checked, but who fails for clients is ejected"
    way = " via the VIP" if health.via is Via.VIP else ""
    return (
        f"checked with {describe_check(health.check)}{way} every {health.interval:g} s"
        f" (rise {health.rise}, fall {health.fall})"
        + (", and who fails for clients is ejected" if health.passive else "")
    )


def found_by(state: DesiredState, path: str) -> dict[str, BackendHealth]:
    """What each node found of a service/backend."""
    return {name: node.health[path] for name, node in sorted(state.nodes.items()) if path in node.health}


def state_of(found: Mapping[str, BackendHealth]) -> str | None:
    """The state that all nodes agree on, or "mixed"; None if none checks it."""
    states = {each.state for each in found.values()}
    return None if not states else states.pop() if len(states) == 1 else "mixed"


def cells(found: Mapping[str, BackendHealth], now: float | None = None) -> tuple[str, str]:
    """State and last check, for people: ("unhealthy 3m", "connection refused")."""
    state = state_of(found)
    if state is None:
        return "-", "-"
    worst = min(found.values(), key=lambda each: (each.state == "healthy", -each.since))
    if state == "mixed":
        healthy = sum(each.state == "healthy" for each in found.values())
        said = f"healthy on {healthy} of {len(found)}"
    else:
        said = f"{state} {age(worst.since, now)}"
        if worst.state == "healthy" and worst.share < 1:
            said += f", starting ({worst.share:.0%})"
    ejections = [each.ejection for each in found.values() if each.ejection]
    if ejections:
        last = max(ejections, key=lambda each: each.until)
        some = f" on {len(ejections)} of {len(found)}" if len(ejections) < len(found) else ""
        left = last.until - (time.time() if now is None else now)
        return f"{said}, ejected{some}, {max(0, round(left))}s left", worst.error or last.words
    return said, worst.error or milliseconds(worst.latency)


def milliseconds(latency: float | None) -> str:
    """For people; `-` if it isn't known."""
    return "-" if latency is None else f"{latency * 1000:.1f} ms"


def age(since: float, now: float | None = None) -> str:
    """How long ago, in the largest unit: 5s, 3m, 2h, 9d."""
    passed = max(0.0, (time.time() if now is None else now) - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if passed >= size:
            return f"{passed // size:.0f}{unit}"
    return f"{passed:.0f}s"


def history_table(found: Mapping[str, BackendHealth]) -> Table:
    """The transitions that nodes saw, oldest first."""
    changes = sorted((each.at, node, each) for node, one in found.items() for each in one.history)
    return Table(
        ("WHEN", "NODE", "BECAME", "WHY"),
        [
            (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)), node, each.state, each.words)
            for at, node, each in changes
        ],
        empty="no change yet",
        title="history",
    )


def detail_lines(found: Mapping[str, BackendHealth]) -> Iterable[str]:
    """What each node says of a backend, a line each."""
    for node, each in found.items():
        line = f"{node}: {each.state} for {age(each.since)}, check took {milliseconds(each.latency)}"
        yield line + (f"; last one failed: {each.error}" if each.error else "")
        if each.ejection:
            until = time.strftime("%H:%M:%S", time.localtime(each.ejection.until))
            yield f"{node}: ejected until {until} ({each.ejection.words}), time {each.ejection.times}"
