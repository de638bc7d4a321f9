"""`make check-rollout`: whole rollouts with real servers and real traffic, good ones and bad ones.

In the lab (embedded store): a good canary, with clients that must stay on it, and canaries that answer
500, reset connections, refuse, are 30 % slower, die in the middle, are good at first and then get slower
and slower. On the fleet (etcd): a good one while the CI job, the node that runs it, and etcd's leader
are killed in the middle of a step, and a bad one. In both: how long an abort takes to the last kernel.
False alarms and detection are of the simulation that the tests of the judgement use.

The last line has the figures of this run. `canary_errors_share`: of all requests in the rollouts that
were aborted, the share that suffered: failed, or answered by the slower canary.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from lb.errors import ExitCode, LbError
from lb.lab import nginx
from lb.lab.faults import Server
from lb.lab.fleet import Fleet
from lb.lab.lab import Lab
from lb.lab.node import Node, program
from lb.lab.shell import LabError, environment, in_namespace, wait_until
from lb.lab.steady import Requests, traffic
from lb.lab.topology import VIP4

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from field import Field, abort
from helpers import create, service
from simulated import Scenario, share_aborted
from sticky import CLIENTS, many_clients

STEPS = ("--steps", "20,50,100", "--every", "4s", "--deadline", "4m")
RATE = 150  # requests a second: of a pace of its own, so that no server has more to do than it can
PATIENCE = 150.0
LOOK = 0.5
# Of all servers where latency is judged: large beside what a busy machine adds.
BASE_LATENCY = 0.1
FAILURES = """\
metrics:
  - {name: failed_handshakes, min_samples: 20}
  - {name: resets, min_samples: 20}
  - {name: unserved, min_samples: 20}
  - {name: http_5xx, min_samples: 20}
"""
METRICS = {
    "failures": FAILURES,
    "latency": FAILURES + "  - {name: first_byte_p95, min_samples: 20}\n",
}
ABORTS = 5  # by hand, in each place
ABORT_MS = 2000.0  # docs/howto/rollout.md promises it
FALSE_ALARMS = 0.01
DETECTION = 0.95


Hear = Callable[[dict[str, Any]], None]


@dataclass
class Score:
    """What the last line tells."""

    promoted: list[bool] = field(default_factory=list)
    aborted: list[bool] = field(default_factory=list)
    requests: int = 0
    suffered: int = 0
    false_aborts: float = float("nan")
    detection: float = float("nan")
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.failures.append(what)
        print(f"NOT as it should be: {what}", flush=True)

    @property
    def passed(self) -> bool:
        return (
            not self.failures
            and len(self.promoted) >= 2
            and len(self.aborted) >= 7
            and all(self.promoted)
            and all(self.aborted)
            and self.false_aborts <= FALSE_ALARMS
            and self.detection >= DETECTION
        )

    def line(self, passed: bool) -> str:
        """For programs. What was not measured is not a number."""
        share = self.suffered / self.requests if self.requests else float("nan")
        return (
            f"check-rollout: {'PASS' if passed else 'FAIL'}"
            f" promoted={sum(self.promoted)}/{len(self.promoted)}"
            f" aborted={sum(self.aborted)}/{len(self.aborted)}"
            f" false_aborts={self.false_aborts:.4f} detection={self.detection:.4f}"
            f" canary_errors_share={share:.4f}"
        )


@dataclass
class Stage:
    """A lab or a fleet with a service `web`, whose last two backends are the canary."""

    place: Lab | Fleet
    score: Score

    def __post_init__(self) -> None:
        for name, text in METRICS.items():
            self.analysis(name).write_text(text)

    def analysis(self, name: str) -> Path:
        """The file of these metrics."""
        return self.place.folder / f"{name}.yaml"

    @property
    def canary(self) -> list[str]:
        return list(self.place.plan.backends[2:])

    def begin(self, **policies: Any) -> None:
        """The service as it is before a rollout."""
        self.place.lbctl("apply", "-f", "-", "--prune", "--force", "--wait", text="services: []")
        entry = service(self.place, "web", VIP4, mode=self.mode, **policies)  # type: ignore[arg-type]
        for backend in entry["backends"]:
            backend["pool"] = "canary" if backend["name"] in self.canary else "stable"
        create(self.place, entry)  # type: ignore[arg-type]

    @property
    def mode(self) -> str:
        return "nat" if isinstance(self.place, Lab) else "fullnat"

    def abort_by_hand(self, name: str) -> None:
        """Again and again, with traffic: no request is lost, and no kernel gets a slot back."""
        self.begin()
        taken, back = [], 0.0
        begin = ("rollout", "start", "web", "--to", "canary", "--no-analysis", "--every", "1h")
        with traffic(self.place, VIP4, RATE) as requests:
            for _ in range(ABORTS):
                self.place.lbctl(*begin, "--steps", "50")
                wait_until("the step", lambda: self.status()["status"]["phase"] == "baking", timeout=30)
                found = abort(self.place, "web", self.canary)
                taken.append((found["decision"], found["command"]))
                back += found["back"]
                wait_until("the end", lambda: self.status()["status"]["phase"] == "aborted", timeout=30)
        decision, command = ([each[i] for each in taken] for i in (0, 1))
        print(
            f"{name}, {len(taken)} times: no slot of the canary in any kernel"
            f" {median(decision):.0f} ms (at most {max(decision):.0f}) after the decision,"
            f" {median(command):.0f} ms (at most {max(command):.0f}) after `lbctl rollout abort` was"
            f" started; {requests.failed} of {requests.total:,} requests failed",
            flush=True,
        )
        if max(decision) > ABORT_MS or back or requests.failed:
            self.score.fail(f"{name}: {taken}, {back:g} slots came back, {dict(requests.failures)}")

    def start(self, metrics: str = "failures") -> None:
        file = str(self.analysis(metrics))
        self.place.lbctl("rollout", "start", "web", "--to", "canary", *STEPS, "--analysis", file)

    def status(self) -> dict[str, Any]:
        """The rollout's; while the store elects a leader, later."""
        found: list[dict[str, Any]] = []

        def told() -> bool:
            done = self.place.lbctl("rollout", "status", "web", "-o", "json", check=False)
            if done.returncode == 0:
                found.append(json.loads(done.stdout)["rollout"])
            return bool(found)

        wait_until("lbctl rollout status", told, timeout=60)
        return found[-1]

    def drive(self, each: Hear = lambda _: None, begin: str = "") -> tuple[dict[str, Any], Requests]:
        """Requests until it is over; `each` hears how far it is, again and again. `begin`: with these
        metrics, once there is traffic; else it has begun."""
        with traffic(self.place, VIP4, RATE) as requests:
            if begin:
                self.start(begin)
            deadline = time.monotonic() + PATIENCE
            while True:
                found = self.status()
                each(found)
                if found["status"]["phase"] in ("promoted", "aborted"):
                    break
                if time.monotonic() > deadline:
                    raise LabError(f"the rollout did not end: {found['status']['phase']}")
                time.sleep(LOOK)
        return found, requests

    def held(self, found: dict[str, Any]) -> list[float]:
        """The canary's share in the kernels of all live nodes."""
        return [each["share"] for each in found["nodes"] if each["state"] != "lost"]


