"""The device of a run, and the number of threads on a CPU."""

from __future__ import annotations

import pytest
import torch

from afzal.errors import AfzalError
from afzal.model import load
from afzal.model.load import pick_device


@pytest.mark.parametrize(
    ("threads", "cpus", "stated", "left"), [(3, 2, None, 2), (2, 3, None, 2), (3, 2, "3", 3)], ids=str
)
def test_threads_are_no_more_than_processors_unless_they_were_stated(
    threads: int, cpus: int, stated: str | None, left: int, monkeypatch: pytest.MonkeyPatch
):
    before = torch.get_num_threads()
    monkeypatch.setattr(load, "usable_cpus", lambda: cpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    torch.set_num_threads(threads)
    try:
        assert pick_device("cpu").type == "cpu"
        assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused_by_name():
    with pytest.raises(AfzalError, match="device 'abacus' cannot be used"):
        pick_device("abacus")
