"""The manifest: services and their backends in one YAML file, for `lbctl apply`, `diff` and `export`.

A manifest owns the settings that it writes down. What it leaves out has its default in a new object,
and stays as it is in one that exists: a drain set by hand survives the next `apply` of a file that
does not mention it.

Everything wrong is a UserError that begins with file, line and column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Le
from pydantic_core import ErrorDetails

from lb.errors import UserError
from lb.model.checkwords import explain_health
from lb.model.marked import D, Marked, Path
from lb.model.meant import close
from lb.model.objects import Backend, Document, Service

_HINT = "`lbctl schema manifest` prints what a manifest may hold"
_ADDRESS_FIELDS = ("vip", "address")
_PREFIX_ERRORS = ("ip_v4_network", "ip_v6_network", "ip_any_network")
_OPTIONAL = ("end_port", "backup", "mirror", "health")  # of a service
_NAME_RULE = "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"


@dataclass(frozen=True)
class Entry:
    """One service of a manifest. Each document's `model_fields_set` is what the file wrote down."""

    service: Service
    backends: tuple[Backend, ...]


@dataclass(frozen=True)
class Manifest:
    """What a file asks for."""

    services: tuple[Entry, ...]


def load(text: str, source: str) -> Manifest:
    """Read a manifest; `source` is the file's name, for errors."""
    return _Reader(source, _HINT).read(text)


def merged(current: D | None, wanted: D) -> D:
    """`current` with the settings that the manifest wrote down."""
    if current is None:
        return wanted
    return current.model_copy(update={f: getattr(wanted, f) for f in wanted.model_fields_set})


def export(entries: Iterable[tuple[Service, Sequence[Backend]]]) -> dict[str, Any]:
    """The manifest of these services, as plain values; `load` of it gives them back."""
    return {
        "services": [
            {
                **service.model_dump(mode="json", exclude=_unset(service, *_OPTIONAL)),
                "backends": [_export_backend(backend) for backend in backends],
            }
            for service, backends in entries
        ]
    }


def _export_backend(backend: Backend) -> dict[str, Any]:
    # No port is said by leaving it out: a file that names an address owns the port as well.
    exclude = {"service", *_unset(backend, "port", "health", "drain_until")}
    return backend.model_dump(mode="json", exclude=exclude)


def _unset(document: Document, *names: str) -> set[str]:
    return {name for name in names if getattr(document, name) is None}


def schema() -> dict[str, Any]:
    """JSON Schema of a manifest, made of those of its documents."""
    service, backend = Service.model_json_schema(), Backend.model_json_schema()
    definitions = {**service.pop("$defs", {}), **backend.pop("$defs", {})}
    del backend["properties"]["service"]
    backend["required"].remove("service")
    backend["description"] = "One server of the service."
    service["description"] = "A named VIP with its policies and its servers."
    service["properties"]["backends"] = {
        "type": "array",
        "items": {"$ref": "#/$defs/Backend"},
        "default": [],
        "description": "The servers of this service.",
    }
    return {
        "title": "Manifest",
        "description": "What `lbctl apply` reads.",
        "type": "object",
        "additionalProperties": False,
        "required": ["services"],
        "properties": {
            "services": {
                "type": "array",
                "items": {"$ref": "#/$defs/Service"},
                "description": "The services, in any order.",
            }
        },
        "$defs": {**definitions, "Service": service, "Backend": backend},
    }


def explain(error: ErrorDetails, model: type[Document]) -> str:
    """A pydantic error in the words of the command line: "weight: must be 0 to 65535, not 70000"."""
    location = [part for part in error["loc"] if part != "[key]"]
    if not location:
        return error["msg"].removeprefix("Value error, ")
    name = str(location[0])
    if name == "health":
        return explain_health(error, model)
    if name in _ADDRESS_FIELDS:
        location = location[:1]  # pydantic names the union's members behind it
    if name == "rules" and error["type"] in _PREFIX_ERRORS:
        return f"rules: {error['input']!r} is not a source prefix, such as 10.1.0.0/16 or 2001:db8::/32"
    what = _what(error, name, model)
    return f"{'.'.join(str(part) for part in location)}: {what}"


