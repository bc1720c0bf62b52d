"""Attention kernels for GPUs, one function each over the same arguments.

Query ``[N, H, D]``, key and value ``[N, kv heads, D]`` and a tree layout give ``[N, H, D]``. Which one runs is decided
in :mod:`afzal.model.kernels.choose`; what does not fit or is not trusted goes through the blocks of
:mod:`afzal.model.attention`.
"""

from afzal.model.kernels.choose import BLOCKS, Job, able, distrusted, forced, kernel_for, run
from afzal.model.kernels.trials import notes

__all__ = ["BLOCKS", "Job", "able", "distrusted", "forced", "kernel_for", "notes", "run"]
