"""consts.py, structs.py and what the model counts on equal the C headers, as the compiler sees them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import pytest

from lb.core import histogram, slots
from lb.core.reference import Outcome, answer, parse, pick, pieces
from lb.datapath import consts, headers, sources, structs
from lb.datapath.bpf import Program
from lb.model.objects import GUE_PORT

# BCC wants bytes, takes str, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:not a bytes object")

STRUCTS = {
    "lb_endpoint": structs.Endpoint,
    "lb_service": structs.Service,
    "lb_backend": structs.Backend,
    "lb_owner": structs.Owner,
    "lb_flow_key": structs.FlowKey,
    "lb_flow": structs.Flow,
    "lb_binding": structs.Binding,
    "lb_translated": structs.Translated,
    "lb_client": structs.Client,
    "lb_sender": structs.Sender,
    "lb_nat_back": structs.NatBack,
    "lb_range": structs.Range,
    "lb_edition": structs.Edition,
    "lb_lookup": structs.Lookup,
    "lb_rule_key": structs.RuleKey,
    "lb_rule": structs.Rule,
    "lb_quic_key": structs.QuicKey,
    "lb_fragment_key": structs.FragmentKey,
    "lb_fragment": structs.Fragment,
    "lb_place": structs.Place,
    "lb_probe_key": structs.ProbeKey,
    "lb_probe": structs.Probe,
    "lb_link": structs.Link,
    "lb_watched": structs.Watched,
    "lb_totals": structs.Totals,
    "lb_overdue": structs.Overdue,
    "lb_watch_vip": structs.WatchVip,
    "lb_mirrored": structs.Mirrored,
    "lb_mirror_stats": structs.MirrorStats,
    "lb_counter": structs.Counter,
    "lb_stats": structs.Stats,
}

# Enumerations: their names' beginning in C -> what Python has.
ENUMERATIONS: dict[str, dict[str, int]] = {
    "LB_MODE_": {m.name: n for m, n in consts.MODE_NUMBER.items()},
    "LB_AFFINITY_": {a.name: n for a, n in consts.AFFINITY_NUMBER.items()},
    "LB_TRACK_": {t.name: n for t, n in consts.TRACKING_NUMBER.items()},
    "LB_NO_BACKEND_": {n.name: number for n, number in consts.NO_BACKEND_NUMBER.items()},
    "LB_VIP_": {p.name: bit for p, bit in consts.VIP_BIT.items()},
    "LB_BACKEND_": {f.name or "": f.value for f in consts.BackendFlag},
    "LB_HAS_": {h.name or "": h.value for h in consts.Has},
    "LB_EVENT_": {e.name: e.value for e in consts.Event},
    "LB_WATCH_": {s.name or "": s.value for s in (*consts.Stage, *consts.End)},
    "LB_MIRROR_": {s.name: s.value for s in consts.MirrorStage},
    "LB_ERROR_": {e.name: e.value for e in consts.Error},
    "LB_NAT_": {s.name or "": s.value for s in consts.NatState},
    "LB_": {o.name: o.value for o in consts.Outcome},
}

SINGLE = {
    "LB_RANGE_BITS": consts.RANGE_BITS,
    "LB_SLOTS": consts.SLOTS,
    "LB_SLOT_MASK": slots.SLOTS - 1,
    "LB_SLOT_EMPTY": pick.EMPTY,
    "LB_SLOT_BACKEND": consts.SLOT_BACKEND,
    "LB_SLOT_STIRRED": consts.SLOT_STIRRED,
    "LB_EPOCHS": consts.EPOCHS,
    "LB_LINKS": consts.LINKS,
    "LB_LOOKUPS": consts.LOOKUPS,
    "LB_VLAN_DEPTH": parse.VLAN_DEPTH,
    "LB_IPV6_EXT_DEPTH": parse.EXTENSION_DEPTH,
    "LB_REPLY_TTL": answer.REPLY_TTL,
    "LB_OUTCOMES": len(consts.Outcome),
    "LB_GUE_PORT": GUE_PORT,
    "LB_PROBE_MARK": consts.PROBE_MARK,
    "LB_MIRROR_MARK": consts.MIRROR_MARK,
    "LB_MIRROR_MARK_MASK": consts.MIRROR_MARK_MASK,
    "LB_MIRROR_SALT": consts.MIRROR_SALT,
    "LB_PROBE_SOURCE": int(answer.PROBE_SOURCES[0]),
    "LB_PROBE_PREFIX6": int(answer.PROBE_SOURCES[1]) >> 96,
    "LB_PROBE_MARK_MASK": consts.PROBE_MARK_MASK,
    "LB_FRAGMENT_NS": pieces.FRAGMENT_NS,
    "LB_ERRORS_PER_SECOND": consts.ERRORS_PER_SECOND,
    "LB_ERRORS": len(consts.Error),
    "LB_EVENTS": consts.EVENTS,
    "LB_TIME_SUB_BITS": histogram.SUB_BITS,
    "LB_TIME_BITS": histogram.MAX_BITS,
    "LB_TIME_BUCKETS": histogram.BUCKETS,
}


def header(name: str) -> str:
    return (sources.directory() / "xdp/include" / name).read_text()


@pytest.fixture(scope="module")
def compile_c(module_patch: pytest.MonkeyPatch) -> Callable[[str], object]:
    module_patch.setenv("BCC_KERNEL_SOURCE", str(headers.find().path))
    from bcc import BPF

    flags = [f"-I{sources.directory() / 'xdp/include'}", "-Wno-ignored-attributes"]
    top = '#include <uapi/linux/bpf.h>\n#include "lb_consts.h"\n#include "lb_structs.h"\n'
    return lambda text: BPF(text=top + text, cflags=flags)


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_structs(compile_c: Callable[[str], object]) -> None:
    module = compile_c("".join(f"BPF_HASH(t_{n}, u32, struct {n}, 1);\n" for n in STRUCTS))
    for name, ours in STRUCTS.items():
        theirs = module[f"t_{name}"].Leaf  # type: ignore[index]
        assert ctypes.sizeof(ours) == ctypes.sizeof(theirs), name
        assert members(ours) == members(theirs), name
    # All of them are here.
    declared = set(re.findall(r"^struct (lb_\w+) \{", header("lb_structs.h"), re.MULTILINE))
    assert declared == {*STRUCTS, "lb_table"}


def members(struct: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
    """Name, offset and size of the members; BCC's names for holes left out."""
    found = []
    for name, *_ in struct._fields_:
        if not name.startswith("__pad"):
            member = getattr(struct, name)
            found.append((name, member.offset, member.size))
    return found


