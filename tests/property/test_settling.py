"""Whatever is written: what is in force gets along, and nothing is lost that need not be."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.conflicts import Standing, conflicts
from lb.core.state import DesiredState, parse
from lb.model import keys
from lb.model.objects import Backend, Service

SERVICES = ["a", "b", "c", "d"]
NAMES = ["x", "y"]
VIPS = [f"10.0.0.{n}" for n in range(1, 6)] + ["2001:db8::1"]
ADDRESSES = [f"10.0.0.{n}" for n in range(5, 8)] + ["2001:db8::1"]

services = st.fixed_dictionaries(
    {
        "name": st.sampled_from(SERVICES),
        "vip": st.sampled_from(VIPS),
        "port": st.sampled_from([80, 80, 81]),
        "end_port": st.sampled_from([None, None, None, 90]),
        "mode": st.sampled_from(["dsr", "nat", "fullnat"]),
        "window": st.sampled_from([60, 900]),
    }
).map(lambda each: (keys.service(each["name"]), each))
backends = st.fixed_dictionaries(
    {
        "service": st.sampled_from(SERVICES),
        "name": st.sampled_from(NAMES),
        "address": st.sampled_from(ADDRESSES),
        "weight": st.integers(1, 2),
    }
).map(lambda each: (keys.backend(each["service"], each["name"]), each))
some = [*map(keys.service, SERVICES), *(keys.backend(s, n) for s in SERVICES for n in NAMES)]
rubbish = st.sampled_from(some).map(lambda key: (key, {}))
deleted = st.sampled_from(some).map(lambda key: (key, None))
edits = st.one_of(  # one setting of what is there
    st.fixed_dictionaries({"vip": st.sampled_from(VIPS)}),
    st.fixed_dictionaries({"mode": st.sampled_from(["dsr", "nat", "fullnat"])}),
    st.fixed_dictionaries({"window": st.sampled_from([60, 900])}),
    st.fixed_dictionaries({"address": st.sampled_from(ADDRESSES)}),
    st.fixed_dictionaries({"weight": st.integers(1, 2)}),
)
edited = st.tuples(st.sampled_from(some), edits)
changes = st.one_of(services, services, backends, backends, edited, edited, rubbish, deleted)
first = st.lists(st.one_of(services, backends), min_size=8, max_size=16)
stories = st.builds(
    lambda batch, more: [batch, *more],
    first,
    st.lists(st.lists(changes, min_size=1, max_size=4), max_size=6),
)

Found = dict[str, Service | Backend]


def in_force(state: DesiredState) -> Found:
    found: Found = {keys.service(name): each for name, each in state.services.items()}
    return found | {keys.backend(*key): each for key, each in state.backends.items()}


def apart(documents: Found) -> tuple[dict[str, Service], dict[str, Backend]]:
    named = {d.name: d for d in documents.values() if isinstance(d, Service)}
    return named, {f"{d.service}/{d.name}": d for d in documents.values() if isinstance(d, Backend)}


def read(key: str, text: str) -> Service | Backend | None:
    """None: it can't be read."""
    if text == "{}":
        return None
    kind = Service if key.startswith(keys.SERVICES) else Backend
    return kind.model_validate_json(text)


@settings(max_examples=500, deadline=None)
@given(stories)
def test_what_is_in_force_gets_along_and_nothing_is_lost_that_need_not_be(
    story: list[list[tuple[str, dict[str, object] | None]]],
) -> None:
    held: dict[str, tuple[str, int]] = {}
    created: dict[str, int] = {}
    state = DesiredState()
    for revision, batch in enumerate(story, 1):
        for key, document in batch:
            if document is None:
                held.pop(key, None)
                created.pop(key, None)
                continue
            if document and "name" not in document:
                there = json.loads(held[key][0]) if key in held else {}
                if not document.keys() <= there.keys():
                    continue
                document = {**there, **document}
            held[key] = json.dumps(document), revision
            created.setdefault(key, revision)
        before = in_force(state)
        items = [(key, text, at) for key, (text, at) in held.items()]
        state = parse(revision, items, state, created)
        now = in_force(state)
        named, servers = apart(now)

        assert conflicts(named, servers, Standing()) == {}
        assert len(state.quarantined) == len(state.problems)
        messages = {problem.where: problem.message for problem in state.problems}
        for key, (text, _) in held.items():
            stored = read(key, text)
            if key not in now:
                assert messages[key].endswith("it is ignored")
                assert key in state.not_understood
                if stored is not None:  # it can't be in force beside the rest
                    late = Standing(latecomers={key})
                    assert key in conflicts(*apart({**now, key: stored}), late)
            elif stored != now[key]:
                assert messages[key].endswith("the last good version stays in force")
                assert now[key] == before[key]
            else:
                assert key not in messages
        assert now.keys() <= held.keys()

        # What was in force, and asks for nothing new, still is. A backend if its service is, too.
        for key in before.keys() & held.keys():
            then = before[key]
            owner = key if isinstance(then, Service) else keys.service(then.service)
            if owner == key or now.get(owner) == before[owner]:
                assert key in now
                if read(key, held[key][0]) in (then, None):
                    assert now[key] == then

        # Read again, as every audit does: nothing more happens.
        again = parse(revision, items, state, created)
        assert in_force(again) == now
        assert again.quarantined == state.quarantined
        state = again
