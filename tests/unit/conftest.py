"""`lbctl` for tests: the real commands, on a real store in a file, without root or a kernel."""

import os
from pathlib import Path
from typing import Any

import pytest
from doubles import Lbctl, Nodes
from rolling import Runner

from lb.store.base import Store
from lb.store.opening import open_store


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
