"""Where each document lives in the store.

What nodes apply is under ROOT, and each of them watches all of that. What nodes report is under REPORTS,
outside of it: with every change each of a hundred nodes reports, and if all hundred were told of each,
that would be ten thousand messages (measured: half of the processor time that a change took).
"""

from __future__ import annotations

EVERYTHING = "/lb/"
ROOT = EVERYTHING + "v1/"
REPORTS = EVERYTHING + "reports/v1/"
CONFIG = ROOT + "config"
SERVICES = ROOT + "services/"
BACKENDS = ROOT + "backends/"
TABLES = ROOT + "tables/"
MEMBERS = ROOT + "members/"
HISTORY = ROOT + "history/"
ROLLOUTS = ROOT + "rollouts/"
NODES = REPORTS + "nodes/"
VOTES = REPORTS + "votes/"
OBSERVED = REPORTS + "observed/"
EVIDENCE = REPORTS + "evidence/"
ENDED_ROLLOUTS = REPORTS + "rollouts/"
ROLLOUT_LOCK = REPORTS + "locks/rollouts"  # whoever has it runs the rollouts
# Reports, records and plans: nothing that the data path has to apply.
BESIDE = (REPORTS, MEMBERS, HISTORY, ROLLOUTS)


def service(name: str) -> str:
    """Key of a service."""
    return SERVICES + name


def backend(service: str, name: str) -> str:
    """Key of a backend."""
    return f"{BACKENDS}{service}/{name}"


def table(path: str) -> str:
    """Key of a slot table: of a service, or of service/pool."""
    return TABLES + path


def node(name: str) -> str:
    """Key of a node's status."""
    return NODES + name


def votes(name: str) -> str:
    """Key of what a node's checks found, in short."""
    return VOTES + name


def member(name: str) -> str:
    """Key of what stays of a node when it is lost."""
    return MEMBERS + name


def record(name: str) -> str:
    """Key of a record in the history."""
    return HISTORY + name


def observed(service: str, node: str) -> str:
    """Key of what a node saw of a service's flows."""
    return f"{OBSERVED}{service}/{node}"


def rollout(service: str) -> str:
    """Key of a service's rollout: the one under way, or the last one."""
    return ROLLOUTS + service


def ended_rollout(service: str, id: str) -> str:
    """Key of the copy of a rollout that is over."""
    return f"{ENDED_ROLLOUTS}{service}/{id}"


def evidence(service: str) -> str:
    """Key of what the service's rollout is judged by."""
    return EVIDENCE + service
