"""The helpers of `benchmarks.convert` under the name that tests use."""

from benchmarks.convert import *  # noqa: F403
