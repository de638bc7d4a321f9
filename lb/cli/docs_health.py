"""Writes docs/reference/health.md: the state diagram of the table in lb/core/health.py, and all settings
of checks with their defaults."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel

from lb.core.health import TABLE, State
from lb.model.checkwords import KINDS
from lb.model.health import Health, Overrides, Passive


def health_page() -> str:
    """The page, without the mark of a generated one."""
    parts = [
        "# Health checks: states and settings\n",
        "How to use them: [health checks](../howto/health-checks.md).\n",
        "## States\n",
        diagram(),
        "What a person wants (`up`, `drain`, `down`) is a state of its own. A backend takes new flows if"
        " it is `up`, and `healthy` or not checked.\n",
        "## `health` of a service\n",
        _settings(Health),
        "## `health` of a backend\n",
        "What is different for it; what is left out is as the service says.\n",
        _settings(Overrides),
        "## `passive`\n",
        f"{' '.join((Passive.__doc__ or '').split())}\n",
        _settings(Passive),
        "## `check`, by `kind`\n",
    ]
    for kind, model in KINDS.items():
        parts += [f"### {kind}\n", f"{' '.join((model.__doc__ or '').split())}\n", _settings(model)]
    return "\n".join(parts)


def diagram() -> str:
    """In Mermaid, as GitHub and others draw it."""
    lines = [f"    [*] --> {State.UNKNOWN}"]
    lines += [f"    {before} --> {after}: {event}" for (before, event), after in TABLE.items()]
    return "\n".join(("```mermaid", "stateDiagram-v2", *lines, "```", ""))


def _settings(model: type[BaseModel]) -> str:
    inherited = Health.model_fields if model is Overrides else {}
    rows = []
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        said = field.description or f"{inherited[name].description}"
        rows.append(f"| `{name}` | {said} | {_default(field.get_default(call_default_factory=True))} |")
    return "\n".join(("| setting | meaning | default |", "|---|---|---|", *rows, ""))


def _default(value: Any) -> str:
    if repr(value) == "PydanticUndefined":
        return "must be given"
    if isinstance(value, BaseModel):
        return f"`{{kind: {value.model_dump()['kind']}}}`"
    if isinstance(value, tuple):
        return "`" + ", ".join(map(str, value)) + "`"
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`" if value != "" else "empty"
