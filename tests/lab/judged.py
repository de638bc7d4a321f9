"""Rollouts that are judged by what the node's kernel sees. In mode nat answers pass it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from helpers import create, service
from slots import Slots

from lb.lab.lab import Lab
from lb.lab.load import Client, Tally
from lb.lab.topology import VIP4

STEPS = ("--steps", "20,60,100", "--every", "2s", "--deadline", "3m")
METRICS = """\
metrics:
  - {name: failed_handshakes, min_samples: 5}
  - {name: resets, min_samples: 5}
  - {name: http_5xx, min_samples: 5}
"""


def pools(lab: Lab, **policies: Any) -> tuple[Slots, list[str]]:
    """A service whose last two backends are the canary."""
    entry = service(lab, "web", VIP4, **policies)
    canary = [each["name"] for each in entry["backends"][2:]]
    for backend in entry["backends"]:
        backend["pool"] = "canary" if backend["name"] in canary else "stable"
    create(lab, entry)
    return Slots(lab), canary


def status(lab: Lab) -> dict[str, Any]:
    """The rollout, as lbctl shows it."""
    shown: dict[str, Any] = json.loads(lab.lbctl("rollout", "status", "web", "-o", "json").stdout)
    return shown["rollout"]


def begin(lab: Lab, steps: Sequence[str] = STEPS, metrics: str = METRICS) -> None:
    """Start a rollout that is judged by these metrics."""
    (lab.folder / "analysis.yaml").write_text(metrics)
    file = str(lab.folder / "analysis.yaml")
    lab.lbctl("rollout", "start", "web", "--to", "canary", *steps, "--analysis", file)


def traffic_until_over(lab: Lab) -> tuple[str, Tally]:
    """Requests until the rollout is over; how it ended, and what came of them."""
    tally, client = Tally(), Client(lab)
    for _ in range(30):
        tally += client.run(600, 2)
        found = status(lab)["status"]
        if found["phase"] in ("promoted", "aborted"):
            return found["ending"] or found["phase"], tally
    raise AssertionError(status(lab))