def report(name: str, found: dict[str, Any], tally: Requests, more: str = "") -> None:
    status = found["status"]
    why = f" ({status['ending']}: {status['words'][:150]})" if status["ending"] else ""
    print(
        f"{name}: {status['phase']} at step {status['step']}{why}; {tally.total:,} requests,"
        f" {tally.failed} failed{more}",
        flush=True,
    )


def good(stage: Stage, name: str, found: dict[str, Any], tally: Requests, more: str = "") -> None:
    """It has to be promoted, each split written once, and no request lost."""
    score = stage.score
    report(name, found, tally, more)
    score.promoted.append(found["status"]["phase"] == "promoted")
    written = [each["split"].get("canary", 0) for each in found["status"]["history"] if each["split"]]
    if written != [20, 50, 100]:
        score.fail(f"{name}: the splits that were written are {written}")
    if tally.failed:
        score.fail(f"{name}: {tally.failed} requests failed: {dict(tally.failures)}")
    if set(stage.held(found)) != {100.0}:
        score.fail(f"{name}: kernels hold {stage.held(found)}")


def bad(stage: Stage, name: str, found: dict[str, Any], tally: Requests, slow: bool = False) -> None:
    """It has to be aborted because of what was seen, and nothing of it is left."""
    score = stage.score
    status = found["status"]
    suffered = tally.failed
    if slow:
        seen = [each["verdict"] for each in status["verdicts"]]
        suffered += sum(v["canary_samples"] for v in seen if v["metric"] == "first_byte_p95")
    share = suffered / max(tally.total, 1)
    report(name, found, tally, f"; {100 * share:.1f} % suffered")
    score.aborted.append(status["ending"] in ("analysis", "unhealthy"))
    score.requests += tally.total
    score.suffered += suffered
    if any(stage.held(found)):
        score.fail(f"{name}: kernels still hold {stage.held(found)}")
    if status["wrote"] != {"stable": 100.0}:
        score.fail(f"{name}: the split is {status['wrote']}")


