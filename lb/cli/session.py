"""What one run of lbctl works with: settings, the store, the kernel's view, and how to print."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lb import settings as settings_module
from lb.cli import kernel, output
from lb.cli.kernel import Kernel
from lb.cli.output import Block, Format
from lb.core.state import DesiredState, parse
from lb.model import keys
from lb.settings import Settings
from lb.store.base import Snapshot, Store


@dataclass
class Session:
    """Opened step by step: `lbctl schema` needs no store, `lbctl apply` no kernel."""

    output: Format = Format.TABLE
    config: Path | None = None
    store_url: str | None = None
    dry_run: bool = False
    wait: bool = False
    timeout: float = 10.0
    force: bool = False
    changes: bool = False  # desired state, which there may be none of yet

    @cached_property
    def settings(self) -> Settings:
        """This machine's settings, with --store in force."""
        found = settings_module.load(self.config)
        return found if self.store_url is None else found.model_copy(update={"store": self.store_url})

    @cached_property
    def store(self) -> Store:
        """The store, open. Who looks makes none, nor does --store: where nothing is, the name was
        mistyped, and an empty store would answer that there is nothing. Raises StoreUnavailable."""
        from lb.store.opening import Absent, open_store  # only here: `--help` has no use for SQLite

        makes = self.changes and self.store_url is None
        absent = Absent.MAKE_AT_COMMIT if makes else Absent.REFUSE
        return open_store(self.settings.store, self.settings.etcd, absent=absent)

    def kernel(self, state: DesiredState) -> Kernel | None:
        """The kernel's view, or None. `state` has the names of what it holds."""
        return kernel.kernel_if_any(self.settings, state)

    def snapshot(self) -> Snapshot:
        """Everything in the store, now."""
        return self.store.read(keys.EVERYTHING)

    def state(self) -> DesiredState:
        """Everything in the store, parsed."""
        return state_of(self.snapshot())

    def emit(self, data: Any, *blocks: Block) -> None:
        """See output.emit."""
        output.emit(self.output, data, *blocks)

    def say(self, *lines: str) -> None:
        """What people see before the end; programs get one document, at the end."""
        if self.output is Format.TABLE:
            print(*lines, sep="\n", flush=True)

    def close(self) -> None:
        """Release what was opened."""
        if "store" in self.__dict__:
            self.store.close()


def state_of(snapshot: Snapshot, previous: DesiredState | None = None) -> DesiredState:
    """A snapshot, parsed."""
    return parse(snapshot.revision, snapshot.entries, previous, snapshot.created)
