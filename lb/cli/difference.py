"""What differs between two states, object by object and setting by setting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lb.cli import words
from lb.core.state import DesiredState
from lb.model import keys
from lb.model.checkwords import describe_check
from lb.model.describe import describe_vip
from lb.model.health import Health
from lb.model.objects import Backend, Document, Service

_SIGNS = {"add": "+", "change": "~", "remove": "-"}


@dataclass(frozen=True)
class Difference:
    """One object that is added, changed or removed."""

    action: str  # add | change | remove
    key: str
    before: Document | None
    after: Document | None

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The settings that change, as plain values: (before, after)."""
        if self.before is None or self.after is None:
            return {}
        old, new = self.before.model_dump(mode="json"), self.after.model_dump(mode="json")
        return {name: (old[name], new[name]) for name in new if old[name] != new[name]}

    @property
    def text(self) -> str:
        """For people."""
        detail = ", ".join(
            f"{name.replace('_', ' ')} {_show(old, name)} -> {_show(new, name)}"
            for name, (old, new) in _parts(self.fields)
        )
        if isinstance(self.after, Service) and self.action == "add":
            detail = f"{describe_vip(self.after)}, mode {self.after.mode}"
        elif isinstance(self.after, Backend) and self.action == "add":
            port = f" port {self.after.port}" if self.after.port else ""
            detail = (
                f"{self.after.address}{port}, weight {self.after.weight}, {self.after.admin}, "
                f"pool {self.after.pool}"
            )
        return f"{_SIGNS[self.action]} {words.label(self.key)}" + (f": {detail}" if detail else "")

    def as_dict(self) -> dict[str, Any]:
        """For `-o json`."""
        kind, _, path = self.key.removeprefix(keys.ROOT).partition("/")
        service, _, backend = path.partition("/")
        return {
            "action": self.action,
            "kind": kind.removesuffix("s"),
            "service": service,
            "backend": backend or None,
            "settings": {
                name: {"before": old, "after": new} for name, (old, new) in self.fields.items()
            },
            "before": self.before.model_dump(mode="json") if self.before else None,
            "after": self.after.model_dump(mode="json") if self.after else None,
        }


def between(before: DesiredState, after: DesiredState, touched: Iterable[str]) -> Iterator[Difference]:
    """The differences in the documents of these keys; slot tables are no one's wish, so left out."""
    for key in sorted(touched, key=lambda k: (not k.startswith(keys.SERVICES), k)):
        if not key.startswith((keys.SERVICES, keys.BACKENDS)):
            continue
        old, new = _document(before, key), _document(after, key)
        action = "remove" if new is None else "change" if key in before.versions else "add"
        yield Difference(action, key, old, new)


def _document(state: DesiredState, key: str) -> Document | None:
    if key.startswith(keys.SERVICES):
        return state.services.get(key.removeprefix(keys.SERVICES))
    service, _, name = key.removeprefix(keys.BACKENDS).partition("/")
    return state.backends.get((service, name))


def _parts(fields: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Of health checks, which have many settings, only those that differ."""
    for name, (old, new) in fields.items():
        if name != "health" or not (old and new):
            yield name, (old, new)
            continue
        for setting in new:
            if old[setting] != new[setting]:
                yield f"health {setting}", (old[setting], new[setting])


def _show(value: Any, name: str = "") -> str:
    if name == "drain_until" and value is not None:
        left = value - time.time()
        return f"{words.moment(value)}" + (f" (in {words.remaining(left)})" if left > 0 else " (over)")
    if isinstance(value, dict) and "kind" in value:
        return describe_check(Health.model_validate({"check": value, "passive": {}}).check)
    if isinstance(value, dict) and value.get("check"):
        return _show(value["check"])
    if isinstance(value, dict):
        given = {key: each for key, each in value.items() if each is not None}
        return "{" + ", ".join(f"{key}: {_show(each)}" for key, each in given.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
