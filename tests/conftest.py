"""For all tests."""

import os

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
