"""The real programs, in a kernel world that is the same as the model's.

`Kernel` is one hook's program with maps of its own; `install` writes a World into them, `run` sends
one frame through BPF_PROG_TEST_RUN and reads back all that it changed.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lb.core.reference import (
    Binding,
    Client,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    NatState,
    Outcome,
    Past,
    Result,
    Sender,
    Stats,
    Translated,
    Verdict,
    World,
)
from lb.core.reference.world import Backend, Endpoint, Service
from lb.datapath import compile as compiler
from lb.datapath import consts, contents, mapkeys, slotmaps, structs
from lb.datapath.bpf import Map, Program, ProgramType, _check, _libbpf, _TestRunOpts, possible_cpus
from lb.datapath.maps import Maps, new_table
from lb.datapath.release import XDP_REPLAY
from lb.model.objects import Address
from lb.settings import Limits

from . import netns

LIMITS = Limits(services=16, vips=64, backends=64, conntrack=65536, embryonic=4096)
SERVICES = range(1, LIMITS.services)
BACKENDS = range(1, LIMITS.backends)

# uapi/linux/bpf.h and uapi/linux/pkt_cls.h
XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT = 2**32 - 1, 2, 7  # -1, as a test run returns it
NEVER = 2**62  # nobody's clock gets there

TEST_SKB_CHECKSUM_COMPLETE = 1 << 2


def expected_verdict(hook: str, result: Result, egress: frozenset[int]) -> int:
    """The number by which a hook says what the model says in words."""
    if hook == "tc":
        return {
            Verdict.PASS: TC_ACT_UNSPEC,
            Verdict.DROP: TC_ACT_SHOT,
            Verdict.TX: TC_ACT_REDIRECT,
            Verdict.REDIRECT: TC_ACT_REDIRECT,
        }[result.verdict]
    if result.verdict is Verdict.REDIRECT and result.ifindex not in egress:
        return XDP_ABORTED
    return {
        Verdict.PASS: XDP_PASS,
        Verdict.DROP: XDP_DROP,
        Verdict.TX: XDP_TX,
        Verdict.REDIRECT: XDP_REDIRECT,
    }[result.verdict]


@dataclass(frozen=True)
class Seen:
    """What the kernel did with one frame, in the model's terms."""

    verdict: int
    frame: bytes
    outcomes: dict[Outcome, tuple[int, int]]  # packets and bytes added
    services: dict[int, Stats]
    backends: dict[int, Stats]


