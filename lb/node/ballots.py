"""What the other nodes found of backends' health, beside what this one did. Rules: lb/core/quorum.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.core import quorum
from lb.core.health import Record
from lb.core.quorum import Votes
from lb.probe.scheduler import Key

log = logging.getLogger("lbd")

_HERE = ""  # this node among those that vote; others have names


@dataclass
class Ballots:
    """The votes of a fleet."""

    others: Mapping[str, Votes] = field(default_factory=dict)  # by node
    _suspected: frozenset[str] = frozenset()

    @property
    def is_suspect(self) -> bool:
        """Is it this node that is likelier to be broken?"""
        return _HERE in self._suspected

    def hear(self, others: Mapping[str, Votes]) -> set[str]:
        """Take in what all other nodes found; returns the services whose votes differ."""
        changed: set[str] = set()
        for node in others.keys() | self.others.keys():
            before, after = self.others.get(node, {}), others.get(node, {})
            if before is after:
                continue
            changed |= {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        self.others = dict(others)
        return {path.partition("/")[0] for path in changed}

    def suspect(self, records: Mapping[Key, Record]) -> bool:
        """True if others are suspected than before. `records`: this node's own."""
        was_suspect, before = self.is_suspect, self._suspected
        own = {"/".join(key): vote for key, each in records.items() if (vote := quorum.vote(each))}
        self._suspected = quorum.suspects({**self.others, _HERE: own}) if self.others else frozenset()
        if self.is_suspect and not was_suspect:
            log.warning("health: only this node finds most of its backends unhealthy")
        return self._suspected != before

    def agreed(self, key: Key, own: Record | None) -> Record | None:
        """This node's record of a backend as the fleet has it."""
        if own is None or not self.others:
            return own
        path, vote = "/".join(key), quorum.vote(own)
        ballots = {**self.others, _HERE: {path: vote} if vote else {}}
        return quorum.agreed(own, quorum.electorate(ballots, self._suspected, path))
