"""Where each document lives in the store."""

from __future__ import annotations

ROOT = "/lb/v1/"
CONFIG = ROOT + "config"
SERVICES = ROOT + "services/"
BACKENDS = ROOT + "backends/"
TABLES = ROOT + "tables/"
NODES = ROOT + "nodes/"


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
