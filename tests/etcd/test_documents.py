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
from lb.lab.etcd import Etcd as Servers
from lb.model import keys
from lb.model.objects import Backend
from lb.store.base import Put
from lb.store.opening import open_store

PAGE = (Path(__file__).parents[2] / "docs/reference/etcd.md").read_text()
KEY = keys.backend("web", "b1")


def example(language: str) -> str:
    (body,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(body)


@pytest.mark.parametrize(
    ("language", "weight", "word"), [("bash", 10, "SUCCESS"), ("python", 20, "done")]
)
def test_the_examples_change_a_weight(etcd: Servers, language: str, weight: int, word: str) -> None:
    command = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"]}[language]
    address = etcd.members[0].endpoint
    env = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": address, "ETCD": f"http://{address}"}
    env |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    before = Backend.model_validate({"service": "web", "name": "b1", "address": "203.0.113.1"})
    with open_store(etcd.url) as store:
        revision = store.commit([Put(KEY, before.model_dump_json())])
        done = subprocess.run(
            [*command, example(language)], env=env, capture_output=True, text=True, timeout=30
        )
        assert word in done.stdout, done
        found = store.get(KEY)
    assert found is not None
    assert found.mod_revision == revision + 1
    after = Backend.model_validate_json(found.value)
    assert after == before.model_copy(update={"weight": weight})


def test_every_document_has_a_key_and_a_schema() -> None:
    assert docs_etcd.LAYOUT.keys() == DOCUMENTS.keys()
    schemas = [json.loads(body) for body in re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)]
    assert [each["title"] for each in schemas] == [kind.__name__ for kind in DOCUMENTS.values()]
    prefixes = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    shown = {key for key, _, _ in docs_etcd.LAYOUT.values()}
    for prefix in prefixes - {keys.EVERYTHING, keys.ROOT, keys.REPORTS, keys.ENDED_ROLLOUTS}:
        assert any(key.startswith(prefix) for key in shown), prefix