@contextmanager
def broken(servers: list[Server], does: Callable[[Server], None]) -> Iterator[None]:
    try:
        for server in servers:
            does(server)
        yield
    finally:
        for server in servers:
            server.mend()


def lab_scenes(stage: Stage) -> dict[str, Callable[[], None]]:
    """By name."""
    lab = stage.place
    assert isinstance(lab, Lab)

    def servers() -> list[Server]:
        return [Server(lab, name) for name in stage.canary]

    def is_good() -> None:
        stage.begin()
        every = [Server(lab, name) for name in lab.topology.backends]
        for server in every:
            server.slow_down(BASE_LATENCY)
        try:
            found, tally = stage.drive(begin="latency")
        finally:
            for server in every:
                server.hurry()
        good(stage, "good canary", found, tally)

    def sticky() -> None:
        stage.begin(affinity="client")
        with many_clients(lab) as web:
            on_it: set[Any] = set()
            back = 0

            def watch(_: dict[str, Any]) -> None:
                nonlocal back
                now = {client for client, name in web.ask().items() if name in stage.canary}
                back += len(on_it - now)
                on_it.update(now)

            # With one address the client is on one side: there is nothing to judge.
            lab.lbctl("rollout", "start", "web", "--to", "canary", *STEPS[:4], "--no-analysis")
            found, tally = stage.drive(watch)
            good(stage, "sticky clients", found, tally, f"; {back} of {len(CLIENTS)} went back")
            if back or len(on_it) != len(CLIENTS):
                stage.score.fail(f"{back} clients went back, {len(on_it)} got to the canary")

    def failing(name: str, does: Callable[[Server], None]) -> Callable[[], None]:
        def scene() -> None:
            stage.begin()
            with broken(servers(), does):
                found, tally = stage.drive(begin="failures")
            bad(stage, name, found, tally)

        return scene

    def refuses() -> None:
        stage.begin()
        for server in servers():
            server.refuse()
        try:
            found, tally = stage.drive(begin="failures")
        finally:
            for server in servers():
                server.accept()
        bad(stage, "refuses", found, tally)

    def slower() -> None:
        stage.begin()
        every = [Server(lab, name) for name in lab.topology.backends]
        for server in every:
            server.slow_down(BASE_LATENCY * (1.3 if server.name in stage.canary else 1.0))
        try:
            found, tally = stage.drive(begin="latency")
        finally:
            for server in every:
                server.hurry()
        bad(stage, "30 % slower", found, tally, slow=True)

    def dies() -> None:
        stage.begin(health={"check": {"kind": "tcp"}, "interval": 0.5, "fall": 2, "timeout": 0.3})
        done: list[bool] = []

        def kill(found: dict[str, Any]) -> None:
            if found["status"]["step"] >= 2 and not done:
                done.append(True)
                for server in servers():
                    server.stop()

        try:
            found, tally = stage.drive(kill, "failures")
        finally:
            for server in servers():
                server.mend()
        bad(stage, "dies in the middle", found, tally)

    def leaks() -> None:
        stage.begin()
        every = [Server(lab, name) for name in lab.topology.backends]
        for server in every:
            server.slow_down(BASE_LATENCY)
        decaying = servers()
        for server in decaying:
            server._slow = next(each._slow for each in every if each.name == server.name)
        took = [BASE_LATENCY]
        due = [time.monotonic()]

        def decay(found: dict[str, Any]) -> None:
            if found["status"]["step"] < 2 or time.monotonic() < due[0]:
                return
            due[0] = time.monotonic() + 2.0
            took[0] *= 1.2
            for server in decaying:
                server.hurry()
                server.slow_down(took[0])

        try:
            found, tally = stage.drive(decay, "latency")
        finally:
            for server in decaying:
                server.hurry()
            for server in every:
                if server.name not in stage.canary:
                    server.hurry()
        bad(stage, "leaks", found, tally, slow=True)
        first = [v["verdict"]["outcome"] for v in found["status"]["verdicts"] if v["step"] == 1]
        if not first or set(first) != {"pass"}:
            stage.score.fail(f"the canary that leaks was good in step 1, and the verdicts are {first}")

    return {
        "good": is_good,
        "sticky": sticky,
        "500": failing("answers 500", lambda server: server.answer(500)),
        "resets": failing("resets connections", lambda server: server.answer(nginx.RESETS)),
        "refuses": refuses,
        "slower": slower,
        "dies": dies,
        "leaks": leaks,
        "abort": lambda: stage.abort_by_hand("aborted by hand, in the lab"),
    }


