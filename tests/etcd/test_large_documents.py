"""What lbd writes of thousands of backends is never more than etcd takes at once."""

from __future__ import annotations

from lb.core.state import DesiredState
from lb.lab.etcd import Etcd
from lb.model import keys
from lb.model.health import Ballot
from lb.model.objects import TableDocument
from lb.model.reports import BackendHealth, HealthChange, NodeStatus
from lb.node.planning import Bases
from lb.node.reporter import Reporter
from lb.node.sharing import Sharing
from lb.store.opening import open_store

TAKEN = 1_572_864  # etcd's --max-request-bytes, unless it was told otherwise: 1.5 MiB


def status(backends: int) -> NodeStatus:
    history = tuple(
        HealthChange(at=1790000000.123456 + n, state="healthy", words="connection refused")
        for n in range(5)
    )
    health = {
        f"service-{n % 50:02d}/backend-{n:05d}": BackendHealth(
            state="healthy", since=1790000000.123456, share=1.0, latency=0.0012345, history=history
        )
        for n in range(backends)
    }
    return NodeStatus(
        node="n1", version="1", pid=1, started=0, revision=7, links=(), pin_dir="/x", health=health
    )


class Tables(Bases):
    """New tables, of 98 KB each, for fifty services."""

    def unstored(self, _: DesiredState) -> dict[str, TableDocument]:
        runs = tuple((n % 2, 8) for n in range(8192))
        return {
            f"s{n}": TableDocument(
                service=f"s{n}", backends=("b1", "b2"), parts={"stable": 1}, runs=runs, moves=()
            )
            for n in range(50)
        }


def test_the_status_and_tables_of_thousands_of_backends(etcd: Etcd) -> None:
    with open_store(etcd.url) as store:
        for backends in (4000, 16384):  # the larger one is what the maps hold by default
            large = status(backends)
            assert len(large.model_dump_json()) > TAKEN
            reporter = Reporter(store)
            reporter.report(large)
            found, votes, member = store.read(keys.NODES), store.get(keys.votes("n1")), keys.member("n1")
            told = NodeStatus.model_validate_json(found.items[0].value)
            assert (told.revision, len(told.health)) == (7, backends)
            assert votes is not None
            assert len(Ballot.model_validate_json(votes.value).votes) == backends
            assert store.get(member) is not None
            reporter.leave()

        bases = Tables()
        assert (
            sum(len(each.model_dump_json()) for each in bases.unstored(DesiredState()).values()) > TAKEN
        )
        sharing = Sharing(store, "n1", bases)
        sharing.plan(DesiredState(), 0.0)
        sharing.share_if_due(DesiredState(), 1e9, held=False)
        assert len(store.read(keys.TABLES).items) == 50
