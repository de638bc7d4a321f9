"""For all tests."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# How long a case takes is for `make bench`; here a slow machine must not be a failure. The same cases
# each time, so that a red test is about the change; LB_EXPLORE=1 looks for new ones.
settings.register_profile(
    "lb",
    deadline=None,
    derandomize=not os.environ.get("LB_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lb")

# So does how long something may take before it counts as not happening. Nobody waits that long in vain
# but for a failure. It is read when lb.lab.shell is imported, and by the programs that tests start.
os.environ.setdefault("LB_PATIENCE", "3")


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist that isn't apart from the others would remove their labs."""
    if hasattr(config, "workerinput") and os.geteuid() == 0 and not os.environ.get("LB_APART"):
        raise pytest.UsageError(
            "several tests at once: make test does so, in namespaces (tests/apart.sh)"
        )


class PerLab(LoadScopeScheduling):
    """What stays with one worker: a file, because it has one lab; and all tests of a fleet."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder == "tests/fleet" else file


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> PerLab:
    return PerLab(config, log)
