"""lbctl rule …"""

import pytest


def test_a_rule_from_add_to_rm(web):
    web.ok("backend", "add", "web", "c1", "10.0.1.9", "--pool", "canary")
    web.ok("rule", "add", "web", "10.9.0.0/16", "canary")
    web.ok("rule", "add", "web", "10.9.8.7", "stable")
    assert web.json("rule", "list", "web") == [
        {"service": "web", "prefix": "10.9.0.0/16", "pool": "canary", "backends_up": 1},
        {"service": "web", "prefix": "10.9.8.7/32", "pool": "stable", "backends_up": 3},
    ]
    assert "10.9.8.7/32" in web.ok("rule", "list").out
    [shown] = web.json("service", "list")
    assert shown["rules"] == {"10.9.0.0/16": "canary", "10.9.8.7/32": "stable"}
    removed = web.ok("rule", "rm", "web", "10.9.0.0/16")
    assert "rules {10.9.0.0/16: canary, 10.9.8.7/32: stable} -> {10.9.8.7/32: stable}" in removed.out
    assert len(web.json("rule", "list")) == 1


def test_the_same_rule_twice_is_no_change(web):
    web.ok("rule", "add", "web", "10.9.0.0/16", "stable")
    assert "unchanged" in web.ok("rule", "add", "web", "10.9.0.0/16", "stable").out


def test_a_pool_without_anybody_is_said(web):
    result = web.ok("rule", "add", "web", "10.9.0.0/16", "canary")
    assert "no backend of pool 'canary' takes new flows yet" in result.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("add", "web", "10.9.8.7/16", "stable"), "has host bits set", "did you mean 10.9.0.0/16?"),
        (("add", "web", "tests", "stable"), "does not appear to be", "for example 10.1.0.0/16"),
        (("add", "web", "2001:db8::/32", "stable"), "another IP version", "nothing was changed"),
        (("add", "web", "10.9.0.0/16", "No Pool"), "must be 1 to 63", "nothing was changed"),
        (("add", "shop", "10.9.0.0/16", "stable"), "no service 'shop'", "lbctl service list"),
        (("rm", "web", "10.9.0.0/16"), "has no rule for", "lbctl rule list web"),
        (("list", "wed"), "no service 'wed'", "did you mean 'web'?"),
    ],
)
def test_what_is_refused(web, arguments, message, hint):
    result = web("rule", *arguments)
    assert result.code != 0
    assert message in result.err
    assert hint in result.err


def test_another_pool_for_the_same_clients_is_refused(web):
    web.ok("rule", "add", "web", "10.9.0.0/16", "stable")
    result = web("rule", "add", "web", "10.9.0.0/16", "canary")
    assert result.code != 0
    assert "to pool 'stable' already" in result.err
    assert web.json("rule", "list")[0]["pool"] == "stable"


def test_rules_survive_export_and_apply(web, tmp_path):
    web.ok("rule", "add", "web", "10.9.0.0/16", "stable")
    exported = tmp_path / "lb.yaml"
    exported.write_text(web.ok("export").out)
    web.ok("rule", "rm", "web", "10.9.0.0/16")
    web.ok("apply", "-f", str(exported))
    assert web.json("rule", "list")[0]["prefix"] == "10.9.0.0/16"
