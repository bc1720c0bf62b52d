"""Weights that are read in parts are those that are read whole, bit for bit, whatever a library calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_models import make
from safetensors.torch import load_file, save_file

from afzal.errors import AfzalError
from afzal.folders import limits, unread
from afzal.folders.load import blank_causal_model, blank_classifier, load_causal_model, load_classifier

FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox", "phi3", "gpt_oss", "mamba"]


@pytest.fixture(autouse=True)
def tiny_tensors_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, numbers in (("_SMALL", 16), ("_AT_ONCE", 100), ("_OPEN", 500)):
        monkeypatch.setattr(unread, name, numbers)


def saved(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, **overrides: object) -> str:
    make(family, **overrides).to(dtype).save_pretrained(folder, max_shard_size="20KB")
    return str(folder)


def filled(model: torch.nn.Module, of: unread.Unread) -> dict[str, torch.Tensor]:
    """Every weight in two parts, cut along its rows."""
    found, wanted = {}, {}
    for name, p in model.named_parameters():
        found[name] = torch.full(p.shape, torch.nan)
        place = of.place(p)
        assert place is not None
        half = (len(p) + 1) // 2
        for at, end in ((0, half), (half, len(p))):
            part = [slice(at, end), *(slice(0, n) for n in p.shape[1:])]
            wanted[f"{name} {at}"] = (place, part, found[name][at:end])
    unread.fill(wanted)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_bits_of_the_whole(tmp_path, family, tied):
    folder = saved(tmp_path, family, **({"tie_word_embeddings": True} if tied else {}))
    whole = load_causal_model(folder, dtype=torch.float32)
    blank, of = blank_causal_model(folder)
    values, expected = filled(blank, of), dict(whole.named_parameters())
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
    blank, of = blank_classifier(folder, num_labels=1)
    assert type(blank) is type(whole)
    assert blank.config.to_dict() == whole.config.to_dict()
    own = {name: p for name, p in blank.named_parameters() if of.place(p) is not None}
    assert {name for name, _ in blank.named_parameters()} - own.keys() == (
        {"score.weight"} if of_what == "language model" else set()
    )
    for name, expected in whole.named_parameters():
        assert name not in own or torch.equal(of.read(own[name].detach()), expected), name
    assert any(of.is_unread(p) for p in own.values())


def test_a_tensor_that_is_read_already_is_given_as_it_is(tmp_path):
    blank, of = blank_causal_model(saved(tmp_path, "llama"))
    norm = blank.model.norm.weight.detach()
    assert of.is_unread(norm)  # 32 numbers
    assert not of.is_unread(of.read(norm))
    assert of.read(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_blank_model_takes_no_memory(tmp_path):
    blank, of = blank_causal_model(saved(tmp_path, "llama"))
    large = [p for p in blank.parameters() if p.numel() >= 16]
    assert large
    assert all(p.untyped_storage().nbytes() == 4 for p in large)
    assert all(of.is_unread(p) for p in large)


def test_other_numbers_of_a_weight_are_seen(tmp_path):
    """The control: a weight that changed in the file changes in its part, and in no other."""
    folder = saved(tmp_path, "llama")
    blank, of = blank_causal_model(folder)
    before = filled(blank, of)
    place = of.place(blank.get_parameter("model.layers.1.mlp.up_proj.weight"))
    assert place is not None
    held = load_file(place.file)
    held[place.name][-1, -1] += 1
    save_file(held, place.file, metadata={"format": "pt"})
    blank, of = blank_causal_model(folder)
    after = filled(blank, of)
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert changed == ["model.layers.1.mlp.up_proj.weight"]
    assert int((before[changed[0]] != after[changed[0]]).sum()) == 1


def test_a_renamed_checkpoint_is_followed(tmp_path):
    """Names without the prefix of the language model, as a folder of the trunk alone has them."""
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
    blank, of = blank_causal_model(str(folder))
    place = of.place(blank.get_input_embeddings().weight)
    assert place is not None
    assert place.name == "embed_tokens.weight"
    assert all(torch.equal(value, expected[name]) for name, value in filled(blank, of).items())


def test_weights_that_are_computed_are_not_mapped(tmp_path):
    """The experts of a mixture lie in the file one by one, and as one tensor in the model."""
    with pytest.raises(AfzalError, match="made of the tensors"):
        blank_causal_model(saved(tmp_path, "mixtral"))


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
    """It is built, read, and tied to the head, which was built too: still no more than twice what the file holds."""
    monkeypatch.setattr(limits, "_SLACK", 0)
    folder = saved(tmp_path, "llama", vocab_size=5000, tie_word_embeddings=True)
    assert load_causal_model(folder).get_output_embeddings().weight.shape == (5000, 32)
    assert blank_causal_model(folder)[0].get_output_embeddings().weight.shape == (5000, 32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 20_000}))
    with pytest.raises(AfzalError, match="larger model than it holds"):
        load_causal_model(folder)
