"""How changes are made: dry run, compare-and-set, races, capacity, quarantine (lb/cli/change.py)."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lb.cli import change, words
from lb.cli.change import Draft
from lb.cli.session import Session
from lb.core import plan, slots
from lb.core.slots import Member
from lb.errors import ConflictError, UserError
from lb.model import keys
from lb.model.objects import Backend, Service
from lb.store.base import Delete, Put


def moved(result):
    return [(each["service"], each["moved"], each["of"]) for each in result["slots"]]


def test_dry_run_says_what_moves_and_writes_nothing(web, store):
    before = store.read(keys.ROOT)
    text = web.ok("backend", "weight", "web", "b1", "40", "--dry-run").out
    # b1 falls from exactly 32,768 slots to 65,536 * 40/90 = 29,127.1, so it may keep 29,128.
    assert "service web: moves 3,640 of 65,536 slots, the least possible" in text
    assert "dry run: nothing was written" in text
    assert store.read(keys.ROOT) == before


def test_dry_run_begins_with_the_stored_table(web, store):
    """A table that came about otherwise: all slots are b3's, so almost all of them have to move."""
    table = slots.plan([Member("b1", "stable", 0), Member("b3", "stable", 1)], {"stable": 100}, None)
    store.commit([Put(keys.table("web"), slots.to_document("web", table).model_dump_json())])
    result = web.json("backend", "rm", "web", "b3", "--dry-run")
    # Brought up to date first (b1, b2 and b3 have their weights), then b3's fifth moves: 13,107.2.
    assert moved(result)[0][1] in (13107, 13108)


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (("backend", "add", "web", "b4", "10.0.1.4", "--weight", "0"), (0, 0, 0)),
        # Half of all; b2 and b3 may keep the odd one of 9,830.4 and 6,553.6, and had 19,661 and 13,107.
        (("backend", "add", "web", "b4", "10.0.1.4", "--weight", "100"), (16384 + 9830 + 6553, 0, 0)),
        (("backend", "drain", "web", "b1"), (32768, 0, 0)),
        (("backend", "drain", "web", "b1", "b2", "b3"), (0, 0, 65536)),
        (("service", "set", "web", "--no-backend", "drop"), (0, 0, 0)),
    ],
)
def test_dry_run_counts(web, arguments, counts):
    [service] = web.json(*arguments, "--dry-run")["slots"]
    assert (service["moved"], service["filled"], service["emptied"]) == counts
    assert service["least_possible"] is True


def test_dry_run_of_the_first_backend_fills_and_of_removal_says_nothing(lbctl):
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80")
    [service] = lbctl.json("backend", "add", "web", "b1", "10.0.1.1", "--dry-run")["slots"]
    assert (service["moved"], service["filled"]) == (0, 65536)
    assert lbctl.json("service", "rm", "web", "--dry-run")["slots"] == []


def test_what_was_announced_is_what_the_planner_does(web):
    announced = web.json("backend", "weight", "web", "b1=7", "b2=90", "--dry-run")
    session = Session()
    before = session.state()
    web.ok("backend", "weight", "web", "b1=7", "b2=90")
    after = session.state()
    session.close()
    old = plan.base_table(before.services["web"], before.backends_of("web"), None, 0)
    new = plan.base_table(
        after.services["web"], after.backends_of("web"), slots.to_document("web", old), 0
    )
    assert moved(announced) == [("web", slots.moved(old, new), 65536)]


def test_json_of_a_change(web, store):
    data = web.json("backend", "weight", "web", "b1", "45")
    assert data["revision"] == store.read(keys.ROOT).revision
    assert (data["changed"], data["dry_run"], data["slots"], data["applied_by"]) == (
        *(True, False, None, None),
    )
    [change] = data["changes"]
    assert (change["action"], change["kind"]) == ("change", "backend")
    assert (change["service"], change["backend"]) == ("web", "b1")
    assert change["settings"] == {"weight": {"before": 50, "after": 45}}
    assert change["after"]["weight"] == 45


class Meanwhile:
    """An edit during whose first run somebody else changes the store."""

    def __init__(self, edit, intrusion):
        self.edit, self.intrusion, self.runs = edit, intrusion, 0

    def __call__(self, draft: Draft) -> None:
        self.runs += 1
        self.edit(draft)
        if self.runs == 1:
            self.intrusion()


