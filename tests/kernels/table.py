"""docs/reference/kernels.md, out of what the kernels said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lb.datapath.release import FEATURES

from . import plan
from .plan import Result

PAGE = Path(__file__).parents[2] / "docs/reference/kernels.md"
TEMPLATE = Path(__file__).with_name("page.md")
HOOKS = ("xdp", "xdp-generic", "tc")
MODES = ("dsr", "nat", "ipip", "gue", "fullnat")
MARK = {"passed": "yes", "failed": "**no**", "skipped": "-", "": "not run"}
LINKS = {
    "bridge": "bridge",
    "vlan": "VLAN",
    "bond": "bond, active-backup",
    "bond-lacp": "bond, LACP",
    "vxlan": "VXLAN",
    "macvlan": "macvlan",
}


def page(results: Sequence[Result]) -> str:
    """All of it. `results`: of the matrix under each kernel, and of the other ends under one."""
    ends = (plan.TUNNELS, plan.IPVS, plan.LINKS, plan.INTERFACES)
    others = next((each for each in results if any(map(each.of, ends))), None)
    matrix = [result for result in results if result is not others]
    if others is None:
        others = Result(plan.OTHERS_ON, "(not run)", None, 0, ())
    return TEMPLATE.read_text().format(
        features=_table(
            ("since", "what", "without it"), [(f.words, f.what, f.instead) for f in FEATURES]
        ),
        programs=_programs(matrix),
        modes=_modes(matrix),
        release=others.release,
        ends=_ends(others),
        links=_links(others),
        ipvs=_ipvs(others),
    )


def _mark(result: Result, beginning: str) -> str:
    return MARK[result.outcome(beginning) if result.of(beginning) else ""]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _programs(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        walked = [result.recorded(f"{plan.VERIFIER}[{hook}]", "verified") for hook in ("xdp", "tc")]
        packets = result.recorded(plan.MODEL, "packets") or 0
        checks = (plan.DOCTOR, plan.RESTART, plan.UPGRADE, plan.DEMO)
        rows.append(
            [
                result.release,
                *(f"{number:,}" if number else "-" for number in walked),
                f"{packets:,}" if packets else "-",
                _mark(result, plan.MODEL),
                *(_mark(result, check) for check in checks),
            ]
        )
    columns = (
        "kernel",
        "verifier's instructions, XDP",
        "the same, tc",
        "packets at each hook",
        "all end as the model says",
        "`lbctl doctor` content",
        "killed, adopted",
        "upgraded under traffic",
        "demo",
    )
    return _table(columns, rows)


def _modes(results: Sequence[Result]) -> str:
    rows = [
        [result.release, hook, *(_mode_mark(result, hook, mode) for mode in MODES)]
        for result in results
        for hook in HOOKS
    ]
    return _table(("kernel", "hook", *MODES), rows)


def _mode_mark(result: Result, hook: str, mode: str) -> str:
    return MARK[{None: "", True: "passed", False: "failed"}[result.mode_works(hook, mode)]]


def _ends(result: Result) -> str:
    pairs = [(inside, outside) for inside in (4, 6) for outside in (4, 6)]
    rows = [
        [mode, *(_mark(result, f"{plan.TUNNELS}::{test}[{a}in{b}]") for a, b in pairs)]
        for mode, test in (
            ("ipip", "test_ipip_is_opened_by_tunnel_devices"),
            ("gue", "test_gue_is_opened_by_the_kernels_receiver"),
        )
    ]
    return _table(("mode", *(f"IPv{a} in IPv{b}" for a, b in pairs)), rows)


def _links(result: Result) -> str:
    one = f"{plan.INTERFACES}::test_clients_come_in_by_an_interface_that_is_no_card"
    rows = [(words, _mark(result, f"{one}[{kind}]")) for kind, words in LINKS.items()]
    bad = f"{plan.LINKS}::test_no_flow_breaks_and_no_check_flaps"
    rows += [(f"bad link, mode {mode}", _mark(result, f"{bad}[{mode}]")) for mode in ("dsr", "nat")]
    return _table(("link", "works"), rows)


def _ipvs(result: Result) -> str:
    rows = [
        (title, " / ".join(map(str, result.recorded(plan.IPVS, f"shares_{name}") or ["not run"])))
        for title, name in (("IPVS", "ipvs"), ("lb", "lb"))
    ]
    return _table(("", "shares in %"), rows)
