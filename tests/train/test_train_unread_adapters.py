"""Adapters on a model that each rank reads only its own part of: they start as in one process, and so does the model.

Counts the numbers that a rank reads from the files of the base model.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers_models import make
from helpers_ranks import start_group
from helpers_runs import finished

from afzal.errors import AfzalError
from afzal.folders import lazy_weights
from afzal.folders.kinds import tensors_of
from afzal.model.adapters import Adapter, Kind, add_adapter
from afzal.model.load import begin_with, blank_model, load_model
from afzal.train import ranks
from afzal.train.dtensor import gather_full
from afzal.train.shard import Sharded, start_adapter_in_pieces

CPU = torch.device("cpu")
EVEN = {"vocab_size": 100}


class Case(NamedTuple):
    """A base model's folder, and an adapter on it: fresh, loaded with it, or loaded onto it (``begun``)."""

    folder: str
    kind: Kind
    saved: str = ""
    begun: bool = False


class _CountingReader:
    """A file of tensors as ``safetensors`` opens it, which notes how many numbers of each are read."""

    def __init__(self, reader: Any, read: Counter[str]) -> None:
        self._reader, self._read = reader, read

    def __enter__(self) -> _CountingReader:
        self._reader.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.__exit__(*error)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._note(name, self._reader.get_tensor(name))

    def get_slice(self, name: str) -> Any:
        reader, outer = self._reader.get_slice(name), self

        class Slice:
            def __getitem__(self, part: Any) -> torch.Tensor:
                return outer._note(name, reader[part])

        return Slice()

    def _note(self, name: str, values: torch.Tensor) -> torch.Tensor:
        self._read[name] += values.numel()
        return values


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How many numbers of each tensor are read inside the block."""
    read: Counter[str] = Counter()
    original = lazy_weights._open_file
    lazy_weights._open_file = lambda file: _CountingReader(original(file), read)
    try:
        yield read
    finally:
        lazy_weights._open_file = original


def adapted(model: Any, case: Case, *, unread: bool) -> Any:
    if case.saved:
        return begin_with(model, case.saved) if case.begun else model
    torch.manual_seed(5)
    return add_adapter(model, Adapter(case.kind, 4, 8.0, virtual_tokens=3), unread=unread)


def compare(case: Case, made: Sharded, one: Any) -> None:
    """All weights and logits are those of one process."""
    # what starts from rows that are cut, or from a pass through them, is made of the ranks' sums
    summed = not case.saved and ranks.tensor() > 1 and {"dora": "lora_magnitude", "prefix": "prompt_encoder"}
    trains = {name: p.requires_grad for name, p in one.named_parameters()}
    assert {name: p.requires_grad for name, p in made.model.named_parameters()} == trains
    for name, p in gather_full(made._all):
        expected = one.get_parameter(name).detach()
        near = summed and summed.get(case.kind, "none") in name
        assert torch.allclose(p, expected, rtol=1e-6, atol=1e-6) if near else torch.equal(p, expected), name
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        logits, expected = made.model(ids).logits, one(ids).logits
        assert float((logits - expected).abs().max()) <= (1e-6 if ranks.tensor() == 1 else 1e-5)
        if case.kind == "dora" and not case.saved:  # B is 0
            with made.model.disable_adapter():
                assert torch.equal(logits, made.model(ids).logits)
    made.publish()


def refuse_reading_all(folder: str, read: Counter[str]) -> None:
    """A rank has read half of the base, except for small tensors."""
    sizes = [t.size for t in tensors_of(folder).values()]
    small = sum(size for size in sizes if size < lazy_weights._SMALL)
    assert small < sum(read.values()) <= small + (sum(sizes) - small) / 2, read


def _as_rank(argument: tuple[list[Case], int], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    cases, members = argument
    with ranks.joined(CPU, members):
        for case in cases:
            print(case, flush=True)  # which of them failed
            whole = case.saved if case.saved and not case.begun else case.folder
            with counted() as read:
                blank, unread = blank_model(whole)
                made = Sharded(adapted(blank, case, unread=True), "fp32", CPU, unread)
                start_adapter_in_pieces(made.model)
            refuse_reading_all(case.folder, read)
            compare(case, made, adapted(load_model(whole), case, unread=False))


def run(cases: list[Case], members: int) -> None:
    processes = start_group(_as_rank, 2, (cases, members))
    assert [finished(process) for process in processes] == [0, 0]


def base_folder(family: str, at: Path) -> str:
    make(family, **EVEN).save_pretrained(at / family, max_shard_size="20KB")
    return str(at / family)


def saved_adapter(folder: str, kind: Kind, at: Path, *, embeddings: bool = False) -> str:
    """The folder of an adapter whose every weight was moved, DoRA's norms too.

    Args:
        embeddings: the folder holds the base's embeddings too, with other numbers.
    """
    torch.manual_seed(7)
    model = add_adapter(load_model(folder), Adapter(kind, 4, 8.0, virtual_tokens=3))
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn(p.shape))
    out = at / f"{Path(folder).name}-{kind}-{embeddings}"
    if embeddings:
        model.get_input_embeddings().weight.data.mul_(0.5)
    model.save_pretrained(out, save_embedding_layers=embeddings)
    return str(out)


FRESH: tuple[tuple[str, Kind], ...] = (
    ("llama", "prompt"),
    ("llama", "prefix"),
    ("llama", "p_tuning"),
    ("llama", "dora"),
    ("llama", "ia3"),
    ("gemma3", "prompt"),  # its embeddings are scaled
    ("gpt2", "prefix"),
    ("mixtral", "prefix"),
)
# phi3 gathers what its matrix of queries, keys and values computes, so that every rank has all heads
CUT: tuple[tuple[str, Kind], ...] = (
    ("llama", "prompt"),
    ("llama", "prefix"),
    ("llama", "p_tuning"),
    ("llama", "dora"),
    ("qwen2", "dora"),
    ("phi3", "dora"),
    ("phi3", "prefix"),
)
KINDS: tuple[Kind, ...] = ("lora", "dora", "ia3", "prompt", "prefix", "p_tuning")


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_fresh_adapters_start_as_in_one_process_and_no_rank_reads_the_whole_model(tmp_path: Path, members: int):
    pairs = FRESH if members == 1 else CUT
    folders = {family: base_folder(family, tmp_path) for family, _ in pairs}
    run([Case(folders[family], kind) for family, kind in pairs], members)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_saved_adapters_are_those_of_one_process_and_no_rank_reads_the_whole_model(tmp_path: Path, members: int):
    folder = base_folder("llama", tmp_path)
    saved = {kind: saved_adapter(folder, kind, tmp_path) for kind in KINDS}
    cases = [Case(folder, kind, saved[kind], begun) for kind in KINDS for begun in (False, True)]
    run(cases, members)


@pytest.mark.slow
def test_so_are_saved_adapters_with_embeddings_of_the_base(tmp_path: Path):
    folders = [base_folder(family, tmp_path) for family in ("llama", "gpt2")]  # gpt2's are tied
    saved = [saved_adapter(folder, "lora", tmp_path, embeddings=True) for folder in folders]
    run([Case(f, "lora", s, begun) for f, s in zip(folders, saved, strict=True) for begun in (False, True)], 1)


def _refused(folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with ranks.joined(CPU):
        blank, unread = blank_model(folder)
        made = Sharded(add_adapter(blank, Adapter("prefix", virtual_tokens=6), unread=True), "fp32", CPU, unread)
        with pytest.raises(AfzalError, match="adapter prefix does not fit MistralForCausalLM") as caught:
            start_adapter_in_pieces(made.model)
    assert caught.value.why == "6 virtual tokens do not fit in its sliding window"


@pytest.mark.slow
def test_a_prefix_that_does_not_fit_is_refused_by_every_rank(tmp_path: Path):
    processes = start_group(_refused, 2, base_folder("mistral-sliding", tmp_path))
    assert [finished(process) for process in processes] == [0, 0]
