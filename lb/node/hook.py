"""Telling somebody of what changed: of health a program or a URL of lb.toml, of rollouts a URL.

In a thread of its own with a queue, so that neither a slow listener nor one that is away keeps anything
back. What can't be delivered is tried again for a while; then it is given up, and the log says so.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import queue
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from lb.node.watched import Transition
from lb.probe import program
from lb.probe.base import Failed, excerpt
from lb.settings import Checks as Settings

log = logging.getLogger("lbd")

QUEUED = 1000  # changes; the oldest are dropped first
ANSWER_SECONDS = 10.0  # that a listener may take
RETRY_SECONDS = 120.0  # that one change is tried again


class NotDelivered(Exception):
    """The listener did not take it."""


@dataclass
class Courier:
    """Delivers in order, one after the other. `what`: for the log."""

    what: str
    _queue: queue.Queue[Callable[[], None] | None] = field(default_factory=lambda: queue.Queue(QUEUED))
    _thread: threading.Thread | None = None

    def send(self, deliver: Callable[[], None]) -> None:
        """Never waits. `deliver` raises NotDelivered to be tried again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.what, daemon=True)
            self._thread.start()
        while True:
            try:
                self._queue.put_nowait(deliver)
                return
            except queue.Full:
                self._queue.get_nowait()
                self._queue.task_done()
                log.error("%s: too slow; dropped what was the oldest", self.what)

    def end(self) -> bool:
        """End the thread, unless something is left to deliver; is it ended? For the one who sends."""
        if self._queue.unfinished_tasks:
            return False
        if self._thread is not None:
            self._thread = None
            self._queue.put_nowait(None)
        return True

    def _run(self) -> None:
        while (deliver := self._queue.get()) is not None:
            retrying = Retrying(
                stop=stop_after_delay(RETRY_SECONDS),
                wait=wait_exponential(multiplier=0.5, max=30),
                retry=retry_if_exception_type(NotDelivered),
            )
            try:
                retrying(deliver)
            except RetryError as error:
                log.error("%s: gave up: %s", self.what, error.last_attempt.exception())
            except Exception:  # a bug with one message is no reason to deliver no more
                log.exception("%s: internal error; dropped one", self.what)
            finally:
                self._queue.task_done()
        self._queue.task_done()


@dataclass
class Hook:
    """Tells of changes of health."""

    settings: Settings
    node: str
    # One that is away holds up no other.
    _hook: Courier = field(default_factory=lambda: Courier("hook"))
    _webhook: Courier = field(default_factory=lambda: Courier("webhook"))

    def tell(self, transition: Transition) -> None:
        """Never waits."""
        document = json.dumps({"node": self.node, **asdict(transition)})
        if self.settings.hook:
            self._hook.send(partial(execute, self.settings.hook, document))
        if self.settings.webhook:
            self._webhook.send(partial(post, self.settings.webhook, document))


def execute(argv: Sequence[str], document: str) -> None:
    """Give the document to a program, which ends, with all that it started, before ANSWER_SECONDS.
    Raises NotDelivered."""
    try:
        status, _, errors = asyncio.run(_execute(argv, document))
    except TimeoutError:
        raise NotDelivered(f"{argv[0]}: no end within {ANSWER_SECONDS:g} s") from None
    except Failed as error:
        raise NotDelivered(f"{error}") from None
    if status:
        words = program.describe_status(status)
        raise NotDelivered(f"{argv[0]}: {words}" + (f": {excerpt(errors)}" if errors else ""))


async def _execute(argv: Sequence[str], document: str) -> tuple[int, bytes, bytes]:
    async with asyncio.timeout(ANSWER_SECONDS):
        return await program.run(argv, os.environ, given=document.encode())


def post(url: str, document: str) -> None:
    """Post the document to a URL. Raises NotDelivered."""
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, document.encode(), headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass  # every status that isn't good is an error here
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotDelivered(f"{url}: {error}") from None
