"""Where each document lives in the store."""

from __future__ import annotations

ROOT = "/lb/v1/"
CONFIG = ROOT + "config"
SERVICES = ROOT + "services/"
BACKENDS = ROOT + "backends/"
TABLES = ROOT + "tables/"
NODES = ROOT + "nodes/"
MEMBERS = ROOT + "members/"
HISTORY = ROOT + "history/"
OBSERVED = ROOT + "observed/"
ROLLOUTS = ROOT + "rollouts/"
BESIDE = (NODES, MEMBERS, HISTORY, OBSERVED)  # reports and records: nothing that anybody has to apply


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
