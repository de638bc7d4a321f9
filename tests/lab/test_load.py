"""The client's counting: what is answered, by whom, and what fails."""

import time
from collections import Counter

import pytest

from lb.lab.demo import Score
from lb.lab.lab import Lab
from lb.lab.load import GRACE_SECONDS, Client, Tally, finish, parse
from lb.lab.shell import LabError, wait_until

SECONDS = 5  # of a run in which something happens


def accepted(lab: Lab, backend: str) -> int:
    """Connections that a backend's nginx has taken so far, with the one that asks. (The kernel's
    PassiveOpens counts one twice now and then, when two processors handle its packets.)"""
    status = lab.run(backend, ["curl", "-s", "http://127.0.0.1/status"]).stdout
    return int(status.splitlines()[2].split()[0])


def test_every_connection_is_counted(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend2")
    before = accepted(lab, "backend2")
    tally = Client(lab, f"http://{address}/", connections=8).measure(3000)
    assert tally.names == Counter({"lbt-backend2": 3000})
    assert tally.failed == 0
    # Besides, wrk tries the address once, has its 8 connections open again at the end, and we ask.
    assert accepted(lab, "backend2") - before == 3000 + 1 + 8 + 1


def test_a_run_ends_in_time(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend2")
    begin = time.monotonic()
    tally = Client(lab, f"http://{address}/", connections=2).run(10**9, 1)
    assert time.monotonic() - begin < 1 + GRACE_SECONDS  # by itself wrk would go on for longer
    assert tally.requests > 0
    assert tally.failed == 0


def test_connections_that_nobody_answers_are_counted(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend4")
    before = accepted(lab, "backend4")
    run = Client(lab, f"http://{address}/", connections=8).start(10**9, SECONDS)
    wait_until("connections", lambda: accepted(lab, "backend4") > before + 50)
    lab.run("backend4", ["ip", "link", "set", "back0", "down"])
    tally = finish(run)
    assert tally.names["lbt-backend4"] > 0
    assert tally.failures["no answer"] == tally.failed == 8


def test_refused_connections_are_counted(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend3")
    before = accepted(lab, "backend3")
    run = Client(lab, f"http://{address}/", connections=2).start(10**9, SECONDS)
    wait_until("connections", lambda: accepted(lab, "backend3") > before + 50)
    lab.run("backend3", ["sh", "-c", f"kill $(cat {lab.folder}/lbt-backend3/nginx.pid)"])
    tally = finish(run)
    assert tally.failures["connect"] + tally.failures["read"] > 0


def test_another_answer_than_a_name_is_a_failure(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend1")
    tally = Client(lab, f"http://{address}/no-such-page", connections=2).run(100)
    assert tally.failures["wrong answer"] == tally.failed == tally.requests == 100


def test_no_server_is_an_error(lab: Lab) -> None:
    address, _ = lab.topology.back_addresses("lbt-backend1")
    with pytest.raises(LabError, match="unable to connect"):
        Client(lab, f"http://{address}:81/").run(1)


def test_parse() -> None:
    line = '{"counts":[[11,"a",2],[10,"b",1],[11,"b",3]],"failures":{"read":2,"timeout":0}}'
    tally = parse(f"Running 1s test\n{line}\n")
    assert tally.seconds == {10: Counter(b=1), 11: Counter(a=2, b=3)}
    assert tally.names == Counter(a=2, b=4)
    assert (tally.requests, tally.failed) == (8, 2)
    assert tally.share("b") == pytest.approx(100 * 4 / 6)
    assert (tally + tally).requests == 16
    assert Tally().share("a") == 0


def test_parse_of_something_else() -> None:
    with pytest.raises(LabError, match="no result"):
        parse("Segmentation fault\n")


@pytest.mark.parametrize(
    ("score", "line"),
    [
        (Score(20_000, 0, 1.0, 2), "demo: PASS requests=20000 failed=0 max_share_error_pp=1.00"),
        (Score(19_999, 0, 0.1, 2), "demo: FAIL requests=19999 failed=0 max_share_error_pp=0.10"),
        (Score(50_000, 1, 0.1, 2), "demo: FAIL requests=50000 failed=1 max_share_error_pp=0.10"),
        (Score(50_000, 0, 1.01, 2), "demo: FAIL requests=50000 failed=0 max_share_error_pp=1.01"),
        (Score(50_000, 0, 0.1, 1), "demo: FAIL requests=50000 failed=0 max_share_error_pp=0.10"),
        (Score(), "demo: FAIL requests=0 failed=0 max_share_error_pp=100.00"),
    ],
)
def test_last_line(score: Score, line: str) -> None:
    assert score.line(score.passed) == line
