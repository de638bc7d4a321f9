"""configs/ci: the script that CI runs does what it says; the files that run it are valid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.errors import ExitCode
from lb.node.rollouts import Rollouts
from lb.store import rollouts as stored
from lb.store.base import Store
from lb.store.opening import open_store

CI = Path(__file__).parents[2] / "configs/ci"
OPTIONS = ("--steps", "50,100", "--every", "100ms", "--no-analysis")


@pytest.fixture
def job(machine: Path, canary: Any, nodes: Any) -> Iterator[Any]:
    """Starts the script as a CI job does, beside a node."""
    assert canary.json("backend", "list", "web")
    nodes.follow("n1")
    programs = machine / "bin"
    programs.mkdir()
    lbctl = programs / "lbctl"
    lbctl.write_text(f'#!/bin/sh\nexec {sys.executable} -m lb.cli.main "$@"\n')
    lbctl.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "REPORTS": str(machine / "reports")}
    env |= {"GITHUB_STEP_SUMMARY": str(machine / "summary.md"), "LB_ACTOR": "alice@ci"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [CI / "rollout.sh", *arguments], env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2], start_new_session=True,
        )  # fmt: skip

    with open_store(str(machine / "store.db")) as own:
        running = Rollouts(own, "n1")
        running.start()
        yield start
        running.stop()


def test_a_job_that_promotes(job: Any, machine: Path) -> None:
    done = job("web", "canary", *OPTIONS)
    said, _ = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert "promoted" in said
    reports = machine / "reports"
    assert (reports / "rollout.md").read_text().startswith("## ✅")
    assert (machine / "summary.md").read_text() == (reports / "rollout.md").read_text()
    assert ET.parse(reports / "rollout.xml").getroot()[0].get("failures") == "0"
    document = json.loads((reports / "rollout.json").read_text())["rollout"]
    assert document["spec"]["who"] == "alice@ci"
    assert '<h1 class="promoted">' in (reports / "rollout.html").read_text()


def test_a_job_that_is_killed_and_run_again(job: Any, canary: Any, store: Store) -> None:
    long = ("--steps", "50,100", "--every", "1h", "--no-analysis")
    first = job("web", "canary", *long)
    deadline = time.monotonic() + 60
    while (found := stored.find(store, "web")) is None or found.rollout.status.phase != "baking":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)  # as a runner does it
    first.communicate(timeout=10)
    again = job("web", "canary", *long)
    assert again.stdout is not None
    while "following the rollout" not in (line := again.stdout.readline()):
        assert line  # it was refused first, and says so
    canary.ok("rollout", "abort", "web")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == ExitCode.ROLLOUT_ABORTED, said
    after = stored.find(store, "web")
    assert after is not None
    assert after.rollout.id == found.rollout.id


def test_a_job_that_is_refused(job: Any) -> None:
    done = job("web", "stable", *OPTIONS)
    said, _ = done.communicate(timeout=60)
    assert done.returncode == ExitCode.ROLLOUT_REFUSED, said
    assert job("web", "nope", *OPTIONS).wait(60) == ExitCode.NOT_FOUND


def test_a_job_that_begins_nothing_leaves_no_report_of_an_older_rollout(job: Any, machine: Path) -> None:
    assert job("web", "canary", *OPTIONS).wait(60) == 0
    assert list((machine / "reports").iterdir())
    summary = (machine / "summary.md").read_text()
    assert job("web", "stable", "--steps", "50,5").wait(60) == ExitCode.USAGE
    assert job("web", "canary", *OPTIONS).wait(60) == ExitCode.ROLLOUT_REFUSED  # it has 100 % already
    assert not list((machine / "reports").iterdir())
    assert (machine / "summary.md").read_text() == summary


@pytest.mark.parametrize("name", ["github-workflow.yaml", "gitlab-ci.yaml"])
def test_the_files_run_the_script(name: str) -> None:
    text = (CI / name).read_text()
    assert yaml.safe_load(text)
    assert "configs/ci/rollout.sh shop canary " in text
    assert "lbctl rollout abort shop --" in text


def step(name: str) -> str:
    workflow = yaml.safe_load((CI / "github-workflow.yaml").read_text())
    (found,) = [each for each in workflow["jobs"]["rollout"]["steps"] if each.get("name") == name]
    return str(found["run"])


def test_a_job_that_follows_has_its_own_limit_and_aborts_no_one_elses(
    job: Any, canary: Any, store: Store, machine: Path
) -> None:
    canary.ok(
        "rollout", "start", "web", "--to", "canary", "--steps", "50", "--every", "1h", "--no-analysis"
    )
    for limit in (("--timeout", "1s"), ("--timeout=1s",)):
        done = job("web", "canary", *OPTIONS, *limit)
        said, _ = done.communicate(timeout=60)
        assert done.returncode == ExitCode.ROLLOUT_GOES_ON, said
        assert "after 1 s" in said
    assert not (machine / "reports" / "rollout.id").exists()
    found = stored.find(store, "web")
    assert found is not None

    run = step("Abort if the workflow is cancelled").replace(" shop ", " web ")
    env = {**os.environ, "PATH": f"{machine / 'bin'}:{os.environ['PATH']}"}
    cancelled = ["sh", "-euc", run]
    assert subprocess.run(cancelled, cwd=machine, env=env, timeout=60).returncode == 0
    assert not stored.find(store, "web").rollout.is_over  # type: ignore[union-attr]
    (machine / "reports" / "rollout.id").write_text(f"{found.rollout.id}\n")  # as if it had begun it
    assert subprocess.run(cancelled, cwd=machine, env=env, timeout=90).returncode == 0
    assert stored.find(store, "web").rollout.status.phase == "aborted"  # type: ignore[union-attr]


def test_a_job_leaves_the_id_of_the_rollout_that_it_began(job: Any, store: Store, machine: Path) -> None:
    done = job("web", "canary", "--steps", "50", "--every", "1h", "--no-analysis", "--timeout", "1s")
    said, _ = done.communicate(timeout=60)
    assert done.returncode == ExitCode.ROLLOUT_GOES_ON, said
    found = stored.find(store, "web")
    assert found is not None
    assert (machine / "reports" / "rollout.id").read_text() == f"{found.rollout.id}\n"
