"""Documents that contradict others: who keeps what, and what is in force of those that are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lb.core.deadlines import next_deadline, overdue
from lb.core.settling import ROUNDS
from lb.core.state import DesiredState, parse, reason
from lb.model import keys
from lb.model.objects import ClusterConfig
from lb.node.last_known import LastKnown
from lb.store.base import KeyValue, Snapshot

STAYS = "the last good version stays in force"
IGNORED = "it is ignored"
PAYMENTS, CART = keys.service("payments"), keys.service("cart")
A, X, Y = keys.backend("payments", "a"), keys.backend("cart", "x"), keys.backend("cart", "y")

Document = dict[str, Any]


def service(name: str, vip: str, port: int = 443, **more: object) -> Document:
    return {"name": name, "vip": vip, "port": port, **more}


def backend(service: str, name: str, address: str, **more: object) -> Document:
    return {"service": service, "name": name, "address": address, **more}


GOOD = {
    PAYMENTS: service("payments", "203.0.113.9"),
    A: backend("payments", "a", "198.51.100.1"),
    CART: service("cart", "203.0.113.1"),
    X: backend("cart", "x", "198.51.100.2"),
    Y: backend("cart", "y", "198.51.100.3"),
}


def state_of(
    documents: Mapping[str, Document],
    previous: DesiredState | None = None,
    revision: int = 1,
    created: Mapping[str, int] | None = None,
    changed: Mapping[str, int] | None = None,
) -> DesiredState:
    versions = changed or {}
    items = [(key, json.dumps(each), versions.get(key, revision)) for key, each in documents.items()]
    return parse(revision, items, previous, created or {})


def vips(state: DesiredState) -> dict[str, str]:
    return {name: str(each.vip) for name, each in state.services.items()}


def servers(state: DesiredState) -> dict[str, str]:
    return {"/".join(key): str(each.address) for key, each in state.backends.items()}


def said(state: DesiredState) -> dict[str, str]:
    assert len({problem.where for problem in state.problems}) == len(state.problems)
    return {problem.where: problem.message for problem in state.problems}


def test_a_service_that_takes_anothers_vip_goes_on_as_it_was() -> None:
    good = state_of(GOOD)
    taking = service("cart", "203.0.113.9", window=60)
    bad = state_of({**GOOD, CART: taking}, good, 2)
    assert (bad.services, bad.backends) == (good.services, good.backends)
    assert said(bad) == {CART: f"VIP 203.0.113.9:443/tcp belongs to service 'payments' already; {STAYS}"}
    assert bad.not_understood == set()
    # Also when it is read again and again, and until somebody puts it right.
    again = state_of({**GOOD, CART: taking}, bad, 3)
    assert (again.services, again.problems) == (good.services, bad.problems)
    right = state_of({**GOOD, CART: service("cart", "203.0.113.2")}, again, 4)
    assert (vips(right)["cart"], right.problems) == ("203.0.113.2", ())


def test_it_comes_into_force_as_soon_as_the_other_gives_way() -> None:
    bad = state_of({**GOOD, CART: service("cart", "203.0.113.9")}, state_of(GOOD), 2)
    after = state_of(
        {**GOOD, CART: service("cart", "203.0.113.9"), PAYMENTS: service("payments", "203.0.113.1")},
        bad,
        3,
    )
    assert vips(after) == {"cart": "203.0.113.9", "payments": "203.0.113.1"}
    assert after.problems == ()


def test_a_backend_that_is_refused_keeps_its_slots() -> None:
    good = state_of(GOOD)
    for address, what in (("203.0.113.9", "is a VIP itself"), ("198.51.100.3", "'cart/y' already")):
        bad = state_of({**GOOD, X: backend("cart", "x", address)}, good, 2)
        assert bad.backends == good.backends
        assert what in said(bad)[X]
        assert STAYS in said(bad)[X]


def test_what_never_was_good_is_ignored() -> None:
    good = state_of({key: each for key, each in GOOD.items() if key not in (CART, X, Y)})
    bad = state_of({**GOOD, CART: service("cart", "203.0.113.9")}, good, 2)
    assert set(bad.services) == {"payments"}
    assert IGNORED in said(bad)[CART]
    assert bad.not_understood == {CART, X, Y}


def test_backends_go_by_what_is_in_force_of_their_service() -> None:
    """cart becomes IPv6, as do its servers; but its new VIP is another's."""
    six = {key: each for key, each in GOOD.items() if key in (PAYMENTS, A)}
    six[PAYMENTS] = service("payments", "2001:db8::9")
    before = {**GOOD, **six, CART: service("cart", "203.0.113.1", mode="nat")}
    good = state_of(before)
    after = {
        **before,
        CART: service("cart", "2001:db8::9", mode="nat"),
        X: backend("cart", "x", "2001:db8::2"),
        Y: backend("cart", "y", "198.51.100.3", weight=7),
    }
    bad = state_of(after, good, 2)
    assert vips(bad)["cart"] == "203.0.113.1"
    assert servers(bad)["cart/x"] == "198.51.100.2"
    assert bad.backends["cart", "y"].weight == 7
    assert set(said(bad)) == {CART, X}


