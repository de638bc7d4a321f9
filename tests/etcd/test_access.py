"""How the store proves who it is: TLS, mutual TLS, users; and what becomes of their tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority, Signed
from test_faults import patiently

from lb import settings as settings_module
from lb.errors import StoreDenied, StoreUnavailable
from lb.lab.etcd import Etcd as Servers
from lb.settings import Etcd
from lb.store.base import Event, Put, Store
from lb.store.opening import open_store

PATIENCE = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@contextmanager
def tls_servers(folder: Path, ca: Authority, *options: str) -> Iterator[Servers]:
    server, admin = ca.sign("server"), ca.sign("admin")
    with Servers(
        folder / "etcd",
        options=[f"--cert-file={server.cert}", f"--key-file={server.key}", *options],
        scheme="https",
        client_options=[f"--cacert={ca.cert}", f"--cert={admin.cert}", f"--key={admin.key}"],
    ) as servers:
        yield servers


def files(ca: Authority, signed: Signed | None = None) -> Etcd:
    cert, key = (str(signed.cert), str(signed.key)) if signed else ("", "")
    return Etcd(ca=str(ca.cert), cert=cert, key=key, timeout=2.0)


def use(store: Store) -> None:
    """Everything that goes over the wire, once."""
    revision = store.commit([Put("/t/a", "1", store.grant(60))])
    with store.watch("/t/", after=revision - 1) as watch:
        batch = watch.next(PATIENCE)
        assert batch is not None
        assert batch.events == (Event("/t/a", "1", revision),)
    assert store.read("/t/", revision=revision).items[0].value == "1"


def test_tls(tmp_path: Path, authority: Authority) -> None:
    with tls_servers(tmp_path, authority) as servers:
        address = servers.members[0].endpoint
        for url in (f"etcds://{address}", f"etcd://{address}"):  # [etcd] ca means TLS, too
            with open_store(url, files(authority)) as store:
                use(store)
        stranger = Authority(tmp_path / "stranger")
        with open_store(f"etcds://{address}", files(stranger)) as store:
            with pytest.raises(StoreUnavailable) as caught:
                store.read("/t/")
            assert address in caught.value.message
        with (
            open_store(f"etcd://{address}", Etcd(timeout=1.0)) as store,  # no TLS
            pytest.raises(StoreUnavailable),
        ):
            store.read("/t/")


def test_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    asking = ("--client-cert-auth", f"--trusted-ca-file={authority.cert}")
    with tls_servers(tmp_path, authority, *asking) as servers:
        url = f"etcds://{servers.members[0].endpoint}"
        with open_store(url, files(authority, authority.sign("node"))) as store:
            use(store)
        for etcd in (files(authority), files(authority, Authority(tmp_path / "other").sign("node"))):
            with open_store(url, etcd) as store, pytest.raises(StoreUnavailable):
                store.read("/t/")


# Users and their tokens


ROOT = ("--user=root:secret",)


def enable_auth(servers: Servers) -> None:
    """root, and a user `node` who may do as it likes below /t/."""
    servers.ctl("user", "add", "root:secret")
    servers.ctl("user", "grant-role", "root", "root")
    servers.ctl("user", "add", "node:password")
    servers.ctl("role", "add", "node")
    servers.ctl("role", "grant-permission", "node", "--prefix=true", "readwrite", "/t/")
    servers.ctl("user", "grant-role", "node", "node")
    servers.ctl("auth", "enable")
    servers.client_options = ROOT


@pytest.fixture
def password(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text("password\n")
    return tmp_path / "password"


@pytest.fixture
def guarded(etcd: Servers) -> Servers:
    enable_auth(etcd)
    return etcd


def test_a_user_with_a_password_may_do_what_its_roles_say(guarded: Servers, password: Path) -> None:
    with open_store(guarded.url, Etcd(user="node", password_file=str(password))) as store:
        use(store)
        for attempt in (
            lambda: store.read("/other/"),
            lambda: store.get("/other/a"),
            lambda: store.commit([Put("/other/a", "1")]),
            lambda: store.watch("/other/", after=0).next(PATIENCE),
        ):
            with pytest.raises(StoreDenied, match="permission denied") as caught:
                attempt()
            assert "configs/etcd" in caught.value.hint


@pytest.mark.parametrize("user", ["", "node", "nobody"])
def test_without_the_right_password_nothing_is_done(guarded: Servers, tmp_path: Path, user: str) -> None:
    (tmp_path / "wrong").write_text("wrong")
    etcd = Etcd(user=user, password_file=str(tmp_path / "wrong")) if user else Etcd()
    with open_store(guarded.url, etcd) as store:
        for attempt in (lambda: store.read("/t/"), lambda: store.commit([Put("/t/a", "1")])):
            with pytest.raises(StoreDenied) as caught:
                attempt()
            assert "password_file" in caught.value.hint
    assert guarded.ctl("get", "--prefix", "/t/").stdout == ""


def test_a_token_that_is_no_longer_known_is_renewed(guarded: Servers, password: Path) -> None:
    """etcd forgets its tokens when it restarts, and after 5 minutes of silence."""
    with open_store(guarded.url, Etcd(user="node", password_file=str(password))) as store:
        revision = store.commit([Put("/t/a", "1")])
        with store.watch("/t/", after=revision) as watch:
            assert watch.next(timeout=0.1) is None
            lease = store.grant(60)
            token = store.members.connections[0]._token  # type: ignore[attr-defined]
            guarded.stop()
            guarded.start()
            patiently(lambda: store.commit([Put("/t/a", "2")]))
            assert store.members.connections[0]._token != token  # type: ignore[attr-defined]
            assert store.renew(lease)
            batch = watch.next(PATIENCE)
            assert batch is not None
            assert [event.value for event in batch.events] == ["2"]


def test_a_change_of_users_or_roles_is_survived(guarded: Servers, password: Path) -> None:
    with open_store(guarded.url, Etcd(user="node", password_file=str(password))) as store:
        use(store)
        guarded.ctl("user", "add", "another:one")
        use(store)


def test_auth_that_is_enabled_later_or_not_at_all(etcd: Servers, password: Path) -> None:
    with open_store(etcd.url, Etcd(user="node", password_file=str(password))) as store:
        use(store)
        enable_auth(etcd)
        use(store)


# The package


def test_settings_lead_to_the_store(etcd: Servers, tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text(f'store = "{etcd.url}"\n[etcd]\ntimeout = 1.5\n')
    settings = settings_module.load(file, {})
    with open_store(settings.store, settings.etcd) as store:
        use(store)
        assert store.members.timeout == 1.5  # type: ignore[attr-defined]


def test_etcd3_lives_with_a_protobuf_that_other_clients_need(etcd: Servers) -> None:
    """Whichever is imported first; with protobuf's fast implementation, not the one in Python."""
    code = (
        "import sys\n"
        "from google.protobuf import struct_pb2\n"
        "from google.protobuf.internal import api_implementation\n"
        "from lb.store.opening import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "assert int(__import__('google.protobuf').protobuf.__version__.split('.')[0]) >= 5\n"
        "print(api_implementation.Type(), len(store.read('/none/').items))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, etcd.url], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("upb 0\n", 0), done.stderr
