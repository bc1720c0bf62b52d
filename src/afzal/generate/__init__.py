"""Drawing continuations from a model."""

from .choose import choose_decoding
from .draw import Sampling
from .rows import Sample
from .sample import as_trees, sample

__all__ = ["Sample", "Sampling", "as_trees", "choose_decoding", "sample"]
