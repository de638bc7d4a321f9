"""Who takes new flows before and after a change: a pool's name is a word that nobody declares anywhere,
so a typo in one is a valid document, and would end a service without a word."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from lb.core.state import DesiredState
from lb.errors import UserError
from lb.model import keys
from lb.model.meant import close
from lb.model.objects import DEFAULT_POOL, NoBackend, Service

_UNSAID = {DEFAULT_POOL: 100.0}  # the split of a service of which nobody has said any


def remarks(before: DesiredState, after: DesiredState, touched: Iterable[str]) -> list[str]:
    """What is worth knowing of the services that have these keys: that nobody takes their new flows any
    more, and that a pool does not that the change names, or has emptied.

    A service that has no backend yet is being made, in whatever order: of it there is nothing to say.
    """
    return [
        text
        for name in _services(touched)
        if name in after.services
        for text in _remarks(before, after, name)
    ]


def refuse_nobody(before: DesiredState, after: DesiredState, touched: Iterable[str]) -> None:
    """Raises UserError for a split of a change that names nobody, though there are backends."""
    for name in _services(touched):
        service, was = after.services.get(name), before.services.get(name)
        if service is None or service.split == (was.split if was else _UNSAID):
            continue
        there = {each.pool for each in after.backends_of(name)}
        named = _named(service)
        if there and named and not there & set(named):
            meant = " ".join(_asked(pool, there).removeprefix("; ") for pool in named).strip()
            pools = ", ".join(repr(pool) for pool in sorted(there))
            raise UserError(
                f"service {name}: no backend is in a pool of the split ({', '.join(named)}), so no new"
                " flow would have one",
                hint=f"{meant or f'there are backends in {pools}'}; --force does it anyway",
            )


def _remarks(before: DesiredState, after: DesiredState, name: str) -> Iterator[str]:
    service, was = after.services[name], before.services.get(name)
    there = {each.pool for each in after.backends_of(name)}
    taking, took = _taking(after, name), _taking(before, name) if was else set()
    nobody = _nobody(service, taking)
    if nobody and (there or took) and not (was and _nobody(was, took)):
        refused = "dropped" if service.no_backend is NoBackend.DROP else "refused"
        yield f"service {name} has no backend that takes new flows now: they are {refused}"
    if not there:
        return
    stood = set(_named(was)) if was else set()
    for pool in _named(service):
        # Before a service has anybody, its default says nothing about what people meant.
        is_new = pool not in stood and (was is not None or service.split != _UNSAID)
        asked = _asked(pool, there)
        # That there is nobody at all has been said: then only what may be the reason.
        if pool not in taking and (is_new or pool in took) and (asked or not nobody):
            rest = "" if nobody else ": its share of the split goes to the other pools"
            yield f"{_empty(name, pool, there)}{rest}{asked}"
    backup = service.backup
    if backup and backup not in taking and (was is None or was.backup != backup or backup in took):
        asked = _asked(backup, there)
        if asked or not nobody:
            yield f"{_empty(name, backup, there)}: it can't be the backup{asked}"


def _services(touched: Iterable[str]) -> list[str]:
    """Names of the services that these keys are about."""
    paths = (
        key.removeprefix(keys.ROOT).split("/")
        for key in touched
        if key.startswith((keys.SERVICES, keys.BACKENDS))
    )
    return sorted({path[1] for path in paths})


def _named(service: Service) -> list[str]:
    """The pools that its split gives a share."""
    return sorted(pool for pool, share in service.split.items() if share)


def _taking(state: DesiredState, service: str) -> set[str]:
    """The pools in which somebody takes new flows."""
    return {each.pool for each in state.backends_of(service) if each.takes_flows}


def _nobody(service: Service, taking: Collection[str]) -> bool:
    return not any(pool in taking for pool in (*_named(service), service.backup))


def _empty(service: str, pool: str, there: Collection[str]) -> str:
    if pool in there:
        return f"no backend in pool {pool!r} of service {service} takes new flows"
    return f"service {service} has no backend in pool {pool!r}"


def _asked(pool: str, there: Collection[str]) -> str:
    return "" if pool in there else close(pool, sorted(there))
