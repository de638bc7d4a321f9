"""The reporter of a backend that observes itself: what tc/watch.c counted, put into the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pyroute2 import IPRoute

from lb.datapath.selfwatch import SelfWatch, refusal
from lb.errors import LbError, StoreUnavailable
from lb.model import keys
from lb.model.flows import FlowReport, Vantage
from lb.model.objects import Backend, Service
from lb.node.happenings import Timer
from lb.node.reporter import RENEW_SECONDS, Reporter
from lb.store.base import Store

log = logging.getLogger("lbctl")

LOOK_SECONDS = 1.0
READ_SECONDS = 5.0  # between two looks at whether the service or its backends have changed


@dataclass
class SelfObserver:
    """Observes this machine's part in these services. Of each it is the backend with this `name` or, if
    it is "", the one with an address of this machine."""

    store: Store
    ip: IPRoute
    watch: SelfWatch
    services: Collection[str]
    name: str = ""
    _said: dict[str, str] = field(default_factory=dict)
    _own: dict[str, tuple[Service, str]] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. What is attached stays, and goes on counting."""
        reporter = Reporter(self.store)
        renew, read = Timer(RENEW_SECONDS), Timer(READ_SECONDS)
        while not stop.is_set():
            now = time.monotonic()
            if read.is_due(now):
                self._read()
            self.watch.watch.look(time.monotonic_ns())
            reporter.report_flows(self._reports())
            if renew.is_due(now):
                reporter.renew()
            stop.wait(LOOK_SECONDS)
        try:
            reporter.leave()
        except StoreUnavailable as error:
            log.error("store: %s", error)

    def _reports(self) -> Mapping[str, FlowReport]:
        """Each in the name of the backend that it is of."""
        found = self.watch.watch.reports("", Vantage.BACKEND)
        return {
            service: report.model_copy(update={"node": self._own[service][1]})
            for service, report in found.items()
        }

    def _read(self) -> None:
        """What the store says now; if it doesn't answer, what it said stays in force."""
        own = {}
        for name in self.services:
            try:
                found = self._find(name)
            except (StoreUnavailable, ValueError) as error:
                self._say(name, f"service {name}: {error}; going on as before")
                found = self._own.get(name)
            except LbError as error:
                self._say(name, f"service {name}: {error}")
                found = None
            if found:
                own[name] = found
        self._own = own
        self.watch.follow(own)

    def _find(self, name: str) -> tuple[Service, str] | None:
        item = self.store.get(keys.service(name))
        if item is None:
            self._say(name, f"service {name} does not exist (yet)")
            return None
        service = Service.model_validate_json(item.value)
        if why := refusal(service):
            self._say(name, f"service {name} can't be observed here: {why}")
            return None
        items = self.store.read(keys.backend(name, "")).items
        backends = [Backend.model_validate_json(each.value) for each in items]
        mine = [each.name for each in backends if self._is_mine(each)]
        if len(mine) != 1:
            self._say(name, f"service {name}: {_whose(mine)}; say which with --backend")
            return None
        self._say(name, f"observing service {name} as its backend {mine[0]}")
        return service, mine[0]

    def _is_mine(self, backend: Backend) -> bool:
        if self.name:
            return backend.name == self.name
        addresses = {
            each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS") for each in self.ip.get_addr()
        }
        return str(backend.address) in addresses

    def _say(self, service: str, words: str) -> None:
        """Once, not with each look."""
        if self._said.get(service) != words:
            self._said[service] = words
            log.warning("%s", words)


def _whose(mine: Collection[str]) -> str:
    if mine:
        return f"several of its backends have an address of this machine ({', '.join(sorted(mine))})"
    return "none of its backends is this machine"
