"""The flows that the kernel remembers, for people: listed, filtered, forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.core.flows import Filter, Flow, Kind
from lb.core.ids import uid
from lb.core.state import DesiredState
from lb.datapath import expiry, mapkeys, structs, sweep
from lb.datapath.encode import index_key
from lb.datapath.kernel import read_owners
from lb.datapath.maps import Maps
from lb.model import keys


@dataclass(frozen=True, eq=False)
class _Entries:
    """Entries of one map: `keys` of sweep.KEY, `values` of sweep.FLOW or expiry.BINDING."""

    kind: Kind
    keys: NDArray[Any]
    values: NDArray[Any]

    def __getitem__(self, chosen: NDArray[np.bool_] | slice) -> _Entries:
        return _Entries(self.kind, self.keys[chosen], self.values[chosen])

    def __len__(self) -> int:
        return len(self.keys)


class FlowTable:
    """The flows in these maps, as they were when this was made. `state` has the names."""

    def __init__(self, maps: Maps, state: DesiredState) -> None:
        self._maps = maps
        self._services = _named(
            read_owners(maps.service_owners),
            {uid(keys.service(name)): (name,) for name in state.services},
        )
        self._backends = _named(
            read_owners(maps.backend_owners), {uid(keys.backend(*key)): key for key in state.backends}
        )
        begun, established = sweep.read(maps)
        flows, bindings = maps.bindings.dump()
        self._entries = [
            _Entries(Kind.BEGUN, begun.keys, begun.values),
            _Entries(Kind.ESTABLISHED, established.keys, established.values),
            _Entries(
                Kind.TRANSLATED,
                np.frombuffer(flows, sweep.KEY),
                np.frombuffer(bindings, expiry.BINDING),
            ),
        ]

    def count(self, only: Filter) -> int:
        """How many there are of these."""
        return sum(len(each) for each in self._chosen(only))

    def listed(self, only: Filter, limit: int, now: int, rate: float) -> list[Flow]:
        """At most so many of them. `now` is in jiffies, `rate` jiffies per second."""
        found: list[Flow] = []
        for entries in self._chosen(only):
            some = entries[: limit - len(found)]
            for key, value in zip(some.keys, some.values, strict=True):
                bound = entries.kind is Kind.TRANSLATED
                found.append(
                    Flow(
                        kind=entries.kind,
                        service=self._service(int(key["service"])),
                        client=mapkeys.address_from(key["client"].tobytes()),
                        client_port=int(key["client_port"]),
                        vip_port=int(key["vip_port"]),
                        backend=self._backend(int(value["backend"]), int(value["generation"])),
                        idle=(now - int(value["seen"])) % 2**32 / rate,
                        source=mapkeys.address_from(value["source"].tobytes()) if bound else None,
                        source_port=int(value["port"]) if bound else None,
                    )
                )
        return found

    def forget(self, only: Filter) -> int:
        """Remove these, and what translates their answers. Returns how many there were. A packet of one
        of them that comes later goes where its slot says."""
        chosen = self._chosen(only)
        for entries in chosen:
            gone = [key.tobytes() for key in entries.keys]
            if entries.kind is Kind.TRANSLATED:
                self._forget_answers(entries)
                self._maps.bindings.delete_many(gone)
            else:
                # One that got further meanwhile is in the other map by now.
                self._maps.embryonic.delete_many(gone)
                self._maps.conntrack.delete_many(gone)
        return sum(len(each) for each in chosen)

    def _forget_answers(self, entries: _Entries) -> None:
        backs, clients = expiry.table(self._maps.translations.dump(), expiry.TRANSLATED, expiry.CLIENT)
        at = expiry.find(np.frombuffer(entries.keys.tobytes(), expiry.FLOW), clients["flow"])
        known = at >= 0
        known[known] = entries.values["port"][at[known]] == backs["port"][known]
        self._maps.translations.delete_many([key.tobytes() for key in backs[known]])

    def _chosen(self, only: Filter) -> list[_Entries]:
        chosen = []
        for entries in self._entries:
            if only.kind not in (None, entries.kind):
                continue
            mine = np.ones(len(entries), dtype=np.bool_)
            if only.service is not None:
                mine &= np.isin(entries.keys["service"], _numbers(self._services, only.service, 0))
            if only.backend is not None:
                mine &= np.isin(entries.values["backend"], _numbers(self._backends, only.backend, 1))
            if only.client is not None:
                mine &= mapkeys.within(entries.keys["client"], only.client)
            chosen.append(entries[mine])
        return chosen

    def _service(self, number: int) -> str:
        return self._services[number][0] if number in self._services else f"id {number}"

    def _backend(self, number: int, generation: int) -> str | None:
        raw = self._maps.backends.get(index_key(number)) or b""
        if number not in self._backends:
            return None
        if structs.Backend.from_buffer_copy(raw).generation != generation:
            return None
        return self._backends[number][1]


def _named(
    owners: Mapping[int, int], names: Mapping[int, tuple[str, ...]]
) -> dict[int, tuple[str, ...]]:
    return {number: names[owner] for number, owner in owners.items() if owner in names}


def _numbers(named: Mapping[int, tuple[str, ...]], name: str, part: int) -> list[int]:
    return [number for number, each in named.items() if each[part] == name]
