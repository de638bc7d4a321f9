"""What can happen to a fleet, one function each. They raise where the fleet doesn't do what it should;
traffic flows meanwhile, and whoever calls them counts its failures.

`seconds` is how long the fault lasts.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from field import PATIENCE, SERVICE, Field, log_position, logged
from helpers import held

from lb.core import ids
from lb.core.state import LARGEST
from lb.datapath.kernel import read_owners
from lb.datapath.maps import Maps
from lb.lab.fleet_topology import OTHER_VIP4
from lb.lab.node import Node
from lb.lab.propagation import Kernels
from lb.lab.shell import LabError, environment, in_namespace, run, wait_until
from lb.lab.topology import VIP4, VIP6
from lb.model import keys

UNAVAILABLE = 5  # exit codes of lbctl
NOT_APPLIED = 7

RUBBISH_RATE = 100  # keys a second
PACE = 1.05  # times as long as it was to be, at most

QUARANTINED = "lb_quarantined_documents"

CLOCK = Path(__file__).with_name("clock.c")


class TooSlow(LabError):
    """The fault was not as heavy as it was to be: nothing is known of what would have happened."""


def insist(holds: bool, what: str) -> None:
    """What is to be true, in the tests and in the check."""
    if not holds:
        raise LabError(f"it is not so that {what}")


def last(seconds: float) -> None:
    """The fault goes on for so long: it is the time that is asked for, not a condition."""
    time.sleep(seconds)


def leader_killed(field: Field) -> str:
    """The leader of etcd is killed, and comes back later."""
    leader = field.fleet.etcd.leader()
    leader.kill()
    begin = time.monotonic()
    field.weight(71)
    taken = time.monotonic() - begin
    insist(field.fleet.etcd.leader() is not leader, "another member leads")
    field.fleet.etcd.start([leader])
    field.weight(72)
    return f"a change was in all kernels {taken:.1f} s after the kill"


def quorum_lost(field: Field, seconds: float) -> str:
    """Two of three members are gone."""
    gone = field.fleet.etcd.members[1:]
    for member in gone:
        member.kill()
    begin = time.monotonic()
    refused = field.fleet.lbctl(*_weight(field, 73), check=False)
    insist(refused.returncode == UNAVAILABLE, f"lbctl says that the store is away: {refused.stderr}")
    last(max(0.0, seconds - (time.monotonic() - begin)))
    back = time.monotonic()
    field.fleet.etcd.start(gone)
    field.agree()
    field.weight(74)
    return f"all nodes agreed and took a change {time.monotonic() - back:.1f} s after the return"


def etcd_frozen(field: Field, seconds: float) -> str:
    """All members stop answering, with their connections open (SIGSTOP)."""
    _freeze(field, signal.SIGSTOP)
    try:
        last(seconds)
    finally:
        _freeze(field, signal.SIGCONT)
    begin = time.monotonic()
    field.agree()
    field.weight(75)
    return f"all nodes agreed and took a change {time.monotonic() - begin:.1f} s after the thaw"


def _freeze(field: Field, number: signal.Signals) -> None:
    for member in field.fleet.etcd.members:
        member.signal(number)


def member_frozen(field: Field, seconds: float) -> str:
    """The leader alone stops answering."""
    leader = field.fleet.etcd.leader()
    leader.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        field.weight(76)
        taken = time.monotonic() - begin
        last(max(0.0, seconds - taken))
    finally:
        leader.signal(signal.SIGCONT)
    field.agree()
    return f"a change was in all kernels after {taken:.1f} s"


def lbd_frozen(field: Field) -> str:
    """lbd of one node stops: --wait must not return as if that had the change."""
    node = field.fleet.nodes[2]
    assert node.lbd
    node.lbd.send_signal(signal.SIGSTOP)
    try:
        late = field.fleet.lbctl(*_weight(field, 84), "--wait", "--timeout", "2", check=False)
        insist(late.returncode == NOT_APPLIED, f"lbctl says that it was too long: {late.stderr}")
        insist(node.name in late.stderr, "lbctl says who it waited for")
    finally:
        node.lbd.send_signal(signal.SIGCONT)
    field.agree()
    return "--wait says that it has not applied the change"


def lbd_killed(field: Field) -> str:
    """lbd of one node dies at once (kill -9), and a change comes while it is away."""
    node = field.fleet.nodes[1]
    node.kill_lbd(signal.SIGKILL)
    wait_until("its lease to end", lambda: node.name in field.status()["lost"], timeout=PATIENCE)
    told = field.fleet.lbctl(*_weight(field, 77), "--wait", "--timeout", "30")
    insist(node.name in told.stdout + told.stderr, "lbctl says which node it did not wait for")
    node.start_lbd()
    field.agree()
    return "it came back and has what it missed"


def partitioned(field: Field, seconds: float) -> str:
    """One node loses touch with etcd; meanwhile a service is deleted, and a weight changed."""
    node = field.fleet.nodes[2]
    field.add_six()
    field.agree()
    insist(bool(field.fleet.answer(VIP6)), "the service that will be deleted answers")
    begin = time.monotonic()
    field.fleet.cut_off(node)
    try:
        wait_until("its lease to end", lambda: node.name in field.status()["lost"], timeout=PATIENCE)
        field.fleet.lbctl("service", "rm", "six", "--cascade")
        field.weight(78)
        insist(_holds(node, "six"), "the node that is cut off still has what was deleted")
        last(max(0.0, seconds - (time.monotonic() - begin)))
    finally:
        field.fleet.cut_off(node, False)
    healed = time.monotonic()
    field.agree()
    insist(not _holds(node, "six"), "what was deleted is gone from the kernel of the node")
    return f"agreed {time.monotonic() - healed:.1f} s after the healing"


def compacted_while_cut_off(field: Field) -> str:
    """As `partitioned`, and the history that would tell the node of it is gone."""
    node = field.fleet.nodes[2]
    field.add_six()
    field.agree()
    field.fleet.cut_off(node)
    try:
        field.fleet.lbctl("service", "rm", "six", "--cascade")
        etcd = field.fleet.etcd
        header = json.loads(etcd.ctl("get", "x", "-w", "json").stdout)["header"]
        etcd.ctl("compact", str(header["revision"]))
        # Longer than etcd and node keep up a connection on which nothing comes.
        wait_until("its lease to end", lambda: node.name in field.status()["lost"], timeout=PATIENCE)
    finally:
        field.fleet.cut_off(node, False)
    field.agree()
    insist(not _holds(node, "six"), "what was deleted is gone from the kernel of the node")
    return "what was deleted is gone from the kernel of the node"


def node_withdrawn(field: Field, connections: int) -> str:
    """A node is taken out of the router's route; connections of a quiet service, whose slots have not
    moved, go on by the others, all of them."""
    field.add_six()  # new, so that none of its slots has moved
    field.agree()
    with held(field.fleet, VIP6, connections) as held_open:
        before = held_open.ask()
        insist(not any(name.startswith("!") for name in before), "all connections were made")
        with _without(field, field.fleet.nodes[0]):
            after = held_open.ask()
            insist(held_open.ask() == after, "they stay where they are")
        insist(held_open.ask() == after, "they stay where they are when the node is back")
    insist(after == before, f"all go on: {_same(before, after)} of {connections}")
    return f"{_same(before, after)} of {connections} held connections went on"


def node_withdrawn_after_a_change(field: Field, connections: int) -> tuple[int, int]:
    """As `node_withdrawn`, just after a change of weight: half of the connections are older, half
    younger. Returns how many of each half went on."""
    half = connections // 2
    field.add_six()
    field.agree()
    with held(field.fleet, VIP6, half) as older:
        before = older.ask()
        six = field.fleet.topology.backends[1]
        field.fleet.lbctl("backend", "weight", "six", six, "40", "--wait", "--timeout", "30")
        insist(older.ask() == before, "no connection moves with the change")
        with held(field.fleet, VIP6, half) as younger:
            before += younger.ask()
            with _without(field, field.fleet.nodes[0]):
                after = older.ask() + younger.ask()
    return _same(before[:half], after[:half]), _same(before[half:], after[half:])


def node_lost(field: Field, connections: int) -> str:
    """A node is gone at once, with all that runs on it and its links. The router finds out by itself;
    until then it sends a third of all packets to nobody. The node comes back with an old state, and
    announces itself when it is up to date. The service is `Field.add_still`'s."""
    fleet, node = field.fleet, field.fleet.nodes[2]
    with held(fleet, OTHER_VIP4, connections) as held_open, ExitStack() as routes:
        before = held_open.ask()
        insist(not any(name.startswith("!") for name in before), "all connections were made")
        node.kill_lbd(signal.SIGKILL)
        for segment in ("front", "control"):
            fleet.cut_off(node, True, segment)
        begin = time.monotonic()
        try:
            wait_until("the router", lambda: _is_left(field, node), timeout=PATIENCE)
            left = time.monotonic() - begin
            after = held_open.ask()
            wait_until("its lease to end", lambda: node.name in field.status()["lost"], timeout=PATIENCE)
            field.weight(85)
            routes.enter_context(_without(field, node))  # as a routing daemon would have it by now
        finally:
            fleet.cut_off(node, False, "control")
            fleet.revive(node)
            node.start_lbd()
        field.agree()  # before it announces itself, as docs/howto/fleet.md says
        routes.close()
        seen = field.metric(2, "lb_outcome_packets_total")
        wait_until(
            "traffic by the node that is back",
            lambda: field.metric(2, "lb_outcome_packets_total") > seen + 100,
            timeout=PATIENCE,
        )
        insist(after == before, f"all go on: {_same(before, after)} of {connections}")
        insist(held_open.ask() == after, "they stay where they are when the node is back")
    return (
        f"the router left it after {left:.1f} s;"
        f" {_same(before, after)} of {connections} held connections went on"
    )


