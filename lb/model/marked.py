"""YAML in which every value knows where it stood, so that what is wrong with it is said with line and
column. Manifests and analysis files are read with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lb.errors import UserError
from lb.model.document import Document
from lb.model.meant import close
from lb.model.plain import plain

if TYPE_CHECKING:
    # At run time only where a file is read: `lbctl --help` has no use for it.
    import yaml

# Aliases can make a short file mean an endless one ("billion laughs"). 16,384 backends, the default
# capacity, are about 200,000 values.
MAX_VALUES = 1_000_000
MAX_DEPTH = 50  # a manifest has 6 levels
LONGEST = 500  # of a message, in characters

D = TypeVar("D", bound=Document)
Path = tuple[str | int, ...]


class Mark(Protocol):
    """A place in the text, from 0; PyYAML and libyaml have a class each."""

    line: int
    column: int


class Marked:
    """From text to plain values, remembering where each one stood. `source` is the file's name and
    `hint` the last line of every error."""

    def __init__(self, source: str, hint: str) -> None:
        self.source = source
        self.hint = hint
        self.marks: dict[Path, Mark] = {}
        self.values = 0

    def plain(self, text: str) -> Any:
        """Dictionaries, lists and scalars; None of an empty file. Raises UserError."""
        import yaml

        # libyaml's parser, where there is one, is about eight times as fast.
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        loader = kind(text)
        try:
            self._check_depth(yaml.parse(text, Loader=kind))
            node = loader.get_single_node()
            return self._plain(node, loader, (), ()) if node else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = ", ".join(part for part in (error.context, error.problem) if part)
            raise self.error(f"not YAML: {words}", mark) from None
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.source}: not YAML: {reason}", hint=self.hint) from None
        finally:
            loader.dispose()

    def _check_depth(self, events: Iterable[yaml.Event]) -> None:
        """libyaml's loader calls itself for each level, and ends the process when that gets deep."""
        import yaml

        depth = 0
        for event in events:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise self.error("nested too deeply", event.start_mark)

    def _plain(self, node: yaml.Node, loader: Any, path: Path, parents: tuple[yaml.Node, ...]) -> Any:
        import yaml

        self.marks[path] = node.start_mark
        self.values += 1
        if node in parents or self.values > MAX_VALUES:
            raise self.error("aliases make this endless, or too large", node.start_mark)
        within = (*parents, node)
        if isinstance(node, yaml.MappingNode):
            result = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node)
                if not isinstance(key, str):
                    raise self.error(
                        f"key {key!r} is not text; quotes make it text", key_node.start_mark
                    )
                if key in result:
                    raise self.error(f"key {key!r} comes twice", key_node.start_mark)
                result[key] = self._plain(value_node, loader, (*path, key), within)
                self.marks[*path, key] = key_node.start_mark
            return result
        if isinstance(node, yaml.SequenceNode):
            return [
                self._plain(item, loader, (*path, index), within)
                for index, item in enumerate(node.value)
            ]
        return loader.construct_object(node)

    def fields(self, value: Any, path: Path) -> dict[str, Any]:
        """A mapping. Raises UserError."""
        if not isinstance(value, dict):
            raise self.error(f"must be a mapping, not {value!r}", path)
        return value

    def items(self, parent: dict[str, Any], key: str, path: Path) -> list[Any]:
        """The list at a key of a mapping. Raises UserError."""
        value = parent.get(key)
        if not isinstance(value, list):
            where = (*path, key) if key in parent else path
            raise self.error(f"{key} must be a list ([] for none), not {value!r}", where)
        return value

    def known(self, fields: Iterable[str], names: Iterable[str], path: Path) -> None:
        """No key but these. Raises UserError."""
        names = list(names)
        for key in fields:
            if key not in names:
                raise self.error(f"unknown key {key!r}{close(key, names)}", (*path, key))

    def distinct(self, names: Sequence[str], what: str, path: Path) -> None:
        """No name twice. Raises UserError."""
        seen: set[str] = set()
        for index, name in enumerate(names):
            if name in seen:
                raise self.error(f"{what} {name!r} comes twice", (*path, index, "name"))
            seen.add(name)

    def document(
        self,
        kind: type[D],
        fields: dict[str, Any],
        path: Path,
        explain: Callable[[ErrorDetails, type[Document]], str],
    ) -> D:
        """The fields as a document. Raises UserError, in the words of `explain`."""
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise self.error(explain(first, kind), (*path, *first["loc"])) from None

    def error(self, message: str, where: Path | Mark | None) -> UserError:
        """The error at a path or place."""
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
        # What was read may be a novel, and is quoted in some of them.
        return UserError(f"{prefix}: {plain(message, LONGEST)}", hint=self.hint)


def _describe(path: Path) -> str:
    """services[0].backends[2], without the setting itself, which the message names."""
    text = ""
    whole = path
    while whole and not isinstance(whole[-1], int):
        whole = whole[:-1]
    for part in whole:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
