"""Weights read in parts equal those read whole, bit for bit, whatever a library names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers_models import make
from safetensors.torch import load_file, save_file

from afzal.errors import AfzalError
from afzal.folders import lazy_weights, limits
from afzal.folders.load import blank_causal_model, blank_classifier, load_causal_model, load_classifier

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe"]  # the files store each expert separately
FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox", "phi3", "gpt_oss", "mamba", *MIXTURES]


@pytest.fixture(autouse=True)
def tiny_tensors_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in (("_SMALL", 16), ("_CHUNK", 100), ("_REOPEN_AFTER", 500)):
        monkeypatch.setattr(lazy_weights, name, numbers)


def saved(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, **overrides: object) -> str:
    make(family, **overrides).to(dtype).save_pretrained(folder, max_shard_size="20KB")
    return str(folder)


def filled(model: torch.nn.Module, weights: lazy_weights.LazyWeights) -> dict[str, torch.Tensor]:
    """Every weight in four parts, cut along its rows and columns."""
    tensors, wanted = {}, {}
    for name, p in model.named_parameters():
        tensors[name] = torch.full(p.shape, torch.nan)
        place = weights.place(p)
        assert place is not None
        halves = [(slice(0, (n + 1) // 2), slice((n + 1) // 2, n)) for n in p.shape[:2]]
        for cut in product(*halves):
            part = [*cut, *(slice(0, n) for n in p.shape[len(cut) :])]
            wanted[f"{name} {cut}"] = (place, part, tensors[name][tuple(part)])
    lazy_weights.fill(wanted)
    return tensors


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_bits_of_the_whole(tmp_path, family, tied):
    folder = saved(tmp_path, family, **({"tie_word_embeddings": True} if tied else {}))
    whole = load_causal_model(folder, dtype=torch.float32)
    blank, weights = blank_causal_model(folder)
    values, expected = filled(blank, weights), dict(whole.named_parameters())
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert torch.equal(value, expected[name]), name
    assert blank.config.to_dict() == whole.config.to_dict()
    assert blank.generation_config.to_dict() == whole.generation_config.to_dict()
    own, theirs = dict(blank.named_buffers()), dict(whole.named_buffers())
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.parametrize("of_what", ["language model", "reward model"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox", "phi3"])
def test_parts_of_a_classifier_are_the_bits_of_the_whole(tmp_path, family, of_what):
    folder = saved(tmp_path / "lm", family)
    if of_what == "reward model":
        load_classifier(folder, num_labels=1).to(torch.bfloat16).save_pretrained(folder := str(tmp_path / "rm"))
    whole = load_classifier(folder, num_labels=1, dtype=torch.float32)
    blank, weights = blank_classifier(folder, num_labels=1)
    assert type(blank) is type(whole)
    assert blank.config.to_dict() == whole.config.to_dict()
    own = {name: p for name, p in blank.named_parameters() if weights.place(p) is not None}
    assert {name for name, _ in blank.named_parameters()} - own.keys() == (
        {"score.weight"} if of_what == "language model" else set()
    )
    for name, expected in whole.named_parameters():
        assert name not in own or torch.equal(weights.read(own[name].detach()), expected), name
    assert any(weights.is_unread(p) for p in own.values())


def test_a_tensor_that_is_already_read_is_returned_unchanged(tmp_path):
    blank, weights = blank_causal_model(saved(tmp_path, "llama"))
    norm = blank.model.norm.weight.detach()
    assert weights.is_unread(norm)  # 32 numbers
    assert not weights.is_unread(weights.read(norm))
    assert weights.read(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_blank_model_takes_no_memory(tmp_path):
    blank, weights = blank_causal_model(saved(tmp_path, "llama"))
    large = [p for p in blank.parameters() if p.numel() >= 16]
    assert large
    assert all(p.untyped_storage().nbytes() == 4 for p in large)
    assert all(weights.is_unread(p) for p in large)


def test_other_numbers_of_a_weight_are_seen(tmp_path):
    """The control: a weight changed in the file changes its part, and no other."""
    folder = saved(tmp_path, "llama")
    blank, weights = blank_causal_model(folder)
    before = filled(blank, weights)
    (piece,) = weights.place(blank.get_parameter("model.layers.1.mlp.up_proj.weight")) or ()
    held = load_file(piece.file)
    held[piece.name][-1, -1] += 1
    save_file(held, piece.file, metadata={"format": "pt"})
    blank, weights = blank_causal_model(folder)
    after = filled(blank, weights)
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert changed == ["model.layers.1.mlp.up_proj.weight"]
    assert int((before[changed[0]] != after[changed[0]]).sum()) == 1


def test_a_renamed_checkpoint_is_followed(tmp_path):
    """Names without the language model's prefix, as in a folder with only the trunk."""
    folder = Path(saved(tmp_path, "llama", tie_word_embeddings=True))
    expected = dict(load_causal_model(str(folder), dtype=torch.float32).named_parameters())
    index = folder / "model.safetensors.index.json"
    about = json.loads(index.read_text())
    for file in set(about["weight_map"].values()):
        held = load_file(folder / file)
        renamed = {name.removeprefix("model."): t for name, t in held.items()}
        save_file(renamed, folder / file, metadata={"format": "pt"})
    about["weight_map"] = {name.removeprefix("model."): file for name, file in about["weight_map"].items()}
    index.write_text(json.dumps(about))
    blank, weights = blank_causal_model(str(folder))
    (piece,) = weights.place(blank.get_input_embeddings().weight) or ()
    assert piece.name == "embed_tokens.weight"
    assert all(torch.equal(value, expected[name]) for name, value in filled(blank, weights).items())


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_are_stacked_stay_unread(tmp_path, family):
    """A model tensor is joined from two per expert, the gate first; it takes no memory until it is read."""
    blank, weights = blank_causal_model(saved(tmp_path, family))
    joined = blank.model.layers[1].mlp.experts.gate_up_proj
    place = weights.place(joined)
    assert place is not None
    experts, rows, width = joined.shape
    assert joined.untyped_storage().nbytes() == 4
    assert weights.is_unread(joined)
    assert len({piece.name for piece in place}) == len(place) == 2 * experts
    assert {piece.start for piece in place} == {(k, at, 0) for k in range(experts) for at in (0, rows // 2)}
    assert {piece.size for piece in place} == {(1, rows // 2, width)}


def test_a_model_of_joined_weights_is_saved_as_one_that_was_loaded_whole(tmp_path):
    folder = saved(tmp_path / "model", "mixtral", torch.float32)
    blank, weights = blank_causal_model(folder)
    for module in blank.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = p if p is None else torch.nn.Parameter(weights.read(p.detach()))
    blank.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    for file in Path(folder).glob("*.safetensors"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_weights_that_are_computed_are_not_mapped(tmp_path, monkeypatch):
    """If a library does anything but join the tensors, reading parts would give other values."""
    folder = saved(tmp_path, "mixtral")
    monkeypatch.setattr(lazy_weights, "_JOINS", {"MergeModulelist"})
    with pytest.raises(AfzalError, match="computes its weights from the tensors"):
        blank_causal_model(folder)


@pytest.mark.parametrize("computed", [torch.add, torch.maximum])
def test_a_weight_that_is_no_tensor_of_the_files_is_not_mapped(tmp_path, monkeypatch, computed):
    """The control: a tensor that the library makes by an untracked operation has no place."""
    folder = saved(tmp_path, "mixtral")
    monkeypatch.setattr(torch, "stack", lambda tensors, dim=0: computed(tensors[0], tensors[1])[None].repeat(4, 1, 1))
    with pytest.raises(AfzalError, match="is not an unchanged tensor in"):
        blank_causal_model(folder)


def test_what_is_joined_in_other_ways_is_not_followed(tmp_path):
    _, weights = blank_causal_model(saved(tmp_path, "llama"))
    a, b = (weights.tensors[f"model.layers.{n}.mlp.up_proj.weight"] for n in (0, 1))
    with weights.joining():
        assert weights.place(torch.stack([a, b])) is not None
        assert weights.place(torch.cat([a, b], 1)) is not None
        assert weights.place(torch.stack([a, torch.zeros_like(b)])) is None
        assert weights.place(torch.cat([a, b], -1)) is None
        assert weights.place(torch.stack([a, b]).transpose(0, 1)) is None
        assert weights.place(torch.stack([a, b])[1]) is None
    assert weights.place(torch.stack([a, b])) is None


def test_what_is_stacked_may_be_joined_again(tmp_path):
    """Two layers concatenated along a new dimension, then stacked along another."""
    folder = saved(tmp_path, "llama")
    names = [f"model.layers.{n}.mlp.{part}_proj.weight" for n in (0, 1) for part in ("up", "gate")]
    whole = dict(load_causal_model(folder, dtype=torch.float32).named_parameters())

    def joined(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        a, b, c, d = (tensors[name] for name in names)
        return torch.stack([torch.cat([torch.stack([a, b], 1), torch.stack([c, d], 1)], 2)] * 2, 0)

    _, weights = blank_causal_model(folder)
    with weights.joining():
        stacked = joined(weights.tensors)
    assert weights.is_unread(stacked)
    assert torch.equal(weights.read(stacked), joined(whole))


def test_small_tensors_that_are_joined_are_read_at_once(tmp_path, monkeypatch):
    """A single expert whose values were already read is not replaced by a placeholder."""
    folder = saved(tmp_path, "llama")
    name = "model.norm.weight"
    whole = load_causal_model(folder, dtype=torch.float32).get_parameter(name)
    monkeypatch.setattr(lazy_weights, "_SMALL", 1000)
    weights = lazy_weights.LazyWeights(folder)
    with weights.joining():
        stacked = torch.stack([weights.tensors[name]])
    assert not weights.is_unread(stacked)
    assert weights.place(stacked) is not None
    assert torch.equal(stacked, whole[None])
    with weights.joining():
        many = torch.stack([weights.tensors[name]] * 40)
    assert weights.is_unread(many)
    assert torch.equal(weights.read(many), whole.expand(40, -1))


def test_a_transposed_square_is_not_taken_for_the_original(tmp_path):
    _, weights = blank_causal_model(saved(tmp_path, "llama"))
    (piece,) = weights.place(weights.tensors["model.norm.weight"]) or ()
    square = torch.ones(2, 2)
    weights._register(square, (piece,))
    assert weights.place(square) == (piece,)
    assert weights.place(square.T) is None


def test_packed_weights_are_not_mapped(tmp_path):
    folder = Path(saved(tmp_path, "llama"))
    (file,) = [f for f in folder.glob("*.safetensors") if "model.layers.0.mlp.up_proj.weight" in load_file(f)]
    held = load_file(file)
    held["model.layers.0.mlp.up_proj.weight"] = held["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(AfzalError, match="F8_E4M3"):
        blank_causal_model(str(folder))


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    folder = Path(saved(tmp_path, "llama"))
    file = next(f for f in folder.glob("*.safetensors") if "model.norm.weight" in load_file(f))
    held = load_file(file)
    del held["model.norm.weight"]
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(AfzalError, match=r"lacks model\.norm\.weight"):
        blank_causal_model(str(folder))


def test_a_large_embedding_that_is_tied_counts_once(tmp_path, monkeypatch):
    """It is built, read, and tied to the head, which is also built: at most twice the file's size."""
    monkeypatch.setattr(limits, "_SLACK", 0)
    folder = saved(tmp_path, "llama", vocab_size=5000, tie_word_embeddings=True)
    assert load_causal_model(folder).get_output_embeddings().weight.shape == (5000, 32)
    assert blank_causal_model(folder)[0].get_output_embeddings().weight.shape == (5000, 32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 20_000}))
    with pytest.raises(AfzalError, match="larger model than it holds"):
        load_causal_model(folder)