@dataclass
class Kernel:
    """One hook's program, with its maps."""

    hook: str
    maps: Maps
    program: Program
    instructions: int
    egress: frozenset[int]
    _world: World = field(default_factory=World)

    def install(self, world: World) -> None:
        """Make the maps say what the world says, and nothing else; but for the slots and their past,
        which are in tables that the kernels share.
        """
        maps, old = self.maps, self._world
        hashes = (
            "vips",
            "ranges",
            "rules",
            "nat_back",
            "conntrack",
            "embryonic",
            "senders",
            "bindings",
            "translations",
            "fragments",
            "quic",
        )
        for name in hashes:
            each = maps.by_name[name]
            for found in list(each.keys()):
                each.delete(found)
        for ifindex in old.links:
            maps.links.put(u32(ifindex % consts.LINKS), bytes(ctypes.sizeof(structs.Link)))
        for number in old.services:
            maps.services.put(u32(number), bytes(ctypes.sizeof(structs.Service)))
        for number in old.backends:
            maps.backends.put(u32(number), bytes(ctypes.sizeof(structs.Backend)))

        for ifindex, mac in world.links.items():
            master = world.ports.get(ifindex, ifindex)
            link = structs.Link(ifindex=ifindex, master=master, mac=array(6, mac))
            maps.links.put(u32(ifindex % consts.LINKS), bytes(link))
        for vip, number in world.vips.items():
            maps.vips.put(endpoint(vip), u32(number))
        for span, number in world.ranges.items():
            for prefix in mapkeys.port_range(span.address, span.first, span.last, span.proto):
                maps.ranges.put(prefix, u32(number))
        for address in {vip.address for vip in (*world.vips, *world.ranges)}:
            bits = sum(
                bit
                for protocol, bit in consts.VIP_BIT.items()
                if consts.PROTOCOL_NUMBER[protocol] in world.served(address)
            )
            maps.vips.put(mapkeys.endpoint(address, 0, socket.IPPROTO_ICMP), u32(bits))
        for number, service in world.services.items():
            has_rules = bool(world.rules.get(number))
            maps.services.put(u32(number), bytes(service_struct(service, has_rules=has_rules)))
        for number, rules in world.rules.items():
            for prefix, rule in rules.items():
                maps.rules.put(
                    mapkeys.rule_key(number, prefix),
                    bytes(structs.Rule(rule.table, rule.before, rule.closes)),
                )
        for number, backend in world.backends.items():
            maps.backends.put(u32(number), bytes(backend_struct(backend)))
        for where, nat in world.nat_back.items():
            maps.nat_back.put(endpoint(where), bytes(structs.NatBack(nat.service, nat.backend)))
        for key, flow in world.conntrack.items():
            maps.conntrack.put(flow_key(key), flow_struct(flow))
        for key, flow in world.embryonic.items():
            maps.embryonic.put(flow_key(key), flow_struct(flow))
        for address, sender in world.senders.items():
            at = structs.Place(ifindex=sender.ifindex, mac=array(6, sender.mac))
            maps.senders.put(mapkeys.address_bytes(address), bytes(at))
        for key, binding in world.bindings.items():
            maps.bindings.put(flow_key(key), binding_struct(binding))
        for back, client in world.translations.items():
            maps.translations.put(translated(back), client_struct(client))
        for piece, first in world.fragments.items():
            maps.fragments.put(fragment_key(piece), fragment_struct(first))
        for (number, server_id), backend in world.quic.items():
            maps.quic.put(bytes(structs.QuicKey(server_id, number)), u32(backend))
        for kind in consts.Error:
            self.set_allowance(kind, 0 if world.may_send_errors else NEVER)
        contents.turn_page(maps, consts.Has.RANGES | consts.Has.NAT_BACK)
        self._world = world

    def set_allowance(self, kind: consts.Error, spent: int) -> None:
        """Up to when (CLOCK_MONOTONIC, ns) the CPUs have spent their time on ICMP errors."""
        self.maps.allowance.put(u32(kind), struct.pack("=Q", spent) * possible_cpus())

    def allowance(self, kind: consts.Error) -> list[int]:
        """The same, of each CPU."""
        return list(struct.unpack(f"={possible_cpus()}Q", self.maps.allowance.get(u32(kind))))

    def use_tables(self, tables: Mapping[int, TableMaps]) -> None:
        """Give services their slot tables. Slow: the kernel waits for all programs to be done."""
        for number, table in tables.items():
            self.maps.tables.put(slotmaps.past_key(number), u32(table.past.fd))
            self.maps.tables.put(slotmaps.table_key(number), u32(table.slots.fd))

    def run(self, frame: bytes, ifindex: int, *, flags: int = 0) -> Seen:
        """One frame through the program."""
        before = self._counters()
        verdict, out = test_run(self.program, frame, self.context(len(frame), ifindex), flags)
        after = self._counters()
        outcomes, services, backends = (
            {n: after[i][n] - before[i][n] for n in np.flatnonzero((after[i] != before[i]).any(1))}
            for i in range(3)
        )
        return Seen(
            verdict,
            out,
            {Outcome[consts.Outcome(n).name]: tuple(map(int, v)) for n, v in outcomes.items()},
            {int(n): Stats(*map(int, v)) for n, v in services.items()},
            {int(n): Stats(*map(int, v)) for n, v in backends.items()},
        )

    def takes(self, frame: bytes) -> bool:
        """The test run of tc refuses IP frames without a whole IP header, and empty ones."""
        if self.hook != "tc":
            return True
        header = {0x0800: 20, 0x86DD: 40}.get(int.from_bytes(frame[12:14]), 1)
        return len(frame) >= 14 + header

    def context(self, size: int, ifindex: int) -> bytes:
        if self.hook == "tc":
            # struct __sk_buff, up to ifindex.
            return bytes(40) + u32(ifindex)
        if not XDP_REPLAY.is_here():
            assert ifindex == netns.A
            return b""
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        return struct.pack("=6I", 0, size, 0, ifindex, 0, 0)

    def _counters(self) -> list[np.ndarray]:
        """Outcomes, service and backend statistics: sums over the CPUs, one row per key."""
        return [
            read_all(self.maps.outcomes, len(Outcome)),
            read_all(self.maps.service_stats, LIMITS.services),
            read_all(self.maps.backend_stats, LIMITS.backends),
        ]

    def flow(self, where: str, key: FlowKey) -> Flow | None:
        """An entry of `conntrack` or `embryonic`."""
        raw = self.maps.by_name[where].get(flow_key(key))
        return flow_from(raw) if raw else None

    def flows(self, where: str) -> dict[FlowKey, Flow]:
        """All entries of `conntrack` or `embryonic`."""
        found = {}
        for raw_key, raw in self.maps.by_name[where].items():
            key = structs.FlowKey.from_buffer_copy(raw_key)
            found[flow_key_from(key)] = flow_from(raw)
        return found

    def bindings(self) -> dict[FlowKey, Binding]:
        """The whole bindings map."""
        found = {}
        for raw_key, raw in self.maps.bindings.items():
            each = structs.Binding.from_buffer_copy(raw)
            found[flow_key_from(structs.FlowKey.from_buffer_copy(raw_key))] = Binding(
                mapkeys.address_from(bytes(each.source)),
                each.backend,
                each.generation,
                each.seen,
                socket.ntohs(each.port),
                NatState(each.state),
            )
        return found

    def translations(self) -> dict[Translated, Client]:
        """The whole translations map."""
        found = {}
        for raw_key, raw in self.maps.translations.items():
            key = structs.Translated.from_buffer_copy(raw_key)
            each = structs.Client.from_buffer_copy(raw)
            back = Translated(
                mapkeys.address_from(bytes(key.backend)),
                socket.ntohs(key.backend_port),
                mapkeys.address_from(bytes(key.source)),
                socket.ntohs(key.port),
                key.proto,
            )
            state = NatState(each.state)
            found[back] = Client(flow_key_from(each.flow), each.backend, each.seen, state)
        return found

    def fragments(self) -> dict[FragmentKey, Fragment]:
        """The whole fragments map."""
        return {
            fragment_key_from(raw_key): fragment_from(raw)
            for raw_key, raw in self.maps.fragments.items()
        }

    def senders(self) -> dict[Address, Sender]:
        """The whole senders map."""
        found = {}
        for raw_key, raw in self.maps.senders.items():
            link = structs.Place.from_buffer_copy(raw)
            found[mapkeys.address_from(raw_key)] = Sender(link.ifindex, bytes(link.mac))
        return found


