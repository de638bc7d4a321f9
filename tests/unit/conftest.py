"""`lbctl` for tests: the real commands, on a real store in a file, without root or a kernel."""

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rolling import Runner

from lb.cli import main
from lb.model import keys
from lb.model.objects import Member, NodeStatus
from lb.store.base import Delete, Put, Store
from lb.store.opening import open_store


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


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a machine without lbd, and without what this one has in /etc."""
    (tmp_path / "lb.toml").write_text("")
    monkeypatch.setenv("LB_CONFIG", str(tmp_path / "lb.toml"))
    monkeypatch.setenv("LB_STORE", str(tmp_path / "store.db"))
    monkeypatch.setenv("LB_PIN_DIR", str(tmp_path / "no-pins"))
    monkeypatch.delenv("LB_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def lbctl(machine: Path, capsys: pytest.CaptureFixture[str]) -> Lbctl:
    assert os.environ["LB_STORE"].startswith(str(machine))  # not this machine's own store
    return Lbctl(capsys)


@pytest.fixture
def web(lbctl: Lbctl) -> Lbctl:
    """With a service `web` and its backends b1 (50), b2 (30), b3 (20)."""
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    for number, weight in ((1, 50), (2, 30), (3, 20)):
        lbctl.ok("backend", "add", "web", f"b{number}", f"10.0.1.{number}", "--weight", str(weight))
    return lbctl


@pytest.fixture
def store(machine: Path):
    with open_store(str(machine / "store.db")) as opened:
        yield opened


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


@pytest.fixture
def nodes(store: Store):
    running = Nodes(store)
    yield running
    running.stop()


@pytest.fixture
def canary(web: Any) -> Any:
    web.ok("backend", "add", "web", "c1", "203.0.113.9", "--pool", "canary")
    return web


@pytest.fixture
def runner(store: Store, canary: Any, nodes: Any) -> Runner:
    """A node that applies what is stored, and runs rollouts."""
    assert canary.json("backend", "list", "web")
    nodes.follow("n1")
    return Runner(store)