def test_a_backend_that_does_not_fit_its_service_any_more_is_left_out() -> None:
    """Its last good version is no better."""
    before = {**GOOD, X: backend("cart", "x", "2001:db8::2")}
    good = state_of(before)
    bad = state_of({**before, CART: service("cart", "203.0.113.1", mode="nat")}, good, 2)
    assert bad.services["cart"].mode == "nat"
    assert set(servers(bad)) == {"payments/a", "cart/y"}
    assert IGNORED in said(bad)[X]
    # An unreadable one that had a good version says so, too.
    worse = state_of({**before, CART: service("cart", "203.0.113.1", mode="nat"), X: {}}, good, 2)
    assert set(servers(worse)) == {"payments/a", "cart/y"}
    assert IGNORED in said(worse)[X]


def test_the_last_good_version_of_one_may_be_in_the_way_of_others() -> None:
    """Each moves to where the next one was, and the last one to a VIP that is taken."""
    names = [f"s{n:02}" for n in range(20)]
    before = {keys.service(name): service(name, f"203.0.113.{n}") for n, name in enumerate(names, 1)}
    after = {
        keys.service(name): service(name, f"203.0.113.{n + 1}") for n, name in enumerate(names[:-1], 1)
    }
    good = state_of(before)
    bad = state_of({**after, keys.service("s19"): before[keys.service("s19")]}, good, 2)
    assert bad.services == good.services
    assert set(said(bad)) == set(after)
    # If the last one moves on, too, all do; and two that change places do.
    assert (
        state_of({**after, keys.service("s19"): service("s19", "203.0.113.99")}, bad, 3).problems == ()
    )
    swapped = {
        **GOOD,
        CART: service("cart", "203.0.113.9"),
        PAYMENTS: service("payments", "203.0.113.1"),
    }
    assert state_of(swapped, state_of(GOOD), 2).problems == ()


def test_a_chain_that_is_too_long_is_cut() -> None:
    """Then whatever is new in it stays as it was; what never was there comes in if it can."""
    names = [f"s{n:03}" for n in range(ROUNDS + 10)]
    before = {keys.service(name): service(name, f"203.0.113.{n}") for n, name in enumerate(names, 1)}
    after = {
        keys.service(name): service(name, f"203.0.113.{n + 1}") for n, name in enumerate(names[:-1], 1)
    }
    last = keys.service(names[-1])
    good = state_of({**before, CART: GOOD[CART] | {"vip": "198.51.100.201"}})
    more = {CART: service("cart", "198.51.100.202"), PAYMENTS: service("payments", "198.51.100.203")}
    bad = state_of({**after, last: before[last], **more}, good, 2)
    assert set(bad.services) == {*good.services, "payments"}
    assert vips(good).items() <= vips(bad).items()
    assert set(said(bad)) == {*after, CART}
    assert "many documents that contradict each other" in said(bad)[CART]
    assert state_of({**before, **more}, bad, 3).problems == ()


def test_a_backends_address_is_not_taken_away_by_somebodys_vip() -> None:
    good = state_of(GOOD)
    bad = state_of({**GOOD, CART: service("cart", "198.51.100.1")}, good, 2)
    assert (bad.services, bad.backends) == (good.services, good.backends)
    assert said(bad) == {
        CART: f"VIP 198.51.100.1:443/tcp is the address of backend 'payments/a' already; {STAYS}"
    }
    # Nor by a new service, whatever else is wrong with it, nor by that of the backend itself.
    new = keys.service("a-new-one")
    for key, each in (
        (new, service("a-new-one", "198.51.100.1")),
        (PAYMENTS, service("payments", "198.51.100.1")),
    ):
        bad = state_of({**GOOD, key: each}, good, 2)
        assert (bad.services, bad.backends) == (good.services, good.backends)
        assert set(said(bad)) == {key}
    two = {new: service("a-new-one", "198.51.100.1"), CART: service("cart", "198.51.100.1")}
    bad = state_of({**GOOD, **two}, good, 2)
    assert (bad.services, bad.backends) == (good.services, good.backends)
    assert set(said(bad)) == {new, CART}


