"""configs/etcd/rbac.sh, applied to a real etcd: what each user may do, and what not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.core.state import parse
from lb.errors import StoreDenied
from lb.lab.etcd import Etcd as Servers
from lb.model import keys
from lb.model.flows import FlowReport, Vantage
from lb.model.objects import Admin, Backend, Service
from lb.model.reports import NodeStatus
from lb.node.drains import Drains
from lb.node.reporter import Reporter
from lb.node.rollouts import Rollouts
from lb.settings import Etcd
from lb.store.base import Compare, Delete, KeyValue, Put, Store
from lb.store.opening import open_store

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs/etcd/rbac.sh"
ADMIN = "alice"
USERS: dict[str, tuple[str, ...]] = {ADMIN: ("admin", ADMIN), "eve": ("reader", "eve")}
USERS |= {f"lb-node-{name}": ("node", name) for name in ("n1", "n2")}
USERS["lb-backend-web.b1"] = ("backend", "web", "b1")
USERS |= {f"lb-ci-{name}": ("ci", name) for name in ("web", "dns")}
USERS["lb-rollout-web"] = ("rollout", "web")


def script(servers: Servers, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "ETCDCTL_ENDPOINTS": servers.members[0].endpoint,
        **({"ETCDCTL_USER": "root:secret"} if servers.client_options else {}),
    }
    return subprocess.run([SCRIPT, *arguments], input=text, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Half of it is made before auth is enabled, half as root, and all of it twice."""
    with pytest.MonkeyPatch.context() as patch, Servers(tmp_path_factory.mktemp("rbac")) as servers:
        for name in ("ETCDCTL_DIAL_TIMEOUT", "ETCDCTL_COMMAND_TIMEOUT"):
            patch.setenv(name, "60s")  # passwords are hashed slowly on purpose

        def apply() -> None:
            for arguments in (["roles"], *(list(each) for each in USERS.values())):
                done = script(servers, *arguments, text="password\n")
                assert done.returncode == 0, done.stderr

        apply()
        servers.ctl("user", "add", "root:secret")
        servers.ctl("user", "grant-role", "root", "root")
        servers.ctl("auth", "enable")
        servers.client_options = ("--user=root:secret",)
        apply()
        yield servers


def settings(folder: Path, user: str) -> Etcd:
    (folder / "password").write_text("password\n")
    return Etcd(user=user, password_file=str(folder / "password"))


def opened(guarded: Servers, folder: Path, user: str) -> Store:
    return open_store(guarded.url, settings(folder, user))


WEB, DNS = keys.service("web"), keys.service("dns")
B_WEB, B_DNS = keys.backend("web", "b1"), keys.backend("dns", "b1")
RECORD = keys.ROOT + "history/x"
ALL = [keys.CONFIG, WEB, DNS, B_WEB, B_DNS, keys.table("web"), RECORD]
ALL += [f(name) for f in (keys.node, keys.votes, keys.member) for name in ("n1", "n2")]
OBSERVED = {keys.observed(service, name) for service in ("web", "dns") for name in ("n1", "b1")}
ALL += sorted(OBSERVED)
ROLLOUT, ENDED = keys.rollout("web"), keys.ended_rollout("web", "1")
ALL += [
    ROLLOUT,
    ENDED,
    keys.rollout("dns"),
    keys.ended_rollout("dns", "1"),
    keys.ROLLOUT_LOCK,
    keys.evidence("web"),
]
OF_NODES = {
    *OBSERVED,
    keys.table("web"),
    RECORD,
    WEB,
    DNS,
    B_WEB,
    B_DNS,
    ROLLOUT,
    ENDED,
    keys.ROLLOUT_LOCK,
    keys.evidence("web"),
}
OF_NODES |= {keys.rollout("dns"), keys.ended_rollout("dns", "1"), WEB + "x"}
OF_NODES |= {B_WEB.replace("/web/", "/web2/")}
MAY_WRITE = {
    ADMIN: {*ALL},
    "eve": set(),
    "lb-backend-web.b1": {keys.observed("web", "b1")},
    "lb-node-n1": {keys.node("n1"), keys.votes("n1"), keys.member("n1"), *OF_NODES},
    "lb-node-n2": {keys.node("n2"), keys.votes("n2"), keys.member("n2"), *OF_NODES},
    "lb-ci-web": {WEB, B_WEB, RECORD, ROLLOUT, ENDED},
    "lb-ci-dns": {DNS, B_DNS, RECORD, keys.rollout("dns"), keys.ended_rollout("dns", "1")},
    "lb-rollout-web": {ROLLOUT},
}


