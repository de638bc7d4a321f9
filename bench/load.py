"""The programs of wrapper.c, with maps of their own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.netns import MAC, OTHER
from lb.datapath import consts, headers, sources, structs
from lb.datapath.bpf import Map, MapType, Program, _libbpf
from lb.datapath.encode import index_key
from lb.datapath.kernel import Kernel
from lb.datapath.maps import Maps
from lb.errors import DatapathError
from lb.settings import Limits

WORDS, FLOWS, VERDICTS = 10, 1 << 20, 8
PROGRAMS = ("bench_empty", "bench_swap", "bench_lb")
LIVE = ("bench_generate", "bench_sink", "bench_live_tx", "bench_live_redirect", "bench_live_lb")
XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4


class BenchRun(ctypes.Structure):
    """struct bench_run."""

    _fields_ = (
        ("next", ctypes.c_uint32),
        ("flows", ctypes.c_uint32),
        ("ipv6", ctypes.c_uint32),
        ("ports", ctypes.c_uint32),
        ("spread", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("verdicts", ctypes.c_uint64 * VERDICTS),
        ("frame", ctypes.c_uint8 * (8 * WORDS)),
    )


@dataclass
class Bench:
    """The loaded programs and everything that they look at."""

    maps: Maps
    runs: Map
    flows: Map
    sunk: Map
    programs: Mapping[str, Program]
    kernel: Kernel

    def use_flows(self, flows: NDArray[np.void]) -> None:
        """Write the table of flows (dtype FLOW), at most FLOWS of them."""
        raw = flows.tobytes()
        self.flows.put(index_key(0), raw + bytes(self.flows.value_size - len(raw)))


FLOW = np.dtype([("addr", ">u4"), ("port", ">u2"), ("to", ">u2")])


def uniform_flows(to: Sequence[int] = (0,)) -> NDArray[np.void]:
    """FLOWS different pairs of source address (10.0.0.0/8) and port, in random order, to these
    destinations (lower halves of addresses) in turn."""
    numbers = np.random.default_rng(1).permutation(FLOWS).astype(np.uint64)
    flows = np.zeros(FLOWS, dtype=FLOW)
    # 16 ports for each of 65,536 clients.
    flows["addr"] = 0x0A000100 + (numbers >> np.uint64(4))
    flows["port"] = 32768 + (numbers & np.uint64(15)) * 1999
    flows["to"] = np.resize(np.array(to, dtype=np.uint16), FLOWS)
    return flows


def shuffled(flows: NDArray[np.void], sizes: Sequence[int]) -> NDArray[np.void]:
    """The same flows in another order, but for each of `sizes` (ascending) the same ones among the
    first so many. Entries lie in memory as they were inserted: walked in that order, 1 M of them cost
    a third less than in any other, as the processor sees them coming."""
    dice = np.random.default_rng(2)
    bounds = [0, *sizes, len(flows)]
    parts = [dice.permutation(np.arange(start, end)) for start, end in pairwise(bounds)]
    walked: NDArray[np.void] = flows[np.concatenate(parts)]
    return walked


def empty(table: Map) -> None:
    """Delete all entries of a hash map; a million take a second, where one by one they take many."""
    room = 65536
    keys = ctypes.create_string_buffer(table.key_size * room)
    values = ctypes.create_string_buffer(table.user_value_size * room)
    while (first := next(table.keys(), None)) is not None:
        position = ctypes.create_string_buffer(max(table.key_size, 4))
        count = ctypes.c_uint32(room)
        _libbpf().bpf_map_lookup_and_delete_batch(
            table.fd, None, position, keys, values, ctypes.byref(count), None
        )
        if not count.value:
            table.delete(first)  # no batches in this kernel


@contextmanager
def load(limits: Limits, programs: Sequence[str] = PROGRAMS) -> Iterator[Bench]:
    """Compile wrapper.c against the balancer's headers and new, unpinned maps, and load these programs
    of it ("tc" is the balancer at that hook). Compiles in this process: BCC and LLVM stay in its memory.
    """
    maps = Maps.create(limits)
    runs = Map.create(MapType.ARRAY, "bench_runs", 4, ctypes.sizeof(BenchRun), 1)
    flows = Map.create(MapType.ARRAY, "bench_flows", 4, FLOW.itemsize * FLOWS, 1)
    sunk = Map.create(MapType.ARRAY, "bench_sunk", 4, 8, 1)
    every = {**dict(maps), "bench_runs": runs, "bench_flows": flows, "bench_sunk": sunk}
    loaded = _compile(every, "xdp", [name for name in programs if name != "tc"])
    if "tc" in programs:
        loaded |= _compile(every, "tc", ["lb"])
    for index, mac in MAC.items():
        maps.egress.put(index_key(index), index_key(index))
        link = structs.Link(ifindex=index, master=index, mac=(ctypes.c_uint8 * 6)(*mac))
        maps.links.put(index_key(index % consts.LINKS), bytes(link))
    kernel = Kernel(maps)
    kernel.adopt()
    try:
        yield Bench(maps, runs, flows, sunk, loaded, kernel)
    finally:
        for each in (*loaded.values(), runs, flows, sunk, *(each for _, each in maps)):
            each.close()


def _compile(maps: Mapping[str, Map], hook: str, names: Sequence[str]) -> dict[str, Program]:
    top = sources.directory()
    flags = [
        f"-I{top / 'xdp/include'}",
        f"-I{top / hook}",
        f"-DBENCH_OTHER={OTHER}",
        *(f"-DLB_FD_{name.upper()}={each.fd}" for name, each in maps.items()),
    ]
    path = top / "tc/lb.c" if hook == "tc" else Path(__file__).with_name("wrapper.c")
    loaded = compiled(path, hook, names, flags)
    return {name if hook == "xdp" else hook: each for name, each in loaded.items()}


def compiled(path: Path, hook: str, names: Sequence[str], flags: Sequence[str]) -> dict[str, Program]:
    """Programs of a file, by name. Raises DatapathError."""
    os.environ["BCC_KERNEL_SOURCE"] = str(headers.find().path)
    from bcc import BPF  # reads the environment

    kind = BPF.SCHED_CLS if hook == "tc" else BPF.XDP
    try:
        module = BPF(text=path.read_text(), cflags=["-Wno-ignored-attributes", *flags])
        loaded = {name: module.load_func(name, kind) for name in names}
    except Exception as error:
        raise DatapathError(
            f"{path.name}: {error}", hint="what the compiler or the verifier said is above"
        ) from error
    return {name: Program(os.dup(each.fd)) for name, each in loaded.items()}
