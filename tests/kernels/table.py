"""docs/reference/kernels.md, out of what the kernels said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lb.datapath.release import FEATURES

from . import plan, results
from .results import Ran, Result

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


def write() -> None:
    """Write the page anew, of what is known."""
    PAGE.write_text(page(results.load()))


def page(known: Mapping[str, Result]) -> str:
    """All of it, of what is known by series."""
    others = known.get(plan.OWN, Result(plan.OWN, "(not run)"))
    matrix = tuple(known.values())
    return TEMPLATE.read_text().format(
        features=_table(
            ("since", "what", "without it"), [(f.words, f.what, f.instead) for f in FEATURES]
        ),
        programs=_programs(matrix),
        checks=_checks(matrix),
        modes=_modes(matrix),
        release=others.release,
        ends=_ends(others),
        links=_links(others),
        ipvs=_ipvs(others),
        runs=_runs(matrix),
    )


def _mark(result: Result, beginning: str) -> str:
    return MARK[result.outcome(beginning)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _programs(results: Iterable[Result]) -> str:
    def cell(result: Result, test: str) -> str:
        walked = result.recorded(test, "verified")
        return f"{walked:,}" if walked and result.outcome(test) == "passed" else _mark(result, test)

    rows = [[r.release, *(cell(r, test) for test in plan.PROGRAMS.values())] for r in results]
    return _table(("kernel", *(f"`{name}`" for name in plan.PROGRAMS)), rows)


def _checks(results: Iterable[Result]) -> str:
    checks = {
        "every end of a packet": plan.ENDS,
        "as the model says": plan.MODEL,
        "`lbctl doctor` content": plan.DOCTOR,
        "killed, adopted": plan.RESTART,
        "upgraded under traffic": plan.UPGRADE,
        "demo": plan.DEMO,
    }
    rows = []
    for result in results:
        packets = result.recorded(plan.MODEL, "packets")
        cells = {title: _mark(result, test) for title, test in checks.items()}
        if packets:
            cells["as the model says"] += f" ({packets:,} packets)"
        rows.append([result.release, *cells.values()])
    return _table(("kernel", *checks), rows)


def _runs(results: Iterable[Result]) -> str:
    rows = [
        (result.release, part.part, part.when, *_end(part))
        for result in results
        for part in result.parts
    ]
    return _table(("kernel", "part", "measured", "took", "tests"), rows)


def _end(part: Ran) -> tuple[str, str]:
    took = "no end" if part.status is None else f"{part.seconds:.0f} s"
    return took, ", ".join(f"{count} {word}" for word, count in part.counts().items() if count)


def _modes(results: Iterable[Result]) -> str:
    rows = [
        [result.release, hook, *(_mode_mark(result, hook, mode) for mode in MODES)]
        for result in results
        for hook in HOOKS
    ]
    return _table(("kernel", "hook", *MODES), rows)


def mode_works(result: Result, hook: str, mode: str) -> bool | None:
    """Did this mode work on this hook? None: it was not tried."""
    said = result.recorded(f"{plan.MODES}::test_all_modes_at_once[{hook}]", "modes")
    return None if said is None else said[mode] == "works"


def _mode_mark(result: Result, hook: str, mode: str) -> str:
    return MARK[{None: "", True: "passed", False: "failed"}[mode_works(result, hook, mode)]]


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
    good = f"{plan.LINKS}::test_a_canary_that_is_not_worse_is_promoted"
    rows.append(("bad link, a canary that isn't worse is promoted", _mark(result, good)))
    return _table(("link", "works"), rows)


def _ipvs(result: Result) -> str:
    rows = [
        (title, " / ".join(map(str, result.recorded(plan.IPVS, f"shares_{name}") or ["not run"])))
        for title, name in (("IPVS", "ipvs"), ("lb", "lb"))
    ]
    return _table(("", "shares in %"), rows)
