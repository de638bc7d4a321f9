"""Who listens for changes of health is told of each, in order, and holds nobody up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lb.core.health import State
from lb.model.objects import Admin
from lb.node import hook as hooks
from lb.node.checks import Transition
from lb.node.hook import Hook, NotDelivered, execute, post
from lb.settings import Checks


def transition(number: int) -> Transition:
    return Transition("web", f"b{number}", "203.0.113.11", State.HEALTHY, State.UNHEALTHY, 1000.0,
                      "connection refused", Admin.UP)  # fmt: skip


class Listener(ThreadingHTTPServer):
    """Takes posts; answers 503 to as many as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.came: list[dict[str, Any]] = []
        self.refuse = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.may_answer.wait(60)
        if self.server.refuse:
            self.server.refuse -= 1
            self.send_error(503)
            return
        self.server.came.append(body)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_webhook_is_told_in_order_and_again_until_it_takes_it(listener: Listener) -> None:
    listener.refuse = 2
    hook = Hook(Checks(webhook=listener.url), "node1")
    listener.may_answer.clear()
    for number in range(5):
        hook.tell(transition(number))
    listener.may_answer.set()  # nobody waited for it
    wait_for(lambda: len(listener.came) == 5)
    assert [each["backend"] for each in listener.came] == ["b0", "b1", "b2", "b3", "b4"]
    assert listener.came[0] == {
        "node": "node1", "service": "web", "backend": "b0", "address": "203.0.113.11",
        "before": "healthy", "after": "unhealthy", "at": 1000.0, "words": "connection refused",
        "admin": "up",
    }  # fmt: skip


def test_a_program_gets_it_on_its_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hook = Hook(Checks(hook=("/bin/sh", "-c", f"cat >>{out}; echo >>{out}")), "node1")
    hook.tell(transition(1))
    hook.tell(transition(2))
    wait_for(lambda: out.exists() and out.read_text().count("\n") == 2)
    assert [json.loads(line)["backend"] for line in out.read_text().splitlines()] == ["b1", "b2"]


def test_what_is_not_delivered_says_why() -> None:
    with pytest.raises(NotDelivered, match='status 3: "full"'):
        execute(("/bin/sh", "-c", "echo full >&2; exit 3"), "{}")
    with pytest.raises(NotDelivered, match="No such file"):
        execute(("/nowhere",), "{}")
    with pytest.raises(NotDelivered, match="refused"):
        post("http://127.0.0.1:1/", "{}")
    with pytest.raises(NotDelivered):
        post("no-url", "{}")


def test_a_program_may_say_anything_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = r"printf '\\344\\377' >&2; exit 1"
    with pytest.raises(NotDelivered, match="status 1"):
        execute(("/bin/sh", "-c", latin), "{}")
    monkeypatch.setattr(hooks, "ANSWER_SECONDS", 1.0)
    with pytest.raises(NotDelivered, match="no end within 1 s"):
        execute(("/bin/sh", "-c", f"sleep 100 & echo $! >{tmp_path}/pid; wait"), "{}")
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    wait_for(lambda: not stat.exists() or "(sleep) Z" in stat.read_text())


def test_a_bug_with_one_message_and_a_webhook_that_is_away_hold_up_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ("/bin/sh", "-c", f"cat >>{out}; echo >>{out}")
    hook = Hook(Checks(hook=command, webhook="http://127.0.0.1:1/"), "node1")
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "execute", lambda *_: 1 / 0)
        hook.tell(transition(1))
        wait_for(lambda: "internal error" in caplog.text)
    hook.tell(transition(2))
    hook.tell(transition(3))
    wait_for(lambda: out.exists() and out.read_text().count("\n") == 2)


def test_a_listener_that_is_away_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "RETRY_SECONDS", 0.0)
    hook = Hook(Checks(webhook="http://127.0.0.1:1/"), "node1")
    hook.tell(transition(1))
    wait_for(lambda: "gave up" in caplog.text)
    # While one is tried, others queue; the oldest are dropped, and that is said.
    stuck = threading.Event()
    monkeypatch.setattr(hooks, "post", lambda *_: stuck.wait(10))
    for number in range(hooks.QUEUED + 10):
        hook.tell(transition(number))
    assert "too slow; dropped" in caplog.text
    stuck.set()


def test_without_a_listener_there_is_no_thread() -> None:
    before = threading.active_count()
    Hook(Checks(), "node1").tell(transition(1))
    assert threading.active_count() == before


def test_a_courier_ends_when_all_is_delivered_and_may_begin_anew() -> None:
    courier = hooks.Courier("a courier")
    assert courier.end()  # it has not begun
    held, came = threading.Event(), []
    courier.send(lambda: came.append(held.wait(10)))
    assert not courier.end()
    held.set()
    wait_for(courier.end)
    wait_for(lambda: all(each.name != "a courier" for each in threading.enumerate()))
    courier.send(lambda: came.append(True))
    wait_for(lambda: came == [True, True])
    wait_for(courier.end)
