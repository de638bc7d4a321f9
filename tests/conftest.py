"""For all tests."""

import os
from pathlib import Path

import apart
import pytest
from hypothesis import HealthCheck, settings

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
    if hasattr(config, "workerinput") and os.geteuid() == 0:  # a worker of pytest-xdist
        apart.move()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stays with one worker (`--dist loadgroup`): a file, because it has one lab; and all of a
    fleet."""
    for item in items:
        place = item.path.parent if item.path.parent.name == "fleet" else item.path
        item.add_marker(pytest.mark.xdist_group(str(place.relative_to(Path(__file__).parent))))