@pytest.fixture
def session(machine):
    opened = Session(store_url=str(machine / "store.db"))
    yield opened
    opened.close()


def test_a_lost_race_keeps_the_others_setting(web, store, session):
    def drain(draft):
        draft.put(words.rebuild(draft.backend("web", "b1"), admin="drain"))

    edit = Meanwhile(drain, lambda: web.ok("backend", "weight", "web", "b1", "7"))
    change.perform(session, edit)
    assert edit.runs == 2
    backend = Backend.model_validate_json(store.get(keys.backend("web", "b1")).value)
    assert (backend.weight, backend.admin) == (7, "drain")


def test_a_lost_race_for_a_name(web, session, store):
    mine = words.build(Backend, service="web", name="b4", address="10.0.1.44")
    edit = Meanwhile(
        lambda draft: draft.add(mine), lambda: web.ok("backend", "add", "web", "b4", "10.0.1.4")
    )
    with pytest.raises(ConflictError, match="exists already"):
        change.perform(session, edit)
    assert '10.0.1.4"' in store.get(keys.backend("web", "b4")).value


def test_a_lost_race_for_a_vip_touches_other_keys_but_is_noticed(web, session, store):
    mine = words.build(Service, name="mine", vip="10.0.0.9", port=80)
    edit = Meanwhile(
        lambda draft: draft.add(mine),
        lambda: web.ok("service", "add", "other", "--vip", "10.0.0.9:80"),
    )
    with pytest.raises(UserError, match="belongs to service 'other' already"):
        change.perform(session, edit)
    assert store.get(keys.service("mine")) is None


def test_a_backend_added_while_its_service_is_removed(web, session, store):
    mine = words.build(Backend, service="web", name="b4", address="10.0.1.4")
    edit = Meanwhile(
        lambda draft: (draft.service("web"), draft.add(mine)),
        lambda: web.ok("service", "rm", "web", "--cascade"),
    )
    with pytest.raises(change.words.NotFoundError, match="no service 'web'"):
        change.perform(session, edit)
    assert store.get(keys.backend("web", "b4")) is None


def test_a_service_removed_while_a_backend_is_added(web, session, store):
    web.ok("service", "add", "api", "--vip", "10.0.0.2:80")

    def remove(draft):
        if draft.keys_under(keys.backend("api", "")):
            raise ConflictError("still has backends")
        draft.remove_service("api")

    edit = Meanwhile(remove, lambda: web.ok("backend", "add", "api", "a1", "10.0.1.9"))
    with pytest.raises(ConflictError, match="still has"):
        change.perform(session, edit)
    assert store.get(keys.service("api")) is not None


@pytest.mark.parametrize(
    ("service", "setting", "other"),
    [
        (
            ("10.0.0.2:80", "--mode", "fullnat"),
            {"mode": "dsr"},
            ("limit", "api", "a1", "--max-connections", "5"),
        ),
        (
            ("10.0.0.2:443", "--protocol", "udp", "--quic-id-bytes", "4"),
            {"quic_id_bytes": 8},
            ("add", "api", "a2", "10.0.2.2", "--quic-id", "01020304"),
        ),
        (
            ("10.0.0.2:80", "--mode", "ipip", "--check", "tcp"),
            {"health": {"check": {"kind": "tcp"}, "via": "vip"}},
            ("add", "api", "a2", "2001:db8::1"),
        ),
    ],
)
def test_no_two_edits_of_a_service_and_its_backends_put_one_out_of_force(
    lbctl, session, service, setting, other
):
    lbctl.ok("service", "add", "api", "--vip", *service)
    lbctl.ok("backend", "add", "api", "a1", "10.0.2.1")
    edit = Meanwhile(
        lambda draft: draft.put(words.rebuild(draft.service("api"), **setting)),
        lambda: lbctl.ok("backend", *other),
    )
    with pytest.raises(UserError):
        change.perform(session, edit)
    assert session.state().problems == ()


def test_weights_do_not_take_the_lock(web, store):
    lock = store.get(keys.CONFIG).mod_revision
    web.ok("backend", "weight", "web", "b1", "1")
    web.ok("backend", "drain", "web", "b1")
    web.ok("service", "set", "web", "--window", "60")
    assert store.get(keys.CONFIG).mod_revision == lock
    web.ok("backend", "rm", "web", "b1")
    assert store.get(keys.CONFIG).mod_revision > lock