def test_a_service_that_is_refused_takes_nothing_from_backends() -> None:
    """Of two new services with one VIP the second one has no say, and the first one none in a server's
    address."""
    b = keys.backend("payments", "b")
    before = {**GOOD, b: backend("payments", "b", "198.51.100.77")}
    two = {keys.service(name): service(name, "198.51.100.77") for name in ("n1", "n2")}
    state = state_of({**before, **two}, state_of(before), 2)
    assert "payments/b" in servers(state)
    assert set(state.services) == {"payments", "cart"}


def test_a_change_of_mode_takes_no_server_from_others() -> None:
    """In mode nat a socket is one service's. `cart`, the first by name and older, shared the server."""
    before = {
        PAYMENTS: service("payments", "203.0.113.9", mode="nat"),
        A: backend("payments", "a", "198.51.100.1"),
        CART: service("cart", "203.0.113.1"),
        X: backend("cart", "x", "198.51.100.1"),
    }
    good = state_of(before)
    for mode in ("nat", "fullnat"):
        after = {**before, CART: service("cart", "203.0.113.1", mode=mode)}
        state = state_of(after, good, 2, created={CART: 1, X: 1, PAYMENTS: 2, A: 2})
        assert set(servers(state)) == {"payments/a"}
        assert set(said(state)) == {X}


def test_an_address_can_be_given_up_for_a_vip() -> None:
    after = {**GOOD, A: backend("payments", "a", "198.51.100.9"), CART: service("cart", "198.51.100.1")}
    state = state_of(after, state_of(GOOD), 2)
    assert state.problems == ()
    # But not if the backend has to stay where it was.
    after[A] = backend("payments", "a", "203.0.113.9")
    state = state_of(after, state_of(GOOD), 2)
    assert (vips(state)["cart"], servers(state)["payments/a"]) == ("203.0.113.1", "198.51.100.1")
    assert set(said(state)) == {A, CART}


def test_a_vip_that_was_in_force_is_no_backends_address() -> None:
    """Also when its service is changed otherwise in the same moment."""
    after = {
        **GOOD,
        CART: service("cart", "203.0.113.1", port=444, window=60),
        X: backend("cart", "x", "203.0.113.1"),
    }
    state = state_of(after, state_of(GOOD), 2, created={X: 1, CART: 9})
    assert state.services["cart"].port == 444
    assert servers(state)["cart/x"] == "198.51.100.2"
    assert set(said(state)) == {X}


def test_whoever_changes_something_else_keeps_what_is_claimed() -> None:
    """A change of the window, and a hijacker who is first by name, in one moment."""
    after = {**GOOD, PAYMENTS: service("payments", "203.0.113.9", window=60)}
    after[CART] = service("cart", "203.0.113.9")
    state = state_of(after, state_of(GOOD), 2)
    assert state.services["payments"].window == 60
    assert vips(state)["cart"] == "203.0.113.1"
    assert set(said(state)) == {CART}
    after = {**GOOD, Y: backend("cart", "y", "198.51.100.3", weight=1)}
    after[X] = backend("cart", "x", "198.51.100.3")
    state = state_of(after, state_of(GOOD), 2)
    assert state.backends["cart", "y"].weight == 1
    assert set(said(state)) == {X}


def test_without_a_past_the_key_that_was_there_first_keeps_the_vip() -> None:
    """A node that boots without memory, and lbctl. `cart` is the first by name."""
    stolen = {**GOOD, CART: service("cart", "203.0.113.9")}
    created = {PAYMENTS: 2, A: 2, CART: 3, X: 3, Y: 3}
    # Whatever the owner changes after that.
    for changed in ({CART: 9}, {CART: 9, PAYMENTS: 12}):
        state = state_of(stolen, created=created, changed=changed)
        assert set(state.services) == {"payments"}
        assert "belongs to service 'payments' already" in said(state)[CART]
    # A service that is older than its victim: nothing in the store tells when it took the VIP.
    assert set(state_of(stolen, created={**created, CART: 1}).services) == {"cart"}
    # A store that does not know: the last change.
    assert set(state_of(stolen, changed={PAYMENTS: 2, CART: 9}).services) == {"payments"}
    assert set(state_of(stolen, changed={PAYMENTS: 10, CART: 9}).services) == {"cart"}
    # In one transaction: the name, so that nodes agree.
    assert set(state_of(stolen).services) == {"cart"}


