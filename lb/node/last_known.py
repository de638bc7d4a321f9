"""What a node served last, kept on disk; and whether what the store says now goes on from there.

With the store away at boot, the copy is served. With the store there, it is what tells a store that was
restored from a backup, or another store altogether, from the one that was followed before. The rules:

- **Goes on**: the same cluster, its revision did not go back, and what was changed last before that is
  what was known of it. Followed.
- **Restored**: another cluster, an earlier revision or another past, with the same seed of the hash.
  Followed, because every node that boots now would do the same; said; and what was in force is written
  beside the copy as a manifest, so that people can put back what the backup had not.
- **Foreign**: another seed, no configuration at all, or nothing to serve where a restore goes before.
  Not followed: it is the wrong store or a lost one, and what is in force stays. Said, until somebody
  settles it: the right store comes back, or the copy is removed and lbd started anew.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lb.core.state import DesiredState, parse
from lb.errors import UserError
from lb.model import keys, manifest
from lb.model.objects import ClusterConfig, Document
from lb.model.reports import Problem
from lb.store.base import Snapshot

log = logging.getLogger("lbd")

SAVE_SECONDS = 5.0  # at least, from one copy to the next: a burst of changes is one
NOTE_SECONDS = 600.0  # how long the status tells of a boot without the store
_FORMAT = 1
_HINT = "give the file that `last_known` in lb.toml names"
_NO_COPY = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)


def stored(state: DesiredState) -> Iterator[tuple[str, Document]]:
    """The documents in force, by key; not the nodes' own."""
    if state.config is not None:
        yield keys.CONFIG, state.config
    for name, service in state.services.items():
        yield keys.service(name), service
    for (service_name, name), backend in state.backends.items():
        yield keys.backend(service_name, name), backend
    for path, table in state.tables.items():
        yield keys.table(path), table


def is_other_history(cluster: str, state: DesiredState, snapshot: Snapshot) -> bool:
    """Do the snapshot's revisions not go on from those of the state, which came from `cluster`?"""
    if snapshot.revision < state.revision or (cluster and snapshot.cluster != cluster):
        return True
    versions = state.versions
    if not all(versions.values()):  # of a copy, which has no versions
        return False
    # A store that was restored, and has come further meanwhile: what was last changed before the state
    # was read must be what the state has, or the past is another one.
    return any(
        item.mod_revision <= state.revision and item.mod_revision != versions.get(item.key)
        for item in snapshot.items
        if item.key.startswith(keys.ROOT) and not item.key.startswith(keys.BESIDE)
    )


def foreign(state: DesiredState, snapshot: Snapshot, other_history: bool) -> str:
    """Why a snapshot must not take the place of the state in force; "" if it may."""
    if state.config is None:
        return ""  # nothing is in force
    config = next((item.value for item in snapshot.items if item.key == keys.CONFIG), None)
    services = any(item.key.startswith(keys.SERVICES) for item in snapshot.items)
    if state.services and config is None and not services:
        return "the store is empty"
    if not other_history:
        return ""
    if config is None:
        return "the store has no configuration"
    if state.services and not services:
        return "the store has no services"
    try:
        seed = ClusterConfig.model_validate_json(config).seed
    except ValueError:
        return "the store's configuration can't be read"
    return "" if seed == state.config.seed else "the store is another fleet's: it has another seed"


def read(path: Path) -> tuple[DesiredState, str]:
    """The state in a copy, and the cluster that it came from. Raises UserError."""
    try:
        copy = json.loads(path.read_text())
        if copy["format"] != _FORMAT:
            raise ValueError(f"format {copy['format']} is not known")
        # Version 0: which of the store's versions these are is not kept, so all of them are read anew.
        items = [(key, json.dumps(each), 0) for key, each in copy["documents"].items()]
        return parse(copy["revision"], items), str(copy["cluster"])
    except OSError as error:
        raise UserError(f"{path} can't be used: {error.strerror}", hint=_HINT) from None
    except _NO_COPY:
        raise UserError(
            f"{path} can't be used: it is no copy of what a node serves", hint=_HINT
        ) from None
    except ValueError as error:
        raise UserError(f"{path} can't be used: {error}", hint=_HINT) from None