def compare(kernel: Kernel, frame: bytes, expected: Result, seen: Seen) -> list[str]:
    """How they differ, in words."""
    wanted = (
        expected_verdict(kernel.hook, expected, kernel.egress),
        expected.frame,
        {expected.outcome: (1, len(frame))},
        dict([expected.service] if expected.service else []),
        dict([expected.backend] if expected.backend else []),
    )
    got = (seen.verdict, seen.frame, seen.outcomes, seen.services, seen.backends)
    names = ("verdict", "frame", "outcome", "service counters", "backend counters")
    return [
        f"{kernel.hook}: {name}: model {_show(a)}, kernel {_show(b)}"
        for name, a, b in zip(names, wanted, got, strict=True)
        if a != b
    ]


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def array(size: int, value: bytes) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * size)(*value)


def endpoint(where: Endpoint) -> bytes:
    return mapkeys.endpoint(where.address, where.port, where.proto)


def service_struct(service: Service, *, has_rules: bool = False) -> structs.Service:
    return structs.Service(
        seed=(ctypes.c_uint64 * 2)(*service.seed),
        vip=array(16, mapkeys.address_bytes(service.vip)),
        port=socket.htons(service.port),
        proto=service.proto,
        mode=consts.MODE_NUMBER[service.mode],
        affinity=consts.AFFINITY_NUMBER[service.affinity],
        tracking=consts.TRACKING_NUMBER[service.tracking],
        no_backend=consts.NO_BACKEND_NUMBER[service.no_backend],
        has_rules=has_rules,
        quic_bytes=service.quic_bytes,
        quic_config=service.quic_config,
    )


