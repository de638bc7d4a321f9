"""What lbd knows of backends' health, in a file, so that a restart knows it, too."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lb.core import health
from lb.core.health import Record

log = logging.getLogger("lbd")

_KNOWN = TypeAdapter(dict[str, Record])


def load(path: Path, now: float) -> dict[str, Record]:
    """What an earlier process knew, by service/backend; `now`: Unix seconds. Without it backends begin
    as unknown."""
    try:
        known = _KNOWN.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not what lbd wrote"
        log.warning("%s can't be read: %s; backends are unknown until they are checked", path, reason)
        return {}
    return {name: health.resumed(each, now) for name, each in known.items()}


def save(path: Path, known: Mapping[str, Record]) -> None:
    """Write what is known. The old file stays whole until the new one is."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(_KNOWN.dump_json(dict(known)))
        os.replace(new, path)
    except OSError as error:
        reason = error.strerror
        log.error("%s can't be written: %s; a restart will not know what is known now", path, reason)
