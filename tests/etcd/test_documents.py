"""docs/reference/etcd.md is true: its examples run, against a real etcd, and its layout is whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lb.cli import docs_etcd
from lb.cli.declarative import DOCUMENTS
from lb.cli.session import state_of
from lb.core.state import DesiredState
from lb.lab.etcd import Etcd as Servers
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig
from lb.model.reports import NodeStatus
from lb.model.rollout import Phase
from lb.store import rollouts as stored
from lb.store.base import Put
from lb.store.opening import open_store

PAGE = (Path(__file__).parents[2] / "docs/reference/etcd.md").read_text()
KEY = keys.backend("web", "b1")


def examples(section: str, language: str) -> list[str]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def surroundings(etcd: Servers) -> dict[str, str]:
    address = etcd.members[0].endpoint
    env = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": address, "ETCD": f"http://{address}"}
    # etcd3 0.12 as the page says, beside the protobuf that lb has.
    env["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    return env | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


def run(etcd: Servers, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=surroundings(etcd),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("section", "language", "weight", "word"),
    [("With etcdctl", "bash", 10, "SUCCESS"), ("With Python", "python", 20, "done")],
)
def test_the_examples_change_a_weight(
    etcd: Servers, section: str, language: str, weight: int, word: str
) -> None:
    command = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"]}[language]
    (example,) = examples(section, language)
    before = Backend.model_validate({"service": "web", "name": "b1", "address": "203.0.113.1"})
    with open_store(etcd.url) as store:
        revision = store.commit([Put(KEY, before.model_dump_json())])
        done = subprocess.run(
            [*command, example], env=surroundings(etcd), capture_output=True, text=True, timeout=30
        )
        assert word in done.stdout, done
        found = store.get(KEY)
    assert found is not None
    assert found.mod_revision == revision + 1
    after = Backend.model_validate_json(found.value)
    assert after == before.model_copy(update={"weight": weight})


ADD, BEGIN, WAIT = examples("With Python and etcd3", "python")  # files of configs/etcd/examples


def stands(etcd: Servers) -> DesiredState:
    with open_store(etcd.url) as store:
        return state_of(store.read(keys.EVERYTHING))


@pytest.mark.parametrize("seed", [None, "00" * 16])
def test_the_example_adds_a_service_in_one_transaction(etcd: Servers, seed: str | None) -> None:
    if seed:
        with open_store(etcd.url) as store:
            store.commit([Put(keys.CONFIG, ClusterConfig(seed=seed).model_dump_json())])
    assert run(etcd, ADD) == "stored"
    state = stands(etcd)
    assert not state.problems
    assert {each.name: each.pool for each in state.backends_of("shop")} == {
        "b1": "stable",
        "c1": "canary",
    }
    assert len(set(state.versions.values())) == 1  # the lock, too
    assert (state.config and state.config.seed) == seed
    assert run(etcd, ADD).startswith("taken")
    assert stands(etcd).versions == state.versions


def test_the_example_begins_a_rollout_once(etcd: Servers) -> None:
    id = run(etcd, BEGIN)
    with open_store(etcd.url) as store:
        found = stored.find(store, "shop")
        assert found is not None
        assert (found.rollout.id, found.rollout.status.phase) == (id, Phase.PENDING)
        assert run(etcd, BEGIN) == "another one is under way"
        over = found.rollout.status.model_copy(update={"phase": Phase.ABORTED})
        stored.replace(store, found, found.rollout.model_copy(update={"status": over}))
        assert run(etcd, BEGIN) >= id
        again = stored.find(store, "shop")
    assert again is not None
    assert not again.rollout.is_over


def test_the_example_waits_until_a_change_is_applied(etcd: Servers) -> None:
    run(etcd, ADD)
    soon = WAIT.replace("seconds=30", "seconds=0.5")
    assert run(etcd, soon) == "not applied by: no node is there"
    with open_store(etcd.url) as store:
        revision = store.commit([report("n1", 0), report("n2", 99)])
        assert run(etcd, soon) == "not applied by: n1"
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAIT], env=surroundings(etcd), stdout=subprocess.PIPE, text=True
        )
        store.commit([report("n1", revision)])
        said, _ = waiting.communicate(timeout=60)
    assert said.strip() == "applied"


def report(node: str, revision: int) -> Put:
    status = NodeStatus(
        node=node, version="0.1.0", pid=1, started=0.0, revision=revision, links=(), pin_dir="/x"
    )
    return Put(keys.node(node), status.model_dump_json())


def test_every_document_has_a_key_and_a_schema() -> None:
    assert docs_etcd.LAYOUT.keys() == DOCUMENTS.keys()
    schemas = [json.loads(body) for body in re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)]
    assert [each["title"] for each in schemas] == [kind.__name__ for kind in DOCUMENTS.values()]
    prefixes = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    shown = {key for key, _, _ in docs_etcd.LAYOUT.values()}
    for prefix in prefixes - {keys.EVERYTHING, keys.ROOT, keys.REPORTS, keys.ENDED_ROLLOUTS}:
        assert any(key.startswith(prefix) for key in shown), prefix