def backend_struct(backend: Backend) -> structs.Backend:
    flags = consts.BackendFlag(0)
    if backend.usable:
        flags |= consts.BackendFlag.USABLE
    if backend.resets:
        flags |= consts.BackendFlag.RESETS
    if backend.resolved:
        flags |= consts.BackendFlag.RESOLVED
    return structs.Backend(
        addr=array(16, mapkeys.address_bytes(backend.address)),
        ifindex=backend.ifindex,
        generation=backend.generation,
        dmac=array(6, backend.dmac),
        smac=array(6, backend.smac),
        source=array(16, mapkeys.address_bytes(backend.source))
        if backend.source
        else array(16, bytes(16)),
        port=socket.htons(backend.port),
        mtu=backend.mtu,
        flags=flags,
    )


def flow_key(key: FlowKey) -> bytes:
    return bytes(
        structs.FlowKey(
            client=array(16, mapkeys.address_bytes(key.client)),
            service=key.service,
            client_port=socket.htons(key.client_port),
            vip_port=socket.htons(key.vip_port),
        )
    )


def flow_key_from(key: structs.FlowKey) -> FlowKey:
    return FlowKey(
        mapkeys.address_from(bytes(key.client)),
        key.service,
        socket.ntohs(key.client_port),
        socket.ntohs(key.vip_port),
    )


def binding_struct(binding: Binding) -> bytes:
    return bytes(
        structs.Binding(
            source=array(16, mapkeys.address_bytes(binding.source)),
            backend=binding.backend,
            generation=binding.generation,
            seen=binding.seen,
            port=socket.htons(binding.port),
            state=binding.state.value,
        )
    )


def translated(key: Translated) -> bytes:
    return bytes(
        structs.Translated(
            backend=array(16, mapkeys.address_bytes(key.backend)),
            source=array(16, mapkeys.address_bytes(key.source)),
            backend_port=socket.htons(key.backend_port),
            port=socket.htons(key.port),
            proto=key.proto,
        )
    )


def client_struct(client: Client) -> bytes:
    flow = structs.FlowKey.from_buffer_copy(flow_key(client.flow))
    return bytes(structs.Client(flow, client.backend, client.seen, client.state.value))


def fragment_key(key: FragmentKey) -> bytes:
    return bytes(
        structs.FragmentKey(
            src=array(16, mapkeys.address_bytes(key.source)),
            dst=array(16, mapkeys.address_bytes(key.destination)),
            id=array(4, key.identification),
            proto=key.proto,
        )
    )


def fragment_key_from(raw: bytes) -> FragmentKey:
    key = structs.FragmentKey.from_buffer_copy(raw)
    ends = mapkeys.address_from(bytes(key.src)), mapkeys.address_from(bytes(key.dst))
    return FragmentKey(*ends, bytes(key.id), key.proto)


def fragment_struct(first: Fragment) -> bytes:
    address = mapkeys.address_bytes(first.address) if first.address else bytes(16)
    return bytes(
        structs.Fragment(
            addr=array(16, address),
            service=first.service,
            backend=first.backend,
            generation=first.generation,
            mode=consts.MODE_NUMBER[first.mode],
            is_answer=first.is_answer,
            until=first.until,
        )
    )


def fragment_from(raw: bytes) -> Fragment:
    first = structs.Fragment.from_buffer_copy(raw)
    modes = {number: mode for mode, number in consts.MODE_NUMBER.items()}
    return Fragment(
        service=first.service,
        backend=first.backend,
        generation=first.generation,
        mode=modes[first.mode],
        address=mapkeys.address_from(bytes(first.addr)) if any(first.addr) else None,
        is_answer=bool(first.is_answer),
        until=first.until,
    )


def flow_struct(flow: Flow) -> bytes:
    return bytes(structs.Flow(flow.backend, flow.generation, flow.seen))


def flow_from(raw: bytes) -> Flow:
    flow = structs.Flow.from_buffer_copy(raw)
    return Flow(flow.backend, flow.generation, flow.seen)


