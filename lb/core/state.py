"""From the documents of the store to the desired state: parse, check, quarantine.

A document that can't be read, or that contradicts another, is quarantined: the last good version of
that object stays in force (lb/core/settling.py), and a Problem says what is wrong. The same checks, run
by `lbctl` on the state as it would be after a change, refuse bad input before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError

from lb.core.conflicts import Refusal, Standing, claimed, contested
from lb.core.settling import settle
from lb.model import keys
from lb.model.objects import (
    Address,
    Backend,
    ClusterConfig,
    Document,
    Service,
    TableDocument,
)
from lb.model.reports import (
    Member,
    NodeStatus,
    Problem,
)

BackendKey = tuple[str, str]  # service, backend

# The largest document, in characters, that nodes take from people: the longest check that there may be
# has half of that, 1,024 rules an eighth. What nodes write is limited by the store alone.
LARGEST = 1 << 19
_LIMITED = (keys.SERVICES, keys.BACKENDS, keys.CONFIG)
D = TypeVar("D", bound=Document)

_STAYS = "; the last good version stays in force"
_IGNORED = "; it is ignored"


@dataclass(frozen=True)
class DesiredState:
    """Everything in the store, parsed, as of one revision. `versions` is each key's mod_revision,
    for compare-and-set."""

    revision: int = 0
    config: ClusterConfig | None = None
    services: Mapping[str, Service] = field(default_factory=dict)
    backends: Mapping[BackendKey, Backend] = field(default_factory=dict)
    tables: Mapping[str, TableDocument] = field(default_factory=dict)
    nodes: Mapping[str, NodeStatus] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)

    def backends_of(self, service: str) -> tuple[Backend, ...]:
        """The service's backends, sorted by name."""
        return self._grouped.get(service, ())

    @cached_property
    def _grouped(self) -> dict[str, tuple[Backend, ...]]:
        grouped: dict[str, list[Backend]] = {}
        for _, backend in sorted(self.backends.items()):
            grouped.setdefault(backend.service, []).append(backend)
        return {service: tuple(backends) for service, backends in grouped.items()}

    @cached_property
    def addresses(self) -> frozenset[Address]:
        """Of all backends."""
        return frozenset(backend.address for backend in self.backends.values())

    @property
    def lost(self) -> tuple[str, ...]:
        """Nodes that report no more, and have not said that they stop."""
        return tuple(sorted(self.members.keys() - self.nodes.keys()))

    @property
    def revision_to_apply(self) -> int:
        """Revision of the last change that nodes have to apply: reports and records are none."""
        ours = (v for key, v in self.versions.items() if not key.startswith(keys.BESIDE))
        return max(ours, default=0)

    @cached_property
    def quarantined(self) -> frozenset[str]:
        """Keys whose document is not in force as it is stored: what is known of it here may be old, and
        other nodes may know something else. Nothing that is made from it belongs into the store."""
        return frozenset(problem.where for problem in self.problems)

    @cached_property
    def in_doubt(self) -> frozenset[str]:
        """Services that are quarantined, or one of whose backends is."""
        kinds = (keys.SERVICES, keys.BACKENDS)
        return frozenset(
            key.removeprefix(keys.ROOT).split("/")[1]
            for key in self.quarantined
            if key.startswith(kinds)
        )

    @property
    def not_understood(self) -> set[str]:
        """Keys of services and backends that exist, but of which no version is in force."""
        if not self.problems:
            return set()
        in_force = {keys.service(name) for name in self.services}
        in_force |= {keys.backend(*key) for key in self.backends}
        stored = {k for k in self.versions if k.startswith((keys.SERVICES, keys.BACKENDS))}
        return stored - in_force


def reason(problem: Problem) -> str:
    """What is wrong with a document, without what is in force instead: that is only for nodes to say."""
    return problem.message.removesuffix(_STAYS).removesuffix(_IGNORED)


