"""Tensors assembled from pieces, and where they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afzal.train.dtensor import memory_mapped_copy


def anonymous_bytes() -> int:
    """This process's memory that is not backed by a file: only swap could reclaim it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (600, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_its_numbers_and_nothing_of_the_original(tmp_path, shape, dtype):
    t = torch.randn(shape).to(dtype)
    before = t.clone()
    down = memory_mapped_copy(t, tmp_path)
    t.zero_()
    assert (down.dtype, down.shape) == (dtype, before.shape)
    assert torch.equal(down, before)
    assert down.is_contiguous()


def test_it_leaves_no_file(tmp_path):
    down = memory_mapped_copy(torch.ones(600, 1000), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert float(down.sum()) == 600_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
def test_it_takes_no_memory_that_the_system_could_not_take_back(tmp_path):
    t = torch.ones(1 << 24)  # 64 MiB
    before = anonymous_bytes()
    down = memory_mapped_copy(t, tmp_path)
    assert anonymous_bytes() - before < 8 << 20
    copied = t.clone()  # the control
    assert anonymous_bytes() - before > 56 << 20
    assert torch.equal(down, copied)
