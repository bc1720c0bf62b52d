"""Attention kernels for GPUs, one function each, with the same arguments.

Query ``[N, H, D]``, key and value ``[N, kv heads, D]`` and a tree layout give ``[N, H, D]``.
:mod:`afzal.model.kernels.choose` decides which one runs; a job that none of them can do, or that none is trusted with,
goes through the blocks of :mod:`afzal.model.attention`.
"""

from afzal.model.kernels.choose import BLOCKS, Job, distrusted, forced, kernel_for, run, why_unable
from afzal.model.kernels.trials import notes

__all__ = ["BLOCKS", "Job", "distrusted", "forced", "kernel_for", "notes", "run", "why_unable"]
