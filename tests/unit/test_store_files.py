"""The file of the embedded store: modes, files that are no store, a full disk, addresses."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from lb.errors import StoreUnavailable, UserError
from lb.settings import Etcd
from lb.store.base import Put
from lb.store.opening import open_store
from lb.store.sqlite import SqliteStore
from lb.store.sqlite_file import SCHEMA_VERSION, Clock

PATIENCE = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def values(store: SqliteStore, prefix: str = "", revision: int | None = None) -> dict[str, str]:
    return {item.key: item.value for item in store.read(prefix, revision=revision).items}


def test_file_and_directory_are_private(tmp_path: Path) -> None:
    path = tmp_path / "made" / "store.db"
    mask = os.umask(0)
    try:
        with SqliteStore(path) as store:
            store.commit([Put("seed", "secret")])
            modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_commits_are_flushed_before_they_return(path: Path) -> None:
    with SqliteStore(path) as store:
        assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@contextmanager
def without_root() -> Iterator[None]:
    """Root may do anything, so permissions are tested as nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that nobody can reach (pytest's own are private)."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def assert_unavailable(action: Callable[[], object], *words: str) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        action()
    error = caught.value
    for word in words:
        assert word in error.message, error.message
    assert error.hint
    assert "{" not in error.message + error.hint
    return error


def test_a_directory_without_permission(public: Path) -> None:
    closed = public / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, os.geteuid(), -1)
    locked = public / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() != 0:
        closed.chmod(0)
    with without_root():
        for path in (closed / "s.db", closed / "new" / "s.db", locked / "s.db", locked / "d/s.db"):
            error = assert_unavailable(partial(SqliteStore, path), "permission", str(path))
            assert "owner and mode" in error.hint
    closed.chmod(0o700)
    assert list(closed.iterdir()) == list(locked.iterdir()) == []


def test_a_read_only_file(public: Path) -> None:
    path = public / "store.db"
    with SqliteStore(path) as store:
        store.commit([Put("a", "1")])
    path.chmod(0o444)
    with without_root():
        assert_unavailable(lambda: SqliteStore(path), "permission", str(path))
    path.chmod(0o600)
    with SqliteStore(path) as store:
        assert values(store) == {"a": "1"}


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    assert_unavailable(lambda: SqliteStore(tmp_path), "directory")
    (tmp_path / "file").touch()
    assert_unavailable(lambda: SqliteStore(tmp_path / "file" / "s.db"), "can't be used")


@pytest.mark.parametrize(
    "content",
    [b"services: []\n" * 100, b"xy", bytes(range(256)) * 64],
    ids=["yaml", "two bytes", "bytes"],
)
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    error = assert_unavailable(lambda: SqliteStore(path), "not an lb store")
    assert "move that file away" in error.hint
    assert path.read_bytes() == content


def test_a_database_of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (a)")
    content = path.read_bytes()
    assert_unavailable(lambda: SqliteStore(path), "not an lb store", "another program")
    assert path.read_bytes() == content


def test_a_newer_schema(path: Path) -> None:
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    error = assert_unavailable(lambda: SqliteStore(path), "newer lb", str(SCHEMA_VERSION + 1))
    assert "upgrade" in error.hint


