"""What commands print: tables for people, JSON or YAML for programs, errors for both."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lb.errors import LbError
from lb.model.plain import plain


class Format(StrEnum):
    """Values of -o."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Table:
    """Rows of text. Columns whose heading is in `right` hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = field(default=frozenset())
    empty: str = "none"
    title: str = ""


Block = Table | str


def emit(output: Format, data: Any, *blocks: Block) -> None:
    """Print `data` for programs, or the blocks, one below the other, for people."""
    if output is not Format.TABLE:
        print(structured(output, data))
        return
    for index, block in enumerate(blocks):
        if index and (isinstance(block, Table) or isinstance(blocks[index - 1], Table)):
            print()
        if isinstance(block, str):
            print(block)
        else:
            _print_table(block)


def structured(output: Format, data: Any) -> str:
    """One JSON or YAML document."""
    if output is Format.JSON:
        return json.dumps(data, indent=2, ensure_ascii=not _takes_all())
    import yaml  # only here: most commands do without

    # libyaml's, where there is one, is several times as fast.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=_takes_all())
    return text.rstrip("\n")


def _takes_all() -> bool:
    """Does standard output take every character? Documents have escapes for those that it doesn't."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name.startswith("utf")


def note(text: str) -> None:
    """Something worth knowing that is no error; on stderr, so that stdout stays what was asked."""
    with suppress(OSError):  # where it can't be said, nobody can be told
        print(f"note: {text}", file=sys.stderr)


def report(error: LbError, output: Format) -> None:
    """An error: for people on stderr, and for programs on stdout too. What can't be written is left: the
    exit code says it."""
    with suppress(OSError):
        print(f"error: {_one_line(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {_one_line(error.hint)}", file=sys.stderr)
    document(error, output)


def document(error: LbError, output: Format) -> None:
    """An error for programs alone."""
    if output is not Format.TABLE:
        with suppress(OSError):
            print(structured(output, error.as_dict()))


def number(value: float | None) -> str:
    """A figure for people, `-` where it isn't known."""
    return "-" if value is None else f"{value:,}"


def percent(value: float) -> str:
    """At most two decimals, none that says nothing."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _print_table(table: Table) -> None:
    if table.title:
        print(table.title)
    if not table.rows:
        print(table.empty)
    elif sys.stdout.isatty():
        _print_rich(table)
    else:
        for line in _aligned(table):
            print(line)


def _aligned(table: Table) -> list[str]:
    rows = [table.columns, *([plain(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    return [
        "  ".join(
            cell.rjust(width) if heading in table.right else cell.ljust(width)
            for heading, cell, width in zip(table.columns, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def rendered(blocks: Sequence[Block]) -> Any:
    """The blocks as something that rich draws."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(each) if isinstance(each, str) else _rich(each) for each in blocks))


def _print_rich(table: Table) -> None:
    # rich takes 50 ms to import: only where somebody looks.
    from rich.console import Console

    Console(file=sys.stdout, highlight=False).print(_rich(table))


def _rich(table: Table) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in table.columns:
        rich.add_column(heading, justify="right" if heading in table.right else "left")
    for row in table.rows:
        # Text: brackets of IPv6 addresses are no markup.
        rich.add_row(*(Text(plain(cell)) for cell in row))
    return rich
