"""A whole training as a person would do it, timed: ``python -m benchmarks.real_run --help``."""