def test_a_damaged_file(path: Path) -> None:
    with SqliteStore(path) as store:
        for i in range(200):
            store.commit([Put(f"k{i}", "x" * 500)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    error = assert_unavailable(lambda: SqliteStore(path).read(""), "damaged")
    assert "backup" in error.hint


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with SqliteStore(path) as store:
        assert store.commit([Put("a", "1")]) == 1


def test_another_writer_that_does_not_let_go(path: Path) -> None:
    with SqliteStore(path, patience=0.1) as store, closing(sqlite3.connect(path)) as hog:
        store.commit([Put("a", "1")])
        hog.execute("BEGIN IMMEDIATE")
        error = assert_unavailable(lambda: store.commit([Put("a", "2")]), "locked")
        assert "fuser" in error.hint
        assert_unavailable(lambda: SqliteStore(path, patience=0.1), "locked")
        assert values(store) == {"a": "1"}
        hog.rollback()
        assert store.commit([Put("a", "2")]) == 2


def test_a_hung_writer_does_not_keep_others_from_reading(path: Path) -> None:
    now = 0.0
    with SqliteStore(path, patience=0.05, clock=Clock("boot", lambda: now)) as store:
        store.commit([Put("a", "1", store.grant(1))])
        now += 2
        with closing(sqlite3.connect(path)) as hog:
            hog.execute("BEGIN IMMEDIATE")
            assert values(store) == {"a": "1"}  # stale, but served
        now += 2
        assert values(store) == {}


def test_a_file_deleted_or_replaced_while_in_use(path: Path) -> None:
    with SqliteStore(path) as store, store.watch("", after=0) as watch:
        store.commit([Put("a", "1")])
        assert watch.next(PATIENCE) is not None
        aside = path.rename(path.with_name("aside"))
        for _ in range(2):
            assert_unavailable(lambda: store.commit([Put("a", "2")]), "replaced")
            assert_unavailable(lambda: store.read(""), "replaced")
            assert_unavailable(lambda: watch.next(PATIENCE), "replaced")
            path.write_bytes(aside.read_bytes())
        aside.replace(path)
        assert store.commit([Put("a", "2")]) == 2


FILL = """
import os
from pathlib import Path
from lb.errors import StoreUnavailable
directory = Path(sys.argv[1]).parent
store.commit([Put("a", "first")])
ballast = directory / "ballast"
ballast.write_bytes(bytes(300_000))
count = 0
while True:
    try:
        revision = store.commit([Put("a", "x" * 20_000), Put("b", str(count))])
        count += 1
    except StoreUnavailable as error:
        print(json.dumps([count, error.message, error.hint]))
        break
for _ in range(3):
    assert store.get("b").value == str(count - 1)
    assert store.read("").revision == revision
    try:
        store.commit([Put("a", "x" * 400_000)])
        raise SystemExit("there was space")
    except StoreUnavailable:
        pass
ballast.unlink()
assert store.commit([Put("b", "after")]) == revision + 1
with SqliteStore(sys.argv[1]) as again:
    assert again.get("b").value == "after"
    assert again._reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: a small tmpfs, in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    unshare = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("may not mount here")
    launcher = f"import os, sys; os.system({mount!r}) and sys.exit(1)"
    script = (
        f"{launcher}\nimport json\nfrom lb.store.base import Put\n"
        f"from lb.store.sqlite import SqliteStore\nstore = SqliteStore(sys.argv[1])\n{FILL}"
    )
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script, str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    count, message, hint = json.loads(done.stdout)
    assert count > 1
    assert "no space left" in message
    assert "df -h" in hint


# Addresses


def test_a_path_and_an_address_open_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "odd %41?mode=memory#x" / "st öre.db"
    with open_store(str(path)) as store, open_store(f"sqlite://{path}") as other:
        store.commit([Put("a", "1")])
        found = other.get("a")
        assert found is not None
        assert found.value == "1"
    assert path.is_file()


def test_a_relative_path_stays_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store(":memory:") as store:
        store.commit([Put("a", "1")])
        monkeypatch.chdir("/")
        store.commit([Put("a", "2")])
    assert (tmp_path / ":memory:").is_file()


@pytest.mark.parametrize(
    "url",
    [
        *(
            "etcd://",
            "etcd://a,",
            "etcd://a:0",
            "etcd://a:x",
            "etcd://u:p@a",
            "etcd://a/b",
            "http://x/y",
            "SQLITE+x:///a",
            "sqlite://store.db",
        ),
        *("sqlite://", "sqlite:///", "", "dir/", "a\0b"),
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(url)
    assert "/var/lib/lb/store.db" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "etcd", "message"),
    [
        ("etcd://a", Etcd(cert="c"), "cert and key"),
        ("etcd://a", Etcd(cert="c", key="k"), "no TLS"),
        ("etcd://a", Etcd(user="u"), "password_file"),
        ("etcds://a", Etcd(ca="/none"), "/none"),
        ("etcd://a", Etcd(user="u", password_file="/none"), "/none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(url: str, etcd: Etcd, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_store(url, etcd)
    assert caught.value.hint
