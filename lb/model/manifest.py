"""The manifest: services and their backends in one YAML file, for `lbctl apply`, `diff` and `export`.

A manifest owns the settings that it writes down. What it leaves out has its default in a new object,
and stays as it is in one that exists: a drain set by hand survives the next `apply` of a file that
does not mention it.

Everything wrong is a UserError that begins with file, line and column.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lb.errors import UserError
from lb.model.checkwords import explain_health
from lb.model.objects import Backend, Document, Service

if TYPE_CHECKING:
    # At run time only where a file is read: `lbctl --help` has no use for it.
    import yaml

# Aliases can make a short file mean an endless one ("billion laughs"). 16,384 backends, the default
# capacity, are about 200,000 values.
MAX_VALUES = 1_000_000
MAX_DEPTH = 50  # a manifest has 6 levels

_HINT = "`lbctl schema manifest` prints what a manifest may hold"
_ADDRESS_FIELDS = ("vip", "address")
_PREFIX_ERRORS = ("ip_v4_network", "ip_v6_network", "ip_any_network")
_OPTIONAL = ("end_port", "backup", "health")  # of a service
_NAME_RULE = "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"

D = TypeVar("D", bound=Document)
Path = tuple[str | int, ...]


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
    return _Reader(source).read(text)


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
        return "is not a setting" + _close(name, model.model_fields)
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
    if kind in ("greater_than_equal", "less_than_equal") or kind.startswith(("int_", "float_")):
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
    return "0 to 100 per pool" if name == "split" else "a number"


def _close(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


class Mark(Protocol):
    """A place in the text, from 0; PyYAML and libyaml have a class each."""

    line: int
    column: int


class _Reader:
    """From text to documents, remembering where each value stood."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks: dict[Path, Mark] = {}
        self.values = 0

    def read(self, text: str) -> Manifest:
        import yaml

        # libyaml's parser, where there is one, is about eight times as fast.
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        loader = kind(text)
        try:
            self._check_depth(yaml.parse(text, Loader=kind))
            node = loader.get_single_node()
            plain = self._plain(node, loader, (), ()) if node else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = ", ".join(part for part in (error.context, error.problem) if part)
            raise self._error(f"not YAML: {words}", mark) from None
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.source}: not YAML: {reason}", hint=_HINT) from None
        finally:
            loader.dispose()
        return self._manifest(plain)

    def _check_depth(self, events: Iterable[yaml.Event]) -> None:
        """libyaml's loader calls itself for each level, and ends the process when that gets deep."""
        import yaml

        depth = 0
        for event in events:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise self._error("nested too deeply", event.start_mark)

    def _plain(self, node: yaml.Node, loader: Any, path: Path, parents: tuple[yaml.Node, ...]) -> Any:
        import yaml

        self.marks[path] = node.start_mark
        self.values += 1
        if node in parents or self.values > MAX_VALUES:
            raise self._error("aliases make this endless, or too large", node.start_mark)
        within = (*parents, node)
        if isinstance(node, yaml.MappingNode):
            result = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node)
                if not isinstance(key, str):
                    raise self._error(
                        f"key {key!r} is not text; quotes make it text", key_node.start_mark
                    )
                if key in result:
                    raise self._error(f"key {key!r} comes twice", key_node.start_mark)
                result[key] = self._plain(value_node, loader, (*path, key), within)
                self.marks[*path, key] = key_node.start_mark
            return result
        if isinstance(node, yaml.SequenceNode):
            return [
                self._plain(item, loader, (*path, index), within)
                for index, item in enumerate(node.value)
            ]
        return loader.construct_object(node)

    def _manifest(self, plain: Any) -> Manifest:
        if plain is None:
            # An empty file is more often an accident than a wish to remove everything.
            raise UserError(
                f"{self.source}: the file is empty",
                hint="write `services: []` if you mean that there are none",
            )
        if not isinstance(plain, dict):
            raise self._error(f"a manifest is a mapping with the key 'services', not {plain!r}", ())
        for key in plain:
            if key != "services":
                raise self._error(f"unknown key {key!r}" + _close(key, ["services"]), (key,))
        entries = [
            self._entry(value, ("services", index))
            for index, value in enumerate(self._list(plain, "services", ()))
        ]
        self._distinct([entry.service.name for entry in entries], "service", ("services",))
        return Manifest(tuple(entries))

    def _entry(self, value: Any, path: Path) -> Entry:
        fields = self._fields(value, path)
        nested = self._list(fields, "backends", path) if "backends" in fields else []
        fields = {key: each for key, each in fields.items() if key != "backends"}
        if "port" in fields:  # which says all of the ports
            fields = {"end_port": None, **fields}
        service = self._document(Service, fields, path, extra=("backends",))
        backends = []
        for index, item in enumerate(nested):
            below = (*path, "backends", index)
            entry = self._fields(item, below)
            if "service" in entry:
                raise self._error("unknown key 'service': it is the one above", (*below, "service"))
            # The port goes with the address: see export().
            entry = {"port": None, **entry, "service": service.name}
            backends.append(self._document(Backend, entry, below))
        self._distinct([b.name for b in backends], "backend", (*path, "backends"))
        return Entry(service, tuple(backends))

    def _fields(self, value: Any, path: Path) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(f"must be a mapping, not {value!r}", path)
        return value

    def _list(self, parent: dict[str, Any], key: str, path: Path) -> list[Any]:
        value = parent.get(key)
        if not isinstance(value, list):
            where = (*path, key) if key in parent else path
            raise self._error(f"{key} must be a list ([] for none), not {value!r}", where)
        return value

    def _distinct(self, names: Sequence[str], what: str, path: Path) -> None:
        seen: set[str] = set()
        for index, name in enumerate(names):
            if name in seen:
                raise self._error(f"{what} {name!r} comes twice", (*path, index, "name"))
            seen.add(name)

    def _document(
        self, kind: type[D], fields: dict[str, Any], path: Path, extra: tuple[str, ...] = ()
    ) -> D:
        for key, value in fields.items():
            if key not in kind.model_fields:
                close = _close(key, [*kind.model_fields, *extra])
                raise self._error(f"unknown key {key!r}{close}", (*path, key))
            # pydantic reads `yes` as the number 1 and 10 as the address 0.0.0.10.
            is_switch = kind.model_fields[key].annotation is bool
            unmeant = key in _ADDRESS_FIELDS and isinstance(value, int)
            if unmeant or isinstance(value, bool) != is_switch:
                raise self._error(f"{key}: {value!r} is not a valid value here", (*path, key))
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._error(explain(first, kind), (*path, *first["loc"])) from None

    def _error(self, message: str, where: Path | Mark | None) -> UserError:
        prefix = self.source
        if isinstance(where, tuple):
            described = _describe(where)
            while where and where not in self.marks:
                where = where[:-1]
            mark = self.marks.get(where)
            message = f"{described}: {message}" if described else message
        else:
            mark = where
        if mark is not None:
            prefix += f":{mark.line + 1}:{mark.column + 1}"
        return UserError(f"{prefix}: {message}", hint=_HINT)


def _describe(path: Path) -> str:
    """services[0].backends[2], without the setting itself, which the message names."""
    text = ""
    whole = path
    while whole and not isinstance(whole[-1], int):
        whole = whole[:-1]
    for part in whole:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
