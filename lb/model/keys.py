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


def table(service: str) -> str:
    """Key of a service's slot table."""
    return TABLES + service


def node(name: str) -> str:
    """Key of a node's status."""
    return NODES + name
