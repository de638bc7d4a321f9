"""`lbctl` and nodes, as tests without a kernel have them."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from lb.cli import main
from lb.errors import CapacityError
from lb.model import keys
from lb.model.reports import Member, NodeStatus
from lb.store.base import Delete, Put, Store


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Lbctl:
    """Runs commands in this process, through the same door as the program."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        code = main.run(arguments)
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *arguments: str) -> Result:
        result = self(*arguments)
        assert result.code == 0, result
        return result

    def json(self, *arguments: str) -> Any:
        return self.ok(*arguments, "-o", "json").json


def node_status(name: str, revision: int, **fields: Any) -> NodeStatus:
    return NodeStatus(
        node=name,
        version="0.1.0",
        pid=1,
        started=0.0,
        revision=revision,
        links=fields.pop("links", ()),
        pin_dir="/sys/fs/bpf/lb",
        **fields,
    )


class Nodes:
    """Stands in for `lbd`s: statuses in the store, put once or after each change."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._threads: list[threading.Thread] = []
        self._watches: list[Any] = []

    def put(self, name: str, revision: int, **fields: Any) -> None:
        status = node_status(name, revision, **fields)
        self.store.commit([Put(keys.node(name), status.model_dump_json())])

    def lose(self, name: str) -> None:
        """What is left of a node whose lease has ended."""
        member = Member(node=name, since=0.0)
        self.store.commit([Put(keys.member(name), member.model_dump_json()), Delete(keys.node(name))])

    def follow(self, name: str, **fields: Any) -> None:
        """A node that applies every change, and then reports with these fields."""
        self.put(name, 0)
        watch = self.store.watch(keys.ROOT, after=self.store.read(keys.ROOT).revision)

        def serve() -> None:
            while (batch := watch.next()) is not None:
                if any(not event.key.startswith(keys.BESIDE) for event in batch.events):
                    self.put(name, batch.revision, **fields)

        self._watches.append(watch)
        self._threads.append(threading.Thread(target=serve, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        for watch in self._watches:
            watch.close()
        for thread in self._threads:
            thread.join(10)


class Small:
    """The store, which takes so many characters at once, as etcd takes 1.5 MiB."""

    def __init__(self, store: Store, limit: int) -> None:
        self.store, self.limit = store, limit
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def commit(self, operations: list[Put | Delete], *compares: Any) -> int:
        if sum(len(each.value) for each in operations if isinstance(each, Put)) > self.limit:
            self.refused += 1
            raise CapacityError("request is too large")
        return self.store.commit(operations, *compares)
