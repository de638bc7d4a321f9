"""For all tests."""

from hypothesis import HealthCheck, settings

# How long a case takes is for `make bench`; here a slow machine must not be a failure.
settings.register_profile("lb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lb")