@pytest.mark.usefixtures("web")
def test_gives_up_against_somebody_who_is_always_faster(session, store, monkeypatch):
    monkeypatch.setattr(change, "RETRY_SECONDS", 0)
    other = iter(range(1, 1000))

    def edit(draft):
        draft.put(words.rebuild(draft.backend("web", "b1"), admin="drain"))
        value = words.rebuild(draft.state.backends["web", "b1"], weight=next(other))
        store.commit([Put(keys.backend("web", "b1"), value.model_dump_json())])

    with pytest.raises(ConflictError):
        change.perform(session, edit)
    assert next(other) == change.ATTEMPTS + 1


def test_many_at_once_lose_nothing(web):
    def add(number):
        own = Session()
        try:
            new = words.build(Backend, service="web", name=f"c{number}", address=f"10.1.0.{number}")
            change.perform(own, lambda draft: (draft.service("web"), draft.add(new)))
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(1, 17)))
    assert len(web.json("backend", "list", "web")) == 3 + 16


# -- capacity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "arguments", "message"),
    [
        (
            {"backends": 3},
            ("backend", "add", "web", "b4", "10.0.1.4"),
            "backends map of node n1 is full (3)",
        ),
        ({"services": 1}, ("service", "add", "api", "--vip", "10.0.0.2:80"), "services map of node n1"),
        # One endpoint and one address for web, the same again for api.
        (
            {"vips": 3},
            ("service", "add", "api", "--vip", "10.0.0.2:80"),
            "vips map of node n1 is full (3)",
        ),
        (
            {"ranges": 15},
            ("service", "add", "api", "--vip", "10.0.0.1:any"),
            "ranges map of node n1 is full (15): 16 entries are needed",
        ),
    ],
)
def test_a_full_map_is_refused_before_anything_is_written(web, nodes, store, limits, arguments, message):
    nodes.put("n0", 1, limits={"backends": 100, "services": 100, "vips": 100})
    nodes.put("n1", 1, limits=limits)
    before = store.read(keys.ROOT)
    for extra in ([], ["--dry-run"]):
        result = web(*arguments, *extra)
        assert result.code == 8
        assert message in result.err
        [name] = limits
        setting = name.replace("ranges", "vips")  # sized by the same
        assert f"raise limits.{setting} in lb.toml of n1" in result.err
    assert store.read(keys.ROOT) == before


def test_what_fits_exactly_is_taken_and_a_full_map_can_be_emptied(web, nodes):
    nodes.put("n1", 1, limits={"backends": 4, "vips": 3, "services": 2})
    web.ok("backend", "add", "web", "b4", "10.0.1.4")
    web.ok("service", "add", "udp", "--vip", "10.0.0.1:80", "--protocol", "udp")  # same address
    nodes.put("n1", 1, limits={"backends": 1, "vips": 1, "services": 1})
    web.ok("backend", "weight", "web", "b4", "1")
    web.ok("backend", "rm", "web", "b4")


# -- what others wrote -------------------------------------------------------------------------


def test_what_is_quarantined_elsewhere_does_not_stop_a_change(web, store):
    store.commit([Put(keys.backend("gone", "b1"), '{"service": "gone"}')])
    store.commit([Put(keys.service("bad"), "no JSON")])
    web.ok("backend", "weight", "web", "b1", "1")


def test_the_seed_comes_with_the_first_change_even_if_others_wrote_the_rest(lbctl, store):
    service = Service(name="web", vip="10.0.0.1", port=80)
    backend = Backend(service="web", name="b1", address="10.0.1.1")
    store.commit(
        [
            Put(keys.service("web"), service.model_dump_json()),
            Put(keys.backend("web", "b1"), backend.model_dump_json()),
        ]
    )
    lbctl.ok("backend", "weight", "web", "b1", "1")
    assert len(json.loads(store.get(keys.CONFIG).value)["seed"]) == 32
    store.commit([Delete(keys.CONFIG)])
    lbctl.ok("backend", "weight", "web", "b1", "1")  # unchanged: nothing is written
    assert store.get(keys.CONFIG) is None