def test_without_a_past_the_same_holds_for_vips_and_addresses() -> None:
    taken = {**GOOD, CART: service("cart", "198.51.100.1")}
    created = {PAYMENTS: 2, A: 2, CART: 3, X: 3, Y: 3}
    state = state_of(taken, created=created)
    assert (set(state.services), set(servers(state))) == ({"payments"}, {"payments/a"})
    state = state_of(taken, created={**created, A: 4})
    assert (set(state.services), set(servers(state))) == ({"payments", "cart"}, {"cart/x", "cart/y"})
    # A backend that outdoes its own service would be out itself; and so would two, each other's.
    own = {**GOOD, X: backend("cart", "x", "203.0.113.1")}
    assert set(said(state_of(own, created={**created, X: 1}))) == {X}
    both = {**own, X: backend("cart", "x", "203.0.113.9"), A: backend("payments", "a", "203.0.113.1")}
    assert set(said(state_of(both, created={**created, X: 1, A: 1}))) == {X, A}


def test_who_was_refused_for_nothing_is_taken_in_after_all() -> None:
    """m is in the way of n; but z, who has to stay where it was, is in the way of m."""
    z, m, n = (keys.service(name) for name in "zmn")
    good = state_of({**GOOD, z: service("z", "203.0.113.50", 7900, end_port=8000)})
    documents = {
        **GOOD,
        z: service("z", "203.0.113.9"),
        m: service("m", "203.0.113.50", 8000, end_port=8100),
        n: service("n", "203.0.113.50", 8100, end_port=8200),
        keys.backend("n", "x"): backend("n", "x", "198.51.100.9"),
    }
    state = state_of(documents, good, 2, created={m: 2, n: 3})
    assert set(state.services) == {"payments", "cart", "z", "n"}
    assert state.services["z"].ports == "7900-8000"
    assert "n/x" in servers(state)
    assert set(said(state)) == {z, m}


def test_a_copy_on_disk_has_what_was_in_force(tmp_path: Path) -> None:
    """After a boot with it, it is in force again, and the contradiction said again."""
    config = json.loads(ClusterConfig(seed="0" * 32).model_dump_json())

    def snapshot(revision: int, documents: Mapping[str, Document]) -> Snapshot:
        keyed = {keys.CONFIG: config, **documents}
        items = [KeyValue(key, json.dumps(each), revision) for key, each in sorted(keyed.items())]
        return Snapshot(revision, tuple(items), "c")

    known = LastKnown("n1", tmp_path / "last.json")
    state = known.follow(snapshot(5, GOOD), DesiredState())
    assert state is not None
    bad = known.follow(snapshot(6, {**GOOD, CART: service("cart", "203.0.113.9")}), state)
    assert bad is not None
    known._save_at = 0.0
    known.save_if_due(bad)
    again = LastKnown("n1", known.path)
    loaded = again.load()
    assert loaded.problems == ()
    booted = again.follow(snapshot(6, {**GOOD, CART: service("cart", "203.0.113.9")}), loaded)
    assert booted is not None
    assert (booted.services, booted.backends) == (bad.services, bad.backends)
    assert booted.problems == bad.problems


def test_the_end_of_a_drain_is_not_written_over_a_document_that_is_not_obeyed() -> None:
    """Somebody calls the drain off, and makes a mistake: the node would make the server `down`, and the
    document would be gone."""
    draining = {**GOOD, X: backend("cart", "x", "198.51.100.2", admin="drain", drain_until=100.0)}
    good = state_of(draining)
    assert next_deadline(good) == 100.0
    bad = state_of({**GOOD, X: backend("cart", "x", "203.0.113.9")}, good, 2)
    assert bad.backends["cart", "x"].admin == "drain"
    assert (next_deadline(bad), overdue(bad, 101.0)) == (float("inf"), [])


def test_a_reason_is_what_is_wrong_without_what_is_in_force() -> None:
    good = state_of(GOOD)
    for documents in ({**GOOD, X: backend("cart", "x", "203.0.113.9")}, {**GOOD, Y: {}}):
        for previous in (good, None):
            [problem] = state_of(documents, previous, 2).problems
            assert STAYS in problem.message or IGNORED in problem.message
            assert reason(problem) == problem.message.rpartition("; ")[0]