def _is_left(field: Field, node: Node) -> bool:
    """Does the router know that the node is not there?"""
    argv = ["ip", "-j", "neigh", "show", "nud", "failed"]
    failed = {each["dst"] for each in json.loads(field.fleet.run("router", argv).stdout)}
    return str(field.fleet.topology.node_addresses(node.name)[0]) in failed


@contextmanager
def _without(field: Field, node: Node) -> Iterator[None]:
    fleet = field.fleet
    fleet.route_over([each for each in fleet.nodes if each is not node])
    try:
        yield
    finally:
        fleet.route_over(fleet.nodes)


def _same(before: list[str], after: list[str]) -> int:
    return sum(one == other for one, other in zip(before, after, strict=True))


def many_writers(field: Field, changes: int, seconds: float, *, is_pace_due: bool = False) -> str:
    """Three writers of one weight, each adding to what it read. No update may be lost."""
    backend = field.fleet.topology.backends[0]
    each_does = -(-changes // len(field.fleet.nodes))
    made = each_does * len(field.fleet.nodes)
    before = field.weights()[backend]
    found = field.write_all(each_does, seconds)
    ended = time.monotonic()
    stored = field.weights()[backend]
    insist(stored == before + made, f"no update is lost: {before} + {made} = {stored}")
    field.agree()
    after = time.monotonic() - ended
    took = max(each["seconds"] for each in found)
    conflicts = sum(each["conflicts"] for each in found)
    if is_pace_due and took > PACE * seconds:
        raise TooSlow(f"{made} changes took {took:.1f} s, not {seconds:g} s")
    return (
        f"{made} changes in {took:.1f} s, {conflicts} times another was faster, none lost;"
        f" all nodes agreed {after:.1f} s later"
    )


def rubbish_written(field: Field, seconds: float, *, is_pace_due: bool = False) -> str:
    """A third party writes nonsense, 100 keys a second, also over a document that is in force."""
    fleet = field.fleet
    victim = fleet.topology.backends[3]
    key = keys.backend(SERVICE, victim)
    sane = fleet.etcd.ctl("get", key, "--print-value-only").stdout.strip()
    arguments = (fleet.etcd.url, SERVICE, victim, str(RUBBISH_RATE), str(seconds))
    writer = field.script(fleet.nodes[0].name, "rubbish.py", *arguments)
    try:
        digests = field.status()["nodes"][0]["digests"]
        large = sane.replace(victim, "rubbish-large") + " " * LARGEST
        fleet.etcd.ctl("put", keys.backend(SERVICE, "rubbish-large"), text=large)
        found = json.loads(writer.communicate(timeout=seconds + 60)[0])
    finally:
        writer.kill()
        writer.wait()
    field.weight(79)  # good changes go through
    insist("not taken" in field.problems(), "the nodes report it, also what is too large")
    for node in range(len(fleet.nodes)):
        insist(field.metric(node, QUARANTINED) > 0, "what is quarantined is in the metrics of each node")
    insist(_has_share(fleet.nodes[2], victim), "the last good version stays in force")
    insist(set(field.agree()) == set(digests), "no service came or went")
    doomed = [f"{keys.SERVICES}rubbish", f"{keys.BACKENDS}{SERVICE}/rubbish", f"{keys.BACKENDS}rubbish/"]
    for prefix in [*doomed, f"{keys.TABLES}rubbish", f"{keys.ROOT}rubbish/"]:
        fleet.etcd.ctl("del", "--prefix", prefix)
    fleet.etcd.ctl("put", key, text=sane)
    wait_until("the end of the problems", lambda: not field.status()["quarantined"], timeout=PATIENCE)
    field.agree()
    insist(field.metric(0, QUARANTINED) == 0, "the metrics say that it is over")
    rate = found["written"] / found["seconds"]
    if is_pace_due and rate < RUBBISH_RATE / PACE:
        raise TooSlow(f"{rate:.0f} keys a second were written, not {RUBBISH_RATE}")
    return f"{rate:.0f} keys a second for {found['seconds']:.0f} s"


def restored_from_backup(field: Field, folder: Path) -> str:
    """etcd is replaced by a backup of itself that lacks the last changes; they are put back."""
    fleet, backup = field.fleet, folder / "backup.db"
    node = fleet.nodes[0]
    kept = node.node_folder / "last-known-good.before-restore.json"
    fleet.etcd.save(backup)
    for value in range(3):
        field.weight(20 + value)
    fleet.etcd.stop()
    fleet.etcd.restore(backup)
    for each in fleet.nodes:
        file = each.node_folder / kept.name
        wait_until(f"the file of {each.name}", file.exists, timeout=PATIENCE)
    field.agree()
    wait_until("the nodes' word", lambda: field.problems().count("went back") == 3, timeout=PATIENCE)
    fleet.lbctl("apply", "-f", str(kept), "--wait", "--timeout", "30")
    insist(field.weights()[fleet.topology.backends[0]] == 22, "what the backup lacked is back")
    for each in fleet.nodes:
        (each.node_folder / kept.name).unlink()
    field.weight(80)
    field.agree()
    return "all nodes followed it and said so; what it lacked was put back"


def all_lost(field: Field) -> str:
    """All that etcd had is lost; it is filled from what a node knew. Connections stay where they are."""
    fleet = field.fleet
    copy = fleet.nodes[1].node_folder / "last-known-good.json"
    field.weight(37)
    wait_until("the copy", lambda: '"weight": 37' in copy.read_text(), timeout=PATIENCE)
    with held(fleet, VIP4, 60) as connections:
        before = connections.ask()
        fleet.etcd.wipe()
        fleet.etcd.start()
        wait_until(
            "the nodes' word",
            lambda: field.problems().count("the store is empty") == len(fleet.nodes),
            timeout=PATIENCE,
        )
        insist(connections.ask() == before, "connections go on without a store")
        fleet.lbctl("restore", str(copy), "--wait", "--timeout", "30")
        field.agree()
        insist(connections.ask() == before, "connections go on after the restore")
    field.weight(38)
    return "put back from a node's copy, and no connection moved"


def clock_jumped(field: Field, folder: Path) -> str:
    """The clock of one node jumps an hour ahead, then back beyond where it was; changes come meanwhile.

    The clock of its programs, by clock.c: others use that of the machine."""
    node, library, clock = field.fleet.nodes[2], folder / "clock.so", folder / "clock"
    run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(CLOCK)])
    clock.write_bytes(bytes(8))
    node.kill_lbd()
    node.more_environment = {"LD_PRELOAD": str(library), "LB_CLOCK": str(clock)}
    try:
        node.start_lbd()
        begin = log_position(node)
        for offset, value in ((3600, 81), (-3600, 82), (0, 83)):
            with clock.open("r+b") as file:  # in place: the node has it mapped
                file.write(offset.to_bytes(8, sys.byteorder, signed=True))
            insist(abs(_clock_of(node) - offset) < 60, "the node's clock jumped")
            field.weight(value)
            field.agree()
        insist(logged(node, "the clock was set by -7200 s", begin), "lbd noticed it")
        insist(not logged(node, "Traceback", begin), "lbd takes it")
        insist(node.lbd is not None and node.lbd.poll() is None, "lbd still runs")
    finally:
        node.more_environment = {}
        node.kill_lbd()
        node.start_lbd()
    field.agree()
    return "an hour ahead and an hour back: changes arrive, nodes agree"


def _clock_of(node: Node) -> float:
    """How many seconds the clock of a node's programs is ahead."""
    argv = in_namespace(node.name, [sys.executable, "-c", "import time; print(time.time())"])
    shown = run(argv, env=environment(node.lb_environment)).stdout
    return float(shown) - time.time()


def _weight(field: Field, value: int) -> tuple[str, ...]:
    return ("backend", "weight", SERVICE, field.fleet.topology.backends[0], str(value))


def _holds(node: Node, service: str) -> bool:
    """Does the node's kernel have the service?"""
    maps = Maps.open(node.node_folder / "bpf/lb")
    return ids.uid(keys.service(service)) in read_owners(maps.service_owners).values()


def _has_share(node: Node, backend: str) -> bool:
    """Does a backend have slots in the node's kernel?"""
    return Kernels(SERVICE, backend, [node.node_folder / "bpf/lb"]).share(0) > 0