@pytest.mark.parametrize("user", [*USERS])
def test_who_may_write_what(guarded: Servers, tmp_path: Path, user: str) -> None:
    outside = ["/lb", "/lbx/v1/config", "/other", WEB + "x", B_WEB.replace("/web/", "/web2/")]
    outside = [key for key in outside if user != ADMIN or not key.startswith(keys.EVERYTHING)]
    with opened(guarded, tmp_path, user) as store, opened(guarded, tmp_path, ADMIN) as admin:
        before = admin.read(keys.EVERYTHING).items
        for key in (*ALL, *outside):
            if key in MAY_WRITE[user]:
                store.commit([Put(key, user)])
                found = store.get(key)
                assert found is not None
                assert found.value == user
                store.commit([Delete(key)], [Compare(key, found.mod_revision)])
                continue
            for operation in (Put(key, user), Delete(key)):
                with pytest.raises(StoreDenied):
                    store.commit([operation])
        assert admin.read(keys.EVERYTHING).items == before
        # All or nothing: what is allowed is not done either beside what is not.
        for allowed in MAY_WRITE[user]:
            with pytest.raises(StoreDenied):
                store.commit([Put(allowed, user), Put("/other", user)])
            assert admin.read(keys.EVERYTHING).items == before


def test_a_server_reads_of_its_own_service_only(guarded: Servers, tmp_path: Path) -> None:
    with (
        opened(guarded, tmp_path, ADMIN) as admin,
        opened(guarded, tmp_path, "lb-backend-web.b1") as store,
    ):
        admin.commit([Put(WEB, "1"), Put(B_WEB, "2"), Put(DNS, "3")])
        assert store.get(WEB) is not None
        assert [item.value for item in store.read(keys.backend("web", "")).items] == ["2"]
        for key in (DNS, keys.CONFIG, keys.node("n1"), keys.observed("dns", "b1")):
            with pytest.raises(StoreDenied):
                store.get(key)
        with pytest.raises(StoreDenied):
            store.read(keys.ROOT)
        report = FlowReport(service="web", node="b1", vantage=Vantage.BACKEND, epoch="1", at=1.0)
        reporter = Reporter(store)
        reporter.report_flows({"web": report})
        reporter.renew()
        found = admin.get(keys.observed("web", "b1"))
        assert found is not None
        assert FlowReport.model_validate_json(found.value) == report
        reporter.leave()
        assert admin.get(keys.observed("web", "b1")) is None
        admin.commit([Delete(WEB), Delete(B_WEB), Delete(DNS)])


def test_a_node_may_end_a_drain(guarded: Servers, tmp_path: Path) -> None:
    draining = Backend(
        service="web", name="b1", address=ip_address("203.0.113.1"), admin=Admin.DRAIN, drain_until=1.0
    )
    web = Service(name="web", vip=ip_address("198.51.100.1"), port=80)
    with opened(guarded, tmp_path, ADMIN) as admin, opened(guarded, tmp_path, "lb-node-n1") as node:
        admin.commit([Put(WEB, web.model_dump_json()), Put(B_WEB, draining.model_dump_json())])
        snapshot = node.read(keys.EVERYTHING)
        items = [(each.key, each.value, each.mod_revision) for each in snapshot.items]
        Drains(node).end(parse(snapshot.revision, items), now=2.0)
        found = admin.get(B_WEB)
        assert found is not None
        assert Backend.model_validate_json(found.value).admin is Admin.DOWN
        admin.commit([Delete(WEB), Delete(B_WEB)])


