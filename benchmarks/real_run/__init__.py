"""A complete training as a user would do it, timed: ``python -m benchmarks.real_run --help``."""
