"""Settings that all tests share. Fixtures live beside the tests that use them."""

from hypothesis import settings

# Examples are small, but the machine may be shared: no deadline, and the same examples in every run.
settings.register_profile("lorahub_edge", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lorahub_edge")