def test_a_vip_stays_with_the_service_that_was_there_first(guarded: Servers, tmp_path: Path) -> None:
    """lb-ci-dns may write any VIP into its document; `dns` is the first by name. A node that boots
    without memory knows what the store knows."""
    web = Service(name="web", vip=ip_address("198.51.100.1"), port=80)
    dns = Service(name="dns", vip=ip_address("198.51.100.2"), port=80)
    theirs = Backend(service="web", name="b1", address=ip_address("203.0.113.1"))
    with opened(guarded, tmp_path, ADMIN) as admin, opened(guarded, tmp_path, "lb-ci-dns") as ci:
        admin.commit([Put(WEB, web.model_dump_json()), Put(B_WEB, theirs.model_dump_json())])
        admin.commit([Put(DNS, dns.model_dump_json())])
        for taken in (web.vip, theirs.address):
            hijacker = dns.model_copy(update={"vip": taken})
            ci.commit([Put(DNS, hijacker.model_dump_json())])
            admin.commit([Put(WEB, web.model_dump_json())])  # whatever its owners change later
            snapshot = ci.read(keys.EVERYTHING)
            items = [(each.key, each.value, each.mod_revision) for each in snapshot.items]
            state = parse(snapshot.revision, items, created=snapshot.created)
            assert (set(state.services), set(state.backends)) == ({"web"}, {("web", "b1")})
            assert DNS in state.quarantined
        admin.commit([Delete(WEB), Delete(B_WEB), Delete(DNS)])


def test_a_rollout_of_who_may_write_nothing_else(guarded: Servers, tmp_path: Path) -> None:
    def run(user: str, *arguments: str) -> tuple[int, str]:
        return lbctl(guarded, tmp_path, user, *arguments)

    for arguments in (
        ("service", "add", "web", "--vip", "198.51.100.1:80"),
        ("backend", "add", "web", "b1", "203.0.113.1"),
        ("backend", "add", "web", "c1", "203.0.113.2", "--pool", "canary"),
    ):
        code, said = run(ADMIN, *arguments)
        assert code == 0, said
    ci = "lb-rollout-web"
    assert run(ci, "service", "set", "web", "--split", "stable=50,canary=50")[0] == 5
    code, said = run(ci, "rollout", "start", "web", "--to", "canary", "--no-analysis", "--steps", "10")
    assert code == 0, said
    with opened(guarded, tmp_path, "lb-node-n1") as node:
        status = NodeStatus(
            node="n1", version="1", pid=1, started=0.0, revision=1 << 40, links=(), pin_dir="/"
        )
        node.commit([Put(keys.node("n1"), status.model_dump_json())])
        running = Rollouts(node, "n1")
        running.turn(time.monotonic())
        assert '"canary":10' in (node.get(WEB) or KeyValue("", "", 0)).value
        code, said = run(ci, "rollout", "status", "web")
        assert (code, "baking" in said) == (0, True), said
        # It can't write the split of before, so it asks for it.
        running.start()
        code, said = run(ci, "rollout", "abort", "web", "--wait", "--timeout", "30")
        assert code == 0, said
        assert "aborted" in said
        running.stop()
        assert '"split":{"stable":100.0}' in (node.get(WEB) or KeyValue("", "", 0)).value
        node.commit([Delete(keys.node("n1"))])
    # Who may write the service, too, needs nobody.
    assert run("lb-ci-web", "rollout", "start", "web", "--to", "canary")[0] == 0
    assert run("lb-ci-web", "rollout", "abort", "web")[0] == 0
    assert run("eve", "rollout", "start", "web", "--to", "canary")[0] == 5
    assert run(ADMIN, "service", "rm", "web", "--cascade")[0] == 0


