"""lbctl node, and what becomes of a node's record."""

from lb.model import keys
from lb.model.reports import Member, NodeStatus
from lb.node.reporter import Reporter
from lb.store.base import Delete


def test_list(web, nodes):
    nodes.put("n1", 10**6, links=({"interface": "eth0", "hook": "xdp", "why": ""},))
    nodes.put("n2", 1)
    nodes.lose("n3")
    listed = web.json("node", "list")
    assert [(each["node"], each["state"]) for each in listed] == [
        ("n1", "live"),
        ("n2", "behind"),
        ("n3", "lost"),
    ]
    assert listed[0]["hooks"] == ["xdp"]
    assert listed[2]["revision"] is None
    text = web.ok("node", "list").out
    assert "lbctl node forget" in text
    status = web.json("status")
    assert status["lost"] == ["n3"]
    assert "LOST" in web.ok("status").out


def test_an_empty_list(lbctl, store):
    assert not store.read("").items
    assert "no node is running" in lbctl.ok("node", "list").out
    assert lbctl.json("node", "list") == []


def test_forget(web, nodes, store):
    nodes.put("alive", 1)
    nodes.lose("gone")
    assert web("node", "forget", "alive").code == 2
    unknown = web("node", "forget", "gon")
    assert unknown.code == 3
    assert "gone" in unknown.err
    web.ok("node", "forget", "gone")
    assert store.get(keys.member("gone")) is None
    assert [each["node"] for each in web.json("node", "list")] == ["alive"]


def reporter(store, node_status, name="n1"):
    made = Reporter(store)
    made.report(node_status(name, 1))
    return made


def test_a_node_that_stops_is_not_lost(web, store):
    from doubles import node_status

    running = reporter(store, node_status)
    assert [each["state"] for each in web.json("node", "list")] == ["behind"]
    running.leave()
    assert web.json("node", "list") == []


def test_a_node_whose_lease_ends_is_lost_until_it_reports_again(web, store):
    from doubles import node_status

    running = reporter(store, node_status)
    store.revoke(running._lease)
    assert [each["state"] for each in web.json("node", "list")] == ["lost"]
    running.renew()
    assert [each["state"] for each in web.json("node", "list")] == ["behind"]


def test_a_record_that_somebody_removed_is_written_again(store):
    from doubles import node_status

    running = reporter(store, node_status)
    store.commit([Delete(keys.node("n1")), Delete(keys.member("n1"))])
    running.compare(None)
    running.renew()
    status, member = store.get(keys.node("n1")), store.get(keys.member("n1"))
    assert status is not None
    assert NodeStatus.model_validate_json(status.value) == running.last
    assert member is not None
    assert Member.model_validate_json(member.value).node == "n1"
