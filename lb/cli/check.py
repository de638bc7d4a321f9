"""lbctl check: run one health check by hand, from this machine, and explain it."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from lb.cli import words
from lb.cli.health import check_fields, milliseconds
from lb.cli.options import command
from lb.cli.output import Table
from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.errors import DatapathError, ExitCode, UserError
from lb.model.checkwords import describe_check, explain_health
from lb.model.health import Health, Via, effective
from lb.model.objects import Address, Service
from lb.probe.base import Target

_DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 50051, "dns": 53}
_HINT = "for example lbctl check web/b1, or lbctl check http://203.0.113.11:8080/healthz"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "check")(check)


def check(
    session: Session,
    whom: Annotated[
        str,
        typer.Argument(
            metavar="SERVICE[/BACKEND]|URL",
            help="Whom to check: as the service says, or http://, https://, tcp://, grpc://, dns://.",
        ),
    ],
    how: Annotated[
        str | None,
        typer.Option("--check", metavar="CHECK", help="Another check than the service's, to try it."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--check-timeout", metavar="TIME", help="How long to wait.")
    ] = None,
) -> None:
    """Run one health check now, from this machine, and say what came of it. Exit code 1 if it failed.

    Nothing is changed by it: what lbd knows of the backend stays as it is.
    """
    changes: dict[str, Any] = {}
    if timeout is not None:
        changes["timeout"] = words.duration(timeout, "--check-timeout")
    targets = (
        [_from_url(whom, how, changes)]
        if "://" in whom
        else _from_store(session, session.state(), whom, how, changes)
    )
    rows = [_run(target, _mark(session, target)) for target in targets]
    session.emit(
        rows,
        Table(
            ("BACKEND", "ADDRESS", "CHECK", "RESULT", "TOOK", "WHAT HAPPENED"),
            [
                (
                    row["backend"] or "-",
                    row["address"],
                    row["check"],
                    {True: "passed", False: "FAILED", None: "unknown"}[row["passed"]],
                    milliseconds(row["latency"]),
                    row["words"],
                )
                for row in rows
            ],
            empty="nobody to check",
        ),
    )
    if any(row["passed"] is not True for row in rows):
        raise typer.Exit(ExitCode.DIFFERENT)


def _mark(session: Session, target: Target) -> int:
    """What leads a check `via: vip` through the data path; 0 where there is none of it."""
    if target.health.via is not Via.VIP:
        return 0
    from lb.datapath.maps import Maps
    from lb.datapath.probepath import find_mark

    try:
        found = find_mark(Maps.open(session.settings.pin_dir), (target.service, target.backend))
    except (DatapathError, OSError):
        return 0
    return found or 0


def _run(target: Target, mark: int) -> dict[str, Any]:
    import asyncio

    from lb.probe.ask import ask
    from lb.probe.base import Inconclusive

    row: dict[str, Any] = {
        "service": target.service or None,
        "backend": target.backend or None,
        "address": str(target.address),
        "check": describe_check(target.health.check),
        "via": target.health.via,
        "timeout": target.health.timeout,
    }
    try:
        result = asyncio.run(ask(target, mark))
    except Inconclusive as why:
        return {**row, "passed": None, "latency": None, "words": f"not checked: {why}"}
    return {**row, "passed": result.passed, "latency": result.latency, "words": result.words}


def _from_store(
    session: Session, state: DesiredState, whom: str, how: str | None, changes: dict[str, Any]
) -> list[Target]:
    name, _, backend = whom.partition("/")
    if name not in state.services:
        raise words.no_such_service(name, state)
    if backend and (name, backend) not in state.backends:
        raise words.no_such_backend(name, backend, state)
    health = _asked(state.services[name], how, changes)
    targets = []
    for each in state.backends_of(name):
        port = each.port or state.services[name].one_port
        found = effective(health, each.health, port)
        if found is not None and backend in ("", each.name):
            folder = session.settings.checks.exec_dir
            targets.append(Target(name, each.name, each.address, found, folder))
    if not targets and backend:
        raise UserError(
            f"the checks of {whom} are disabled", hint=f"lbctl backend show {name} {backend}"
        )
    return targets


def _asked(service: Service, how: str | None, changes: dict[str, Any]) -> Health:
    if how is None and service.health is None:
        raise UserError(
            f"service {service.name!r} has no check",
            hint=f"try one: lbctl check {service.name} --check http:/healthz; keep it: lbctl service set"
            f" {service.name} --check http:/healthz",
        )
    fields = service.health.model_dump() if service.health else {}
    return _health({**fields, **({"check": check_fields(how)} if how else {}), **changes})


def _health(fields: dict[str, Any]) -> Health:
    from pydantic import ValidationError

    try:
        return Health.model_validate(fields)
    except ValidationError as error:
        raise UserError(explain_health(error.errors()[0], Health), hint=_HINT) from None


def _from_url(url: str, how: str | None, changes: dict[str, Any]) -> Target:
    if how is not None:
        raise UserError("a URL says the check already", hint="leave out --check")
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError as error:
        raise UserError(f"{url!r}: {error}", hint=_HINT) from None
    if not parts.hostname or parts.scheme not in ("tcp", *_DEFAULT_PORTS):
        raise UserError(f"{url!r} is not a URL that can be checked", hint=_HINT)
    if port is None:
        raise UserError(f"{url!r} has no port", hint=f"for example tcp://{parts.hostname}:80")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    fields: dict[str, Any] = {"kind": parts.scheme, "port": port}
    address = _address(parts.hostname)
    if parts.scheme in ("http", "https"):
        fields |= {"path": path or "/"}
        if str(address) != parts.hostname:
            fields["host"] = parts.netloc.rpartition("@")[2]
    elif parts.scheme == "grpc":
        fields["service"] = path.removeprefix("/")
    elif parts.scheme == "dns":
        fields["name"] = path.removeprefix("/")
    return Target("", "", address, _health({"check": fields, **changes}))


def _address(host: str) -> Address:
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"{host}: {error.strerror}", hint="give an address instead of a name") from None
    return ip_address(found[0][4][0])