def describe_error(error: ValidationError) -> str:
    """A pydantic error in one line: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def parse(
    revision: int,
    items: Iterable[tuple[str, str, int]],
    previous: DesiredState | None = None,
    created: Mapping[str, int] = MappingProxyType({}),
) -> DesiredState:
    """The desired state from (key, JSON text, mod_revision) of all keys under /lb/. `created`: since
    which revision each key exists, where the store can tell; else the last change is what counts.

    Never raises for what the documents say; see `problems`.
    """
    texts: dict[str, str] = {}
    versions: dict[str, int] = {}
    for key, text, version in items:
        texts[key], versions[key] = text, version
    old = previous or DesiredState()
    refused: dict[str, Refusal] = {}
    kept: set[str] = set()  # of which the last good version takes the place of what can't be read

    def load(
        prefix: str, kind: type[D], last_good: Callable[[str], D | None], named: Callable[[D], str]
    ) -> dict[str, D]:
        found: dict[str, D] = {}
        for key, text in texts.items():
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            good = last_good(name)
            if (
                good is not None
                and old.versions.get(key) == versions[key]
                and key not in old.quarantined
            ):
                found[name] = good
                continue
            try:
                _check_size(key, text)
                document = kind.model_validate_json(text)
                if named(document) != name:
                    raise ValueError(f"the document calls itself {named(document)!r}")
            except ValueError as error:  # pydantic's is one, too
                text = describe_error(error) if isinstance(error, ValidationError) else str(error)
                refused[key] = text, f"write a valid document to {key}"
                if good is None:
                    continue
                kept.add(key)
                document = good
            found[name] = document
        return found

    services = load(keys.SERVICES, Service, old.services.get, lambda d: d.name)
    by_path = {f"{service}/{name}": b for (service, name), b in old.backends.items()}
    backends = load(keys.BACKENDS, Backend, by_path.get, lambda d: f"{d.service}/{d.name}")
    tables = load(keys.TABLES, TableDocument, old.tables.get, lambda d: d.path)
    nodes = load(keys.NODES, NodeStatus, old.nodes.get, lambda d: d.node)
    members = load(keys.MEMBERS, Member, old.members.get, lambda d: d.node)
    config = load(keys.CONFIG, ClusterConfig, lambda _: old.config, lambda _: "")
    standing = Standing(old.services, by_path, {**versions, **created})
    settled = settle(services, backends, standing)
    kept = (kept | settled.refused.keys()) - settled.left_out
    refused |= {key: each for key, each in settled.refused.items() if key not in refused}
    return DesiredState(
        revision=revision,
        # Without its seed every flow would go elsewhere: that is never what a deletion means.
        config=config.get("", old.config),
        services=MappingProxyType(settled.services),
        backends=MappingProxyType({(b.service, b.name): b for b in settled.backends.values()}),
        tables=MappingProxyType(tables),
        nodes=MappingProxyType(nodes),
        members=MappingProxyType(members),
        problems=tuple(
            Problem(where=key, message=message + (_STAYS if key in kept else _IGNORED), hint=hint)
            for key, (message, hint) in refused.items()
        ),
        versions=MappingProxyType(versions),
    )


Change = tuple[str, str | None, int]  # key, JSON text (None = deleted), revision


def advance(state: DesiredState, revision: int, changes: Iterable[Change]) -> DesiredState | None:
    """The state after these changes, if they are plain: valid documents, of which an earlier version is
    in force, and in which nothing differs that could contradict another one. That is so for weights,
    splits and policies, and saves parsing everything. None: it has to be parsed.
    """
    if state.problems:
        return None
    services, backends = _copy(state.services), _copy(state.backends)
    tables, versions = _copy(state.tables), _copy(state.versions)
    touched: set[str] = set()
    try:
        for key, text, version in changes:
            if key.startswith((keys.HISTORY, keys.OBSERVED, keys.ROLLOUTS)):
                pass  # what was changed, seen or planned: nothing to apply
            elif text is None:
                return None
            elif key.startswith(keys.SERVICES):
                _check_size(key, text)
                service = Service.model_validate_json(text)
                before = services.get(key.removeprefix(keys.SERVICES))
                if before is None or contested(service) != contested(before):
                    return None
                services[service.name] = service
            elif key.startswith(keys.BACKENDS):
                _check_size(key, text)
                backend = Backend.model_validate_json(text)
                held = backends.get((backend.service, backend.name))
                if (
                    key != keys.backend(backend.service, backend.name)
                    or held is None
                    or claimed(backend) != claimed(held)
                ):
                    return None
                backends[backend.service, backend.name] = backend
                touched.add(backend.service)
            elif key.startswith(keys.TABLES):
                table = TableDocument.model_validate_json(text)
                if key != keys.table(table.path):
                    return None
                tables[table.path] = table
            else:
                return None
            if text is None:
                versions.pop(key, None)
            else:
                versions[key] = version
    except ValueError:
        return None
    after = replace(
        state,
        revision=revision,
        services=MappingProxyType(services),
        backends=MappingProxyType(backends),
        tables=MappingProxyType(tables),
        versions=MappingProxyType(versions),
    )
    # What is derived from ten thousand backends is carried over.
    after.__dict__["addresses"] = state.addresses
    after.__dict__["_grouped"] = state._grouped | {
        service: tuple(backends[service, each.name] for each in state._grouped[service])
        for service in touched
    }
    return after


K = TypeVar("K")
V = TypeVar("V")


def _copy(mapping: Mapping[K, V]) -> dict[K, V]:
    # dict() of a proxy looks each key up again: ten times slower.
    return mapping.copy() if isinstance(mapping, MappingProxyType) else dict(mapping)


def _check_size(key: str, text: str) -> None:
    """Raises ValueError for a document that is too large, before anybody reads it."""
    if len(text) > LARGEST and key.startswith(_LIMITED):
        raise ValueError(f"{len(text):,} characters, and more than {LARGEST:,} are not taken")