@dataclass
class LastKnown:
    """The copy, and what came of comparing the store with it. Without a path nothing is kept."""

    node: str
    path: Path | None
    cluster: str = ""
    held: str = ""  # why the store is not followed
    _booted: float | None = None  # Unix time of a boot without the store
    _back: float | None = None  # when the store was there again
    _saved: DesiredState = field(default_factory=DesiredState)
    _save_at: float = float("inf")

    @property
    def due(self) -> float:
        """When save_if_due has something to do next (monotonic clock)."""
        return self._save_at

    @property
    def restored(self) -> Path | None:
        """Where what was in force before a restore is kept."""
        return self.path and self.path.with_name(f"{self.path.stem}.before-restore.json")

    @property
    def is_served(self) -> bool:
        """Is the copy in force, because the store was away at boot and has not been there since?"""
        return self._booted is not None and self._back is None

    def load(self) -> DesiredState:
        """The state of the copy, for a node that boots; empty if there is none."""
        if self.path is None or not self.path.exists():
            return DesiredState()
        try:
            self._saved, self.cluster = read(self.path)
        except UserError as error:
            log.error("the last known state: %s", error)
        return self._saved

    def serve(self, state: DesiredState) -> None:
        """The store is away at boot, and this state is served from the copy."""
        self._booted = time.time()
        log.warning("serving the last known state, revision %d, from %s", state.revision, self.path)

    def follow(self, snapshot: Snapshot, state: DesiredState) -> DesiredState | None:
        """The state that a snapshot of the store brings, if it is to be followed."""
        other = is_other_history(self.cluster, state, snapshot) and state.revision > 0
        held = foreign(state, snapshot, other)
        if held != self.held:
            if held:
                log.error("%s; going on with revision %d", held, state.revision)
            self.held = held
        if held:
            return None
        # An equal revision of another history says nothing: every document is looked at.
        before = replace(state, versions={}) if other else state
        after = parse(snapshot.revision, snapshot.entries, before, snapshot.created)
        if other:
            self._say_restored(snapshot, state, after)
        self.cluster = snapshot.cluster
        if self._booted is not None and self._back is None:
            self._back = time.time()
            log.warning("the store is there again, after %.0f s", self._back - self._booted)
        return after

    def changed(self) -> None:
        """The state in force has changed: a copy of it is due soon."""
        if self.path is not None and not self.held:
            self._save_at = min(self._save_at, time.monotonic() + SAVE_SECONDS)

    def save_if_due(self, state: DesiredState) -> None:
        """Write the copy, when it is time and there is something new in it."""
        if self.path is None or time.monotonic() < self._save_at:
            return
        self._save_at = float("inf")
        documents = dict(stored(state))
        if documents == dict(stored(self._saved)) and state.revision == self._saved.revision:
            return
        copy = {
            "format": _FORMAT,
            "saved": time.time(),
            "cluster": self.cluster,
            "revision": state.revision,
            "documents": {key: each.model_dump(mode="json") for key, each in documents.items()},
        }
        try:
            _write(self.path, json.dumps(copy))
            self._saved = state
        except OSError as error:
            log.error("no copy of the last known state: %s", error)

    def problems(self) -> tuple[Problem, ...]:
        """For the node's status."""
        found = []
        if self.held:
            found.append(
                Problem(
                    where=self.node,
                    message=f"{self.held}; what was served before stays in force",
                    hint="check `store` in lb.toml. If it is right and empty, `lbctl restore"
                    f" {self.path}` puts everything back; if it is to be followed as it is, remove that"
                    " file and restart lbd",
                )
            )
        if self._booted is not None:
            if self._back is None:
                since = f"since {_when(self._booted)}"
            else:
                since = f"from {_when(self._booted)} to {_when(self._back)}"
            if self._back is None or time.time() < self._back + NOTE_SECONDS:
                found.append(
                    Problem(
                        where=self.node,
                        message=f"booted without the store, and served the last known state {since}",
                        hint="check the store, and the network to it; this note goes by itself",
                        warning=True,
                    )
                )
        if self.restored is not None and self.restored.exists():
            found.append(
                Problem(
                    where=self.node,
                    message="the store went back to an earlier state (a backup?); it is followed, and"
                    f" what was in force before is in {self.restored}",
                    hint=f"lbctl diff -f {self.restored} shows what the store has lost; remove the file"
                    " when that is settled",
                    warning=True,
                )
            )
        return tuple(found)

    def _say_restored(self, snapshot: Snapshot, state: DesiredState, after: DesiredState) -> None:
        log.error(
            "the store went back: from revision %d of cluster %s to revision %d of cluster %s",
            state.revision,
            self.cluster or "-",
            snapshot.revision,
            snapshot.cluster or "-",
        )
        if (state.services, state.backends) == (after.services, after.backends):
            return  # nothing was lost
        if self.restored is None or self.restored.exists():  # the first one tells most
            return
        entries = [(each, state.backends_of(name)) for name, each in sorted(state.services.items())]
        try:
            _write(self.restored, json.dumps(manifest.export(entries), indent=2))
        except OSError as error:
            log.error("what was in force before could not be kept: %s", error)


def _write(path: Path, text: str) -> None:
    """All of it or nothing, also if power fails; readable by its owner only, for the seed in it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