def fleet_scenes(stage: Stage) -> dict[str, Callable[[], None]]:
    """By name."""
    fleet = stage.place
    assert isinstance(fleet, Fleet)

    def killed() -> None:
        stage.begin()
        first = fleet.nodes[0]
        arguments = ["rollout", "start", "web", "--to", "canary", *STEPS, "--wait", "--analysis"]
        argv = in_namespace(first.name, [*program("lbctl"), *arguments, str(stage.analysis("failures"))])
        job = subprocess.Popen(argv, env=environment(first.lb_environment), stdout=subprocess.DEVNULL)
        said: list[str] = []
        killed: list[Node] = []

        def kill(found: dict[str, Any]) -> None:
            step, phase = found["status"]["step"], found["status"]["phase"]
            if step == 1 and job.poll() is None:
                job.kill()
                job.wait()
                said.append("the CI job")
            elif step >= 1 and phase == "baking" and not killed:
                if node := Field(fleet).runner():
                    node.kill_lbd(signal.SIGKILL)
                    killed.append(node)
                    said.append(f"lbd of {node.name}, which ran it")
            elif step >= 2 and killed and "etcd's leader" not in said:
                leader = fleet.etcd.leader()
                leader.kill()
                said.append("etcd's leader")
                threading.Thread(target=fleet.etcd.start, args=([leader],), daemon=True).start()

        try:
            wait_until("the rollout", lambda: fleet.lbctl("rollout", "status", "web", check=False)
                       .returncode == 0, timeout=30)  # fmt: skip
            found, tally = stage.drive(kill)
        finally:
            job.kill()
            job.wait()
            for node in killed:
                node.start_lbd()
        good(stage, "good canary of the fleet", found, tally, f"; killed: {', '.join(said)}")
        if len(said) < 3:
            stage.score.fail(f"only {said} was killed")
        ended = fleet.lbctl("rollout", "wait", "web", check=False)
        if ended.returncode != ExitCode.OK:
            stage.score.fail(f"`rollout wait` says {ended.returncode}")

    def fails() -> None:
        stage.begin()
        servers = [Server(fleet, name) for name in stage.canary]  # type: ignore[arg-type]
        for server in servers:
            server.refuse()
        try:
            found, tally = stage.drive(begin="failures")
        finally:
            for server in servers:
                server.accept()
        bad(stage, "refuses, on the fleet", found, tally)

    return {
        "killed": killed,
        "fails": fails,
        "abort": lambda: stage.abort_by_hand("aborted by hand, on the fleet"),
    }


def simulate(score: Score) -> None:
    """As tests/unit/test_judgement_power.py does, at 2,000 connections a step."""
    alike = [share_aborted(Scenario(metrics=1, base=base), 4000, seed=101) for base in (0.001, 0.01)]
    alike.append(share_aborted(Scenario(metrics=1), 1000, seed=102, latency=True))
    score.false_aborts = max(alike)
    worse = [share_aborted(Scenario(base=base, worse=0.02), 1000, seed=103) for base in (0.001, 0.01)]
    worse.append(share_aborted(Scenario(slower=1.3), 400, seed=104, latency=True))
    score.detection = min(worse)
    print(
        f"simulated: identical canaries aborted {100 * score.false_aborts:.2f} % at most; 2 points more"
        f" errors, or a p95 30 % higher, found {100 * score.detection:.1f} % at least",
        flush=True,
    )


def play(stage: Stage, scenes: dict[str, Callable[[], None]], only: list[str]) -> None:
    for name, scene in scenes.items():
        if only and name not in only:
            continue
        begin = time.monotonic()
        try:
            scene()
        except LbError as error:
            stage.score.fail(f"{name}: {error.message}")
        print(f"  {name} took {time.monotonic() - begin:.0f} s", flush=True)


def main(only: list[str]) -> None:
    """Run everything, or some scenes by name; exit code 0 = PASS."""
    score, passed = Score(), False
    try:
        simulate(score)
        with Lab(prefix="lbr-") as lab:
            lab.start_lbd()
            stage = Stage(lab, score)
            play(stage, lab_scenes(stage), only)
        if not only or {"killed", "fails", "abort"} & set(only):
            with Fleet(prefix="lbr-") as fleet:
                fleet.start()
                Field(fleet).prepare()
                stage = Stage(fleet, score)
                play(stage, fleet_scenes(stage), only)
        passed = score.passed
    except LbError as error:
        print(f"check-rollout: {error.message}", flush=True)
    except Exception:  # noqa: BLE001 - programs wait for the last line
        traceback.print_exc()
    print(score.line(passed), flush=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main(sys.argv[1:])