def test_constants(compile_c: Callable[[str], object]) -> None:
    text = re.sub(r"/\*.*?\*/", "", header("lb_consts.h"), flags=re.DOTALL)
    names = re.findall(r"#define (LB_[A-Z0-9_]+) ", text) + re.findall(r"\b(LB_\w+) = ", text)
    names = sorted(set(names))
    stores = "".join(f"i = {i}; v = {n}; values.update(&i, &v);\n" for i, n in enumerate(names))
    module = compile_c(
        f"BPF_ARRAY(values, u64, {len(names)});\n"
        f"int tell(struct xdp_md *ctx) {{ u32 i; u64 v; {stores} return XDP_PASS; }}"
    )
    function = module.load_func("tell", 6)  # type: ignore[attr-defined]
    program = Program.__new__(Program)
    program.fd = function.fd
    program.run(bytes(64))
    program.fd = -1  # BCC closes it
    table = module["values"]  # type: ignore[index]
    compiled = {name: table[i].value for i, name in enumerate(names)}

    expected = dict(SINGLE)
    for prefix, values in ENUMERATIONS.items():
        expected |= {prefix + name: number for name, number in values.items()}
    assert compiled == expected


def test_constants_of_single_headers() -> None:
    for name, constant, number in (
        ("lb_answer.h", "LB_ICMP_QUOTE", answer.QUOTE_BYTES),
        ("lb_pick.h", "LB_SEEN_STEP", pick.SEEN_STEP),
    ):
        assert f"#define {constant} {number}\n" in re.sub(r" +(/\*.*)?\n", "\n", header(name))


def test_the_model_names_outcomes_alike() -> None:
    assert [o.name for o in Outcome] == [o.name for o in consts.Outcome]
