"""Drawing continuations from a model."""

from .sample import Sample, Sampling, as_trees, sample

__all__ = ["Sample", "Sampling", "as_trees", "sample"]