@dataclass(frozen=True)
class Pasts(Mapping[int, Past]):
    """The past of a service's slots: a pattern over all of them, None = quiet."""

    pattern: tuple[Past | None, ...] = (None,)

    def __getitem__(self, slot: int) -> Past:
        past = self.pattern[slot % len(self.pattern)]
        if past is None:
            raise KeyError(slot)
        return past

    def __iter__(self) -> Iterator[int]:
        return (slot for slot in range(consts.SLOTS) if self.pattern[slot % len(self.pattern)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class TableMaps:
    """A service's table and its past, in kernels that use_tables() gave them to."""

    slots: Map = field(default_factory=new_table)
    past: Map = field(default_factory=new_table)

    def fill(self, content: slotmaps.Encoded) -> None:
        """Write both, in the order of slotmaps.swap()."""
        table, past = content
        if past:
            self.past.put(u32(0), past)
        self.slots.put(u32(0), table)

    def close(self) -> None:
        """Let go of them."""
        self.slots.close()
        self.past.close()


def fill_table(table: TableMaps, slots: Sequence[int], pasts: Pasts | None = None) -> None:
    """Write a service's slots and their past."""
    pattern = pasts.pattern if pasts else (None,)
    ends = sorted({past.closes for past in pattern if past})
    past = [p.origin if p else 0 for p in pattern]
    flags = [
        consts.SLOT_STIRRED | ends.index(p.closes) << consts.EPOCH_SHIFT if p else 0 for p in pattern
    ]
    words = np.asarray(slots, dtype=np.uint32) | np.resize(np.array(flags, np.uint32), consts.SLOTS)
    closes = np.array(ends + [0] * (consts.EPOCHS - len(ends)), dtype=np.uint64)
    packed = np.resize(np.array(past, dtype=np.uint32), consts.SLOTS)
    table.fill((closes.tobytes() + words.tobytes(), bytes(closes.nbytes) + packed.tobytes()))


def read_all(counters: Map, rows: int) -> np.ndarray:
    """A whole per-CPU array of u64s, summed over the CPUs."""
    assert rows == counters.max_entries
    values = np.frombuffer(counters.array(), dtype=np.uint64)
    return values.reshape(rows, possible_cpus(), -1).sum(axis=1)


def test_run(program: Program, frame: bytes, context: bytes, flags: int) -> tuple[int, bytes]:
    """Program.run, with flags."""
    if not flags:
        result = program.run(frame, context=context)
        return result.retval, result.data
    source = ctypes.create_string_buffer(frame, len(frame))
    room = ctypes.create_string_buffer(len(frame) + 512)
    given = ctypes.create_string_buffer(context, len(context))
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_out=ctypes.addressof(room),
        data_size_in=len(frame),
        data_size_out=len(room),
        ctx_in=ctypes.addressof(given),
        ctx_size_in=len(context),
        repeat=1,
        flags=flags,
    )
    _check(_libbpf().bpf_prog_test_run_opts(program.fd, ctypes.byref(options)), "test run")
    return options.retval, room.raw[: options.data_size_out]


test_run.__test__ = False  # type: ignore[attr-defined]


def allow_xdp_runs(ifindexes: Sequence[int]) -> Program:
    """A test run can name only an ingress interface whose XDP receive queue is set up, which it is
    once a program is attached: here one that passes everything.
    """
    program = Program.constant(ProgramType.XDP, "lb_test_pass", XDP_PASS)
    for ifindex in ifindexes:
        _check(_libbpf().bpf_xdp_attach(ifindex, program.fd, 1 << 2, None), f"attach to {ifindex}")
    return program


def verified_instructions(program: Program) -> int:
    """How many instructions the verifier went through (its limit is a million)."""
    info = ctypes.create_string_buffer(224)
    size = ctypes.c_uint32(len(info))
    _check(_libbpf().bpf_obj_get_info_by_fd(program.fd, info, ctypes.byref(size)), "program info")
    return struct.unpack_from("=I", info.raw, 216)[0]  # struct bpf_prog_info.verified_insns


@contextmanager
def load(hook: str, egress: frozenset[int], limits: Limits = LIMITS) -> Iterator[Kernel]:
    """Compile and load a hook's program, with new maps that only it and the caller hold."""
    maps = Maps.create(limits)
    for ifindex in egress:
        maps.egress.put(u32(ifindex), u32(ifindex))
    with tempfile.TemporaryDirectory(prefix="lb-test-") as name:
        place = Path(name)
        subprocess.run(["mount", "-t", "bpf", "lb-test", name], check=True)
        try:
            maps.pin(place)
            # Where a test run can't say by which interface a frame came in, the program has to.
            told = () if hook == "tc" or XDP_REPLAY.is_here() else (f"LB_INGRESS={netns.A}",)
            answer = compiler.load(hook, place, place / "program", defines=told)
            program = Program.open(place / "program")
        finally:
            subprocess.run(["umount", name], check=True)
    kernel = Kernel(hook, maps, program, answer["instructions"], egress)
    try:
        yield kernel
    finally:
        program.close()
        for _, each in maps:
            each.close()
