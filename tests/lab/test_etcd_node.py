"""A node whose store is in etcd, while that dies, freezes, is restored: real lbd, real traffic."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import create, held, service

from lb.lab import steady
from lb.lab.etcd import Etcd
from lb.lab.lab import Lab
from lb.lab.shell import wait_until
from lb.lab.topology import VIP4, VIP6
from lb.model import keys

PATIENCE = 40.0
RATE = 200.0  # requests a second


@pytest.fixture(scope="module")
def etcd(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    folder = tmp_path_factory.mktemp("etcd")
    with Etcd(folder, size=1, namespace=lab.topology.node) as etcd:
        yield etcd


@pytest.fixture
def web(lab: Lab, etcd: Etcd) -> Lab:
    """lbd serves a service from etcd."""
    lab.store = etcd.url
    if lab.lbd is None:
        lab.start_lbd()
    create(lab, service(lab, "web", VIP4))
    return lab


@contextmanager
def traffic(lab: Lab) -> Iterator[None]:
    """New connections all the time; none of them may fail."""
    with steady.traffic(lab, VIP4, RATE) as requests:
        yield
    assert requests.failed == 0, requests.failures
    assert requests.total > 10


def problems(lab: Lab) -> str:
    """What the node says, if it has written its status since etcd is back."""
    nodes = json.loads(lab.lbctl("status", "-o", "json").stdout)["nodes"]
    return " ".join(each["message"] for node in nodes for each in node["problems"])


def log_since(lab: Lab, begin: int) -> str:
    return lab.lbd_log.read_text(errors="replace")[begin:]


def weight(lab: Lab, value: int) -> None:
    """A change, applied by the kernel."""
    backend = lab.topology.backends[0]
    lab.lbctl("backend", "weight", "web", backend, str(value), "--wait", "--timeout", "20")


def log_position(lab: Lab) -> int:
    return len(lab.lbd_log.read_text(errors="replace"))


def test_etcd_that_is_frozen_or_killed_is_not_noticed_by_clients(web: Lab, etcd: Etcd) -> None:
    (server,) = etcd.members
    weight(web, 50)
    begin = log_position(web)
    with traffic(web):
        server.signal(signal.SIGSTOP)
        wait_until("notice", lambda: "watching again" in log_since(web, begin), timeout=PATIENCE)
        server.signal(signal.SIGCONT)
        weight(web, 60)
        begin = log_position(web)
        server.kill()
        wait_until("notice", lambda: "watching again" in log_since(web, begin), timeout=PATIENCE)
        refused = web.lbctl(*("backend", "weight", "web", web.topology.backends[0], "70"), check=False)
        assert refused.returncode == 5, refused.stderr
        etcd.start()
        weight(web, 80)


def test_what_is_deleted_while_the_node_is_cut_off_goes_when_it_is_back(web: Lab, etcd: Etcd) -> None:
    """Removed and compacted, so that no watch can tell of it."""
    create(web, service(web, "six", VIP6))
    assert web.answer(VIP6)
    pid = web.lbd.pid if web.lbd else 0
    with traffic(web):
        web.run("node1", ["kill", "-STOP", str(pid)])
        web.lbctl("service", "rm", "six", "--cascade")
        header = json.loads(etcd.ctl("get", "x", "-w", "json").stdout)["header"]
        etcd.ctl("compact", str(header["revision"]))
        web.run("node1", ["kill", "-CONT", str(pid)])
        wait_until("the end of it", lambda: not web.answer(VIP6), timeout=PATIENCE)


def test_a_node_that_boots_while_etcd_is_away_serves_what_it_knew(web: Lab, etcd: Etcd) -> None:
    copy = web.node_folder / "last-known-good.json"
    weight(web, 90)

    def is_saved() -> bool:
        return copy.exists() and '"weight": 90' in copy.read_text()

    wait_until("the copy", is_saved, timeout=PATIENCE)
    web.kill_lbd()
    web.detach_lbd()  # as after a boot: nothing is left in the kernel
    etcd.stop()
    assert not web.answer(VIP4)
    begin = log_position(web)
    try:
        web.start_lbd()
        assert "serving the last known state" in log_since(web, begin)
        with traffic(web):
            etcd.start()
            wait_until("status", lambda: "booted without" in problems(web), timeout=PATIENCE)
            weight(web, 100)
            assert web.answer(VIP4)
    finally:
        if etcd.members[0].process is None:
            etcd.start()


def test_an_older_backup_is_followed_and_what_it_lost_can_be_put_back(
    web: Lab, etcd: Etcd, tmp_path: Path
) -> None:
    etcd.ctl("snapshot", "save", str(tmp_path / "backup.db"))
    for value in range(5):
        weight(web, 10 + value)
    create(web, service(web, "six", VIP6))
    kept = web.node_folder / "last-known-good.before-restore.json"
    with traffic(web):
        etcd.stop()
        etcd.restore(tmp_path / "backup.db")
        wait_until("the file", kept.exists, timeout=PATIENCE)
        wait_until("status", lambda: "went back" in problems(web), timeout=PATIENCE)
        wait_until("the end of six", lambda: not web.answer(VIP6), timeout=PATIENCE)
        lost = web.lbctl("diff", "-f", str(kept), check=False)
        assert lost.returncode == 1
        assert "six" in lost.stdout
        web.lbctl("apply", "-f", str(kept), "--wait", "--timeout", "20")
        assert web.answer(VIP6)
        web.lbctl("service", "rm", "six", "--cascade", "--wait", "--timeout", "20")
        kept.unlink()
        weight(web, 100)
    assert "went back" not in problems(web)


def test_all_of_etcd_lost_is_put_back_from_what_the_node_knew(web: Lab, etcd: Etcd) -> None:
    """With the seed, so that every client stays on its backend."""
    copy = web.node_folder / "last-known-good.json"
    weight(web, 37)
    wait_until("the copy", lambda: '"weight": 37' in copy.read_text(), timeout=PATIENCE)
    before = json.loads(web.lbctl("export", "-o", "json").stdout)
    with held(web, VIP4, 40) as connections, traffic(web):
        names = connections.ask()
        etcd.wipe()
        etcd.start()
        wait_until("status", lambda: "the store is empty" in problems(web), timeout=PATIENCE)
        assert connections.ask() == names
        web.lbctl("restore", str(copy), "--wait", "--timeout", "20")
        assert connections.ask() == names
        weight(web, 38)
        assert connections.ask() == names
    assert not any(name.startswith("!") for name in names)
    weight(web, 37)
    assert json.loads(web.lbctl("export", "-o", "json").stdout) == before
    assert problems(web) == "" or "booted" in problems(web)
    again = web.lbctl("restore", str(copy), check=False)
    assert again.returncode == 4
    assert "not empty" in again.stderr


def test_everything_deleted_is_not_nothing_configured(web: Lab, etcd: Etcd) -> None:
    saved = web.lbctl("export", "-o", "json").stdout
    with traffic(web):
        etcd.ctl("del", "--prefix", keys.ROOT)
        wait_until(
            "status",
            lambda: (
                keys.NODES in etcd.ctl("get", "--prefix", "--keys-only", keys.NODES).stdout
                and "the store is empty" in problems(web)
            ),
            timeout=PATIENCE,
        )
    web.lbctl("apply", "-f", "-", "--wait", "--timeout", "20", text=saved)
    assert "the store is empty" not in problems(web)
    assert web.answer(VIP4)