@pytest.mark.parametrize("user", [user for user in USERS if not user.startswith("lb-backend-")])
def test_who_may_read_what(guarded: Servers, tmp_path: Path, user: str) -> None:
    with opened(guarded, tmp_path, ADMIN) as admin, opened(guarded, tmp_path, user) as store:
        revision = admin.commit([Put(DNS, "1")])
        assert any(item.key == DNS for item in store.read(keys.EVERYTHING).items)
        with store.watch(keys.ROOT, after=revision - 1) as watch:
            assert watch.next(10) is not None
        for prefix in ("", "/", "/other/", "/lbx/"):
            with pytest.raises(StoreDenied):
                store.read(prefix)
            with pytest.raises(StoreDenied):
                store.watch(prefix, after=revision).next(10)
        admin.commit([Delete(DNS)])


def test_nobody_ends_anothers_lease(guarded: Servers, tmp_path: Path) -> None:
    with opened(guarded, tmp_path, "lb-node-n1") as n1, opened(guarded, tmp_path, "lb-ci-web") as ci:
        lease = n1.grant(60)
        n1.commit([Put(keys.node("n1"), "{}", lease)])
        with pytest.raises(StoreDenied):
            ci.revoke(lease)
        assert n1.renew(lease)
        n1.revoke(lease)
        assert n1.get(keys.node("n1")) is None


def lbctl(guarded: Servers, folder: Path, user: str, *arguments: str) -> tuple[int, str]:
    etcd = settings(folder, user)
    config = folder / f"{user}.toml"
    config.write_text(
        f'store = "{guarded.url}"\n[etcd]\nuser = "{etcd.user}"\n'
        f'password_file = "{etcd.password_file}"\n'
    )
    command = [sys.executable, "-m", "lb.cli.main", *arguments]
    env = {**os.environ, "LB_CONFIG": str(config)}
    for variable in ("LB_STORE", "LB_NODE"):
        env.pop(variable, None)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_lbctl_of_each_kind_of_user(guarded: Servers, tmp_path: Path) -> None:
    def run(user: str, *arguments: str) -> tuple[int, str]:
        return lbctl(guarded, tmp_path, user, *arguments)

    for name, vip in (("web", "198.51.100.1:80"), ("dns", "198.51.100.2:53")):
        for arguments in (
            ("service", "add", name, "--vip", vip),
            ("backend", "add", name, "b1", "203.0.113.1"),
        ):
            code, said = run(ADMIN, *arguments)
            assert code == 0, said
    assert run("lb-ci-web", "backend", "weight", "web", "b1", "5")[0] == 0
    assert run("lb-ci-web", "backend", "drain", "web", "b1")[0] == 0
    assert run("lb-ci-web", "service", "set", "web", "--window", "60")[0] == 0
    for user, arguments in (
        ("lb-ci-web", ("backend", "weight", "dns", "b1", "5")),
        ("lb-ci-web", ("backend", "add", "web", "b2", "203.0.113.2")),
        ("lb-ci-web", ("service", "set", "web", "--mode", "nat")),
        ("eve", ("backend", "weight", "web", "b1", "6")),
        ("lb-node-n1", ("backend", "add", "web", "b2", "203.0.113.2")),
    ):
        code, said = run(user, *arguments)
        assert code == 5, (user, arguments, said)
        assert "permission denied" in said
        assert "configs/etcd" in said
    assert run("eve", "status")[0] == 0


def test_a_user_that_is_dropped_is_gone(guarded: Servers, tmp_path: Path) -> None:
    assert script(guarded, "ci", "old", text="password\n").returncode == 0
    with opened(guarded, tmp_path, "lb-ci-old") as store:
        store.read(keys.EVERYTHING)
    assert script(guarded, "drop", "lb-ci-old").returncode == 0
    assert "lb-ci-old" not in guarded.ctl("role", "list").stdout
    with opened(guarded, tmp_path, "lb-ci-old") as store, pytest.raises(StoreDenied):
        store.read(keys.EVERYTHING)


@pytest.mark.parametrize("arguments", [[], ["node"], ["node", "a/b"], ["ci", ""], ["ci", "A"], ["x"]])
def test_the_script_refuses(guarded: Servers, arguments: list[str]) -> None:
    before = guarded.ctl("role", "list").stdout
    assert script(guarded, *arguments).returncode != 0
    assert guarded.ctl("role", "list").stdout == before
