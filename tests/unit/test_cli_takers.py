"""A change after which nobody, or not everybody who was meant, takes new flows (lb/cli/takers.py)."""

import pytest

NOBODY = "service web has no backend that takes new flows now: they are refused"


def notes(result):
    assert result.code == 0, result
    return [line.removeprefix("note: ") for line in result.err.splitlines()]


def test_a_split_that_names_nobody_is_refused(canary, store):
    before = store.read("")
    result = canary("service", "set", "web", "--split", "canry=100")
    assert result.code == 2
    assert "no backend is in a pool of the split (canry)" in result.err
    assert "did you mean 'canary'?; --force does it anyway" in result.err
    assert canary("service", "set", "web", "--split", "zz=100", "--dry-run").code == 2
    other = canary("service", "set", "web", "--split", "zz=100")
    assert "there are backends in 'canary', 'stable'" in other.err
    assert store.read("") == before
    forced = canary("service", "set", "web", "--split", "canry=100", "--force")
    assert notes(forced)[0] == NOBODY
    assert "has no backend in pool 'canry'; did you mean 'canary'?" in forced.err
    # What is so already keeps nobody from other changes, nor is it said with each.
    assert notes(canary("service", "set", "web", "--no-backend", "drop")) == []
    assert notes(canary("backend", "weight", "web", "b1", "7")) == []
    assert notes(canary("service", "set", "web", "--split", "canary=100")) == []


def test_a_manifest_is_refused_likewise(canary, tmp_path):
    exported = canary.ok("export").out
    (tmp_path / "m.yaml").write_text(exported.replace("stable: 100.0", "stabel: 100.0"))
    for command in ("apply", "diff"):
        result = canary(command, "-f", str(tmp_path / "m.yaml"))
        assert result.code == 2
        assert "did you mean 'stable'?" in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("drain", "web", "b1", "b2", "b3"),
        ("down", "web", "b1", "b2", "b3"),
        ("rm", "web", "b1", "b2", "b3"),
        ("weight", "web", "b1=0", "b2=0", "b3=0"),
    ],
)
def test_the_last_one_that_goes(web, words):
    assert notes(web("backend", *words[:-1])) == []
    last = ("backend", words[0], "web", words[-1])
    told = web.ok(*last, "--dry-run", "-o", "json")
    assert told.json["notes"][0] == NOBODY
    assert notes(web(*last)) == [NOBODY]
    assert NOBODY not in notes(web("service", "set", "web", "--window", "60"))


def test_who_drops_says_so(web):
    web.ok("service", "set", "web", "--no-backend", "drop")
    assert NOBODY.replace("refused", "dropped") in notes(web("backend", "rm", "web", "b1", "b2", "b3"))


def test_a_pool_of_the_split_that_has_nobody(web):
    split = ("service", "set", "web", "--split", "stable=99,canary=1")
    rest = "its share of the split goes to the other pools"
    assert notes(web(*split)) == [f"service web has no backend in pool 'canary': {rest}"]
    assert notes(web(*split)) == []  # said once
    web.ok("backend", "add", "web", "c1", "10.0.1.9", "--pool", "canary")
    drained = notes(web("backend", "drain", "web", "c1"))
    assert drained == [f"no backend in pool 'canary' of service web takes new flows: {rest}"]
    assert notes(web("service", "set", "web", "--split", "stable=99,cnary=1")) == [
        f"service web has no backend in pool 'cnary': {rest}; did you mean 'canary'?"
    ]


def test_a_backup_that_has_nobody(canary):
    told = notes(canary("service", "set", "web", "--backup-pool", "canry"))
    assert told == [
        "service web has no backend in pool 'canry': it can't be the backup; did you mean 'canary'?"
    ]
    assert notes(canary("service", "set", "web", "--backup-pool", "canary")) == []
    assert NOBODY not in notes(canary("backend", "rm", "web", "b1", "b2", "b3"))  # the backup does
    assert NOBODY in notes(canary("backend", "rm", "web", "c1"))


def test_a_service_that_is_being_made_is_left_in_peace(lbctl):
    add = ("service", "add", "api", "--vip", "10.0.0.9:80", "--backup-pool", "spare")
    assert notes(lbctl(*add)) == []
    assert notes(lbctl("service", "set", "api", "--split", "blue=50,green=50")) == []
    assert notes(lbctl("backend", "add", "api", "a1", "10.0.1.1", "--pool", "blue")) == []
    assert notes(lbctl("backend", "add", "api", "a2", "10.0.1.2", "--pool", "green")) == []


def test_a_new_service_of_a_manifest_with_a_typo(lbctl, tmp_path):
    manifest = """
services:
- name: web
  vip: 10.0.0.1
  port: 80
  split: {stable: 95, canry: 5}
  backends:
  - {name: b1, address: 10.0.1.1}
  - {name: c1, address: 10.0.1.2, pool: canary}
"""
    (tmp_path / "m.yaml").write_text(manifest)
    [told] = notes(lbctl("apply", "-f", str(tmp_path / "m.yaml")))
    assert told.startswith("service web has no backend in pool 'canry'")
    assert "did you mean 'canary'?" in told
