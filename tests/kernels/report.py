"""A plugin of pytest: one line of JSON per test, to $LB_REPORT, as soon as it ended. What a virtual
machine that is switched off in the middle had to say is not lost."""

from __future__ import annotations

import json
import os

import pytest


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 1),
        "properties": dict(report.user_properties),
        "why": "" if report.passed else report.longreprtext[-2000:],
    }
    with open(os.environ["LB_REPORT"], "a") as file:
        file.write(json.dumps(line) + "\n")
