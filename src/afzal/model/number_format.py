"""Whether a CPU should compute in bf16: a trial of its speed, and one of what rounding does to a model's log-probs.

Processors differ: with AMX, products of bf16 are several times as fast as those of float32, and without any
instructions for bf16 they take twice as long.
"""

from __future__ import annotations

import copy
import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from afzal.model.adapters import is_factor
from afzal.model.load import stays_float32
from afzal.model.logprobs import score
from afzal.model.probe import agree, probe_trees
from afzal.tokens.batch import Sharing, collate

NARROWEST = 256  # width of a model below which too little of an update is products
WORTHWHILE = 1.5  # speed-up of products below which casts and copies use up the gain

_SHAPE = (256, 512, 2048)  # rows, features and outputs of the product that is timed
_REPEATS = 10


@cache
def bf16_speedup() -> float:
    """How many times as fast a core of this processor computes a product in bf16 as in float32: the best of a few
    trials, about .1 s, measured once per process."""
    rows, features, outputs = _SHAPE
    operands = {
        dtype: (torch.ones(rows, features, dtype=dtype), torch.ones(outputs, features, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(operands, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one another would measure what else the machine does
    try:
        for dtype in [*operands] * _REPEATS:  # in turn, so that other work slows both
            start = time.perf_counter()
            F.linear(*operands[dtype])
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]


def survives_rounding(model: Any, sharing: Sharing) -> str:
    """Empty if the model's log-probs of two short texts stay within the tolerance of bf16 after rounding; else why not.

    Takes two bytes per weight while it runs.
    """
    batch = collate(probe_trees(model), sharing, next(model.parameters()).device)
    with torch.no_grad():
        exact = score(model, batch).token_logps
        rounded = score(_rounded_copy(model), batch).token_logps
    return agree(model, rounded, exact)


def _rounded_copy(model: Any) -> Any:
    """A copy as bf16 training has it: with the weights that stay in float32 shared."""
    weights = {
        id(p): p if is_factor(name) or stays_float32(model, name) else _rounded(p)
        for name, p in model.named_parameters()
    }
    return copy.deepcopy(model, weights)


def _rounded(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
