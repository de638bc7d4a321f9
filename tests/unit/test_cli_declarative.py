"""lbctl apply, diff, export, schema."""

import io
import json
import re
from pathlib import Path

import pytest
import yaml

from lb.model import keys
from lb.store.base import Put

EXAMPLES = sorted((Path(__file__).parents[2] / "configs" / "examples").glob("*.yaml"))

WEB = """
services:
- name: web
  vip: 10.0.0.1
  port: 80
  backends:
  - {name: b1, address: 10.0.1.1, weight: 50}
  - {name: b2, address: 10.0.1.2, weight: 30}
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="f.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return to_file


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_apply(lbctl, example):
    lbctl.ok("apply", "-f", str(example))
    assert lbctl.ok("diff", "-f", str(example)).out == "no differences\n"
    assert lbctl.json("backend", "list")


def test_all_examples_fit_together(lbctl):
    for example in EXAMPLES:
        lbctl.ok("apply", "-f", str(example))
    assert lbctl.json("status")["quarantined"] == []


def test_apply_is_one_commit(lbctl, store, write):
    result = lbctl.ok("apply", "-f", write(WEB))
    assert "+ service web" in result.out
    assert "+ backend web/b2" in result.out
    assert store.read(keys.ROOT).revision == 1
    assert lbctl.ok("apply", "-f", write(WEB)).out == "unchanged\n"
    assert store.read(keys.ROOT).revision == 1


def test_apply_from_standard_input(lbctl, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(WEB))
    lbctl.ok("apply", "-f", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO("services: ["))
    assert re.match(r"error: standard input:\d+:\d+: not YAML", lbctl("apply", "-f", "-").err)


@pytest.mark.parametrize("output", ["yaml", "json", "table"])
def test_export_fed_to_apply_changes_nothing(lbctl, store, write, output):
    for example in EXAMPLES:
        lbctl.ok("apply", "-f", str(example))
    exported = lbctl.ok("export", "-o", output).out
    before = store.read(keys.ROOT)
    path = write(exported)
    assert lbctl.ok("apply", "--prune", "-f", path).out == "unchanged\n"
    assert lbctl.json("diff", "--prune", "-f", path) == []
    assert store.read(keys.ROOT) == before


def test_export_restores_an_empty_store_and_a_changed_one(lbctl, write):
    for example in EXAMPLES:
        lbctl.ok("apply", "-f", str(example))
    exported = lbctl.ok("export").out
    for name in ("web", "dns-udp"):
        lbctl.ok("service", "rm", name, "--cascade")
    lbctl.ok("backend", "weight", "shop", "stable-1", "3")
    lbctl.ok("backend", "drain", "shop", "stable-2")
    lbctl.ok("service", "add", "new", "--vip", "10.9.9.9:80")
    lbctl.ok("apply", "--prune", "-f", write(exported))
    assert lbctl.ok("export").out == exported


def test_apply_owns_what_it_writes_down_only(lbctl, write):
    lbctl.ok("apply", "-f", write(WEB))
    lbctl.ok("backend", "drain", "web", "b1")
    lbctl.ok("service", "set", "web", "--no-backend", "drop")
    lbctl.ok("backend", "weight", "web", "b1", "1")
    result = lbctl.json("apply", "-f", write(WEB))
    assert [each["settings"] for each in result["changes"]] == [{"weight": {"before": 1, "after": 50}}]
    assert lbctl.json("backend", "show", "web", "b1")["admin"] == "drain"
    assert lbctl.json("service", "show", "web")["service"]["no_backend"] == "drop"


def test_the_port_goes_with_the_address(lbctl, write):
    text = WEB.replace("port: 80", "port: 80\n  mode: nat")
    lbctl.ok("apply", "-f", write(text.replace("10.0.1.1,", "10.0.1.1, port: 8080,")))
    assert lbctl.json("backend", "show", "web", "b1")["port"] == 8080
    lbctl.ok("apply", "-f", write(text))
    assert lbctl.json("backend", "show", "web", "b1")["port"] is None


def test_prune(lbctl, write):
    lbctl.ok("apply", "-f", write(WEB))
    lbctl.ok("backend", "add", "web", "b3", "10.0.1.3")
    lbctl.ok("service", "add", "api", "--vip", "10.0.0.2:80")
    lbctl.ok("backend", "add", "api", "a1", "10.0.1.9")
    assert lbctl.ok("apply", "-f", write(WEB)).out == "unchanged\n"
    dry = lbctl.json("apply", "--prune", "--dry-run", "-f", write(WEB))
    real = lbctl.json("apply", "--prune", "-f", write(WEB))
    assert dry["changes"] == real["changes"]
    assert [(c["action"], c["service"], c["backend"]) for c in real["changes"]] == [
        ("remove", "api", None),
        ("remove", "api", "a1"),
        ("remove", "web", "b3"),
    ]
    lbctl.ok("apply", "--prune", "-f", write("services: []"))
    assert lbctl.json("service", "list") == []


def test_prune_and_apply_put_quarantined_documents_right(lbctl, store, write):
    store.commit([Put(keys.service("bad"), "x"), Put(keys.backend("web", "b1"), "x")])
    assert len(lbctl.json("status")["quarantined"]) == 2
    told = lbctl.ok("apply", "--prune", "-f", write(WEB)).err
    assert "note: backend web/b1 is quarantined: it is written anew" in told
    assert "note: service bad is quarantined, and stays; --force removes it, too\n" in told
    assert told.count("note: ") == 2
    assert len(lbctl.json("status")["quarantined"]) == 1
    lbctl.ok("apply", "--prune", "--force", "-f", write(WEB))
    assert lbctl.json("status")["quarantined"] == []
    assert store.get(keys.service("bad")) is None


def test_an_export_says_what_it_has_left_out(lbctl, store, write):
    lbctl.ok("apply", "-f", write(WEB))
    lbctl.ok("service", "add", "shop", "--vip", "10.0.0.2:80")
    lbctl.ok("backend", "add", "shop", "s1", "10.0.2.1")
    lbctl.ok("backend", "add", "shop", "s2", "10.0.2.2")
    store.commit([Put(keys.service("web"), "x"), Put(keys.backend("shop", "s2"), "{}")])
    exported = lbctl("export")
    assert exported.code == 1
    assert [s["name"] for s in yaml.safe_load(exported.out)["services"]] == ["shop"]
    notes = exported.err.splitlines()
    assert [each.partition(" is left out, because it is quarantined: ")[0] for each in notes] == [
        "note: backend shop/s2",
        "note: backend web/b1",  # without its service
        "note: backend web/b2",
        "note: service web",
    ]
    assert all(each.partition("quarantined: ")[2] for each in notes)
    # That file, fed to --prune, must not take away what it could not hold.
    before = store.read(keys.ROOT)
    assert lbctl.ok("apply", "--prune", "-f", write(exported.out)).out == "unchanged\n"
    nothing = lbctl.ok("apply", "--prune", "-f", write("services: []"))
    assert "note: service shop stays with it" in nothing.err
    assert {item.key for item in store.read(keys.ROOT).items} >= {
        keys.service("web"), keys.service("shop"), keys.backend("shop", "s2"), keys.backend("web", "b1")
    }  # fmt: skip
    assert store.read(keys.ROOT).revision == before.revision + 1
    lbctl.ok("apply", "--prune", "--force", "-f", write("services: []"))
    assert not store.read(keys.SERVICES).items
    assert not store.read(keys.BACKENDS).items


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_removes_nothing(web, store, write, text):
    before = store.read(keys.ROOT)
    result = web("apply", "--prune", "-f", write(text))
    assert result.code == 2
    assert "the file is empty" in result.err
    assert store.read(keys.ROOT) == before


def test_apply_checks_the_whole(lbctl, store, write):
    twice = WEB + "- {name: other, vip: 10.0.0.1, port: 80}\n"
    result = lbctl("apply", "-f", write(twice))
    assert result.code == 2
    assert "VIP 10.0.0.1:80/tcp belongs to service" in result.err
    assert store.read(keys.ROOT).revision == 0


def test_diff(lbctl, store, write):
    lbctl.ok("apply", "-f", write(WEB))
    before = store.read(keys.ROOT)
    path = write(WEB.replace("weight: 30", "weight: 40"), "g.yaml")
    result = lbctl("diff", "-f", path)
    assert result.code == 1
    lines = result.out.splitlines()
    assert "-    weight: 30" in lines
    assert "+    weight: 40" in lines
    assert any(line.startswith("+++ ") and "g.yaml" in line for line in lines)
    data = lbctl("diff", "-f", path, "-o", "json")
    assert data.code == 1
    [change] = data.json
    assert change["settings"] == {"weight": {"before": 30, "after": 40}}
    assert store.read(keys.ROOT) == before


def test_diff_and_apply_of_bad_files(lbctl, write, tmp_path):
    for command in ("apply", "diff"):
        assert lbctl(command, "-f", str(tmp_path / "none.yaml")).code == 3
        assert lbctl(command, "-f", str(tmp_path)).code == 2
        assert lbctl(command).code == 2
        result = lbctl(command, "-f", write(WEB.replace("weight: 30", "wieght: 30")))
        assert result.code == 2
        assert "f.yaml:8:" in result.err
        assert "did you mean 'weight'?" in result.err
    (tmp_path / "latin1.yaml").write_bytes(b"# \xe9\nservices: []\n")
    assert lbctl("apply", "-f", str(tmp_path / "latin1.yaml")).code == 2


@pytest.mark.parametrize("name", ["manifest", "service", "backend", "config", "table", "node"])
def test_schema(lbctl, name):
    one = lbctl.ok("schema", name)
    assert json.loads(one.out)["type"] == "object"
    assert lbctl.json("schema")[name] == one.json
    assert yaml.safe_load(lbctl.ok("schema", name, "-o", "yaml").out) == one.json


def test_unknown_schema(lbctl):
    result = lbctl("schema", "nope")
    assert (result.code, "there are: manifest, " in result.err) == (2, True)