def _what(error: ErrorDetails, name: str, model: type[Document]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a setting" + close(name, model.model_fields)
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if kind == "string_type":
        return f"must be text, not {given!r}; quotes make it text"
    if kind == "string_pattern_mismatch" and name == "quic_id":
        return f"must be 1 to 8 bytes in hexadecimal, such as 0a3f; not {given!r}"
    if kind.startswith("string_"):
        return f"must be {_NAME_RULE}; not {given!r}"
    if name in _ADDRESS_FIELDS:
        return f"{given!r} is not an IPv4 or IPv6 address"
    bounds = ("greater_than_equal", "less_than_equal", "finite_number")
    if kind in bounds or kind.startswith(("int_", "float_")):
        return f"must be {_range(name, model)}, not {given}"
    if kind == "enum":
        expected = error.get("ctx", {}).get("expected", "").replace("'", "")
        return f"must be {expected}, not {given!r}"
    return f"{error['msg']}, not {given!r}"


def _range(name: str, model: type[Document]) -> str:
    field = model.model_fields[name]
    low = [rule.ge for rule in field.metadata if isinstance(rule, Ge)]
    high = [rule.le for rule in field.metadata if isinstance(rule, Le)]
    if low and high:
        return f"{low[0]} to {high[0]}"
    if low:
        return f"at least {low[0]}"
    return "0 to 100 per pool" if name == "split" else "a number"


class _Reader(Marked):
    """From text to documents."""

    def read(self, text: str) -> Manifest:
        plain = self.plain(text)
        if plain is None:
            # An empty file is more often an accident than a wish to remove everything.
            raise UserError(
                f"{self.source}: the file is empty",
                hint="write `services: []` if you mean that there are none",
            )
        if not isinstance(plain, dict):
            raise self.error(f"a manifest is a mapping with the key 'services', not {plain!r}", ())
        self.known(plain, ["services"], ())
        entries = [
            self._entry(value, ("services", index))
            for index, value in enumerate(self.items(plain, "services", ()))
        ]
        self.distinct([entry.service.name for entry in entries], "service", ("services",))
        return Manifest(tuple(entries))

    def _entry(self, value: Any, path: Path) -> Entry:
        fields = self.fields(value, path)
        nested = self.items(fields, "backends", path) if "backends" in fields else []
        fields = {key: each for key, each in fields.items() if key != "backends"}
        if "port" in fields:  # which says all of the ports
            fields = {"end_port": None, **fields}
        service = self._document(Service, fields, path, extra=("backends",))
        backends = []
        for index, item in enumerate(nested):
            below = (*path, "backends", index)
            entry = self.fields(item, below)
            if "service" in entry:
                raise self.error("unknown key 'service': it is the one above", (*below, "service"))
            # The port goes with the address: see export().
            entry = {"port": None, **entry, "service": service.name}
            backends.append(self._document(Backend, entry, below))
        self.distinct([b.name for b in backends], "backend", (*path, "backends"))
        return Entry(service, tuple(backends))

    def _document(
        self, kind: type[D], fields: dict[str, Any], path: Path, extra: tuple[str, ...] = ()
    ) -> D:
        self.known(fields, [*kind.model_fields, *extra], path)
        for key, value in fields.items():
            # pydantic reads `yes` as the number 1 and 10 as the address 0.0.0.10.
            is_switch = kind.model_fields[key].annotation is bool
            unmeant = key in _ADDRESS_FIELDS and isinstance(value, int)
            if unmeant or isinstance(value, bool) != is_switch:
                raise self.error(f"{key}: {value!r} is not a valid value here", (*path, key))
        return self.document(kind, fields, path, explain)
