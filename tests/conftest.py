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
