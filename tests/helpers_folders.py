"""Model folders that are broken, hostile, or misfits: each is a good folder with one modification."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers_runs import model_folder
from safetensors.torch import load_file, save_file

Hurt = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]


def bases(place: Path) -> None:
    """``model``, its ``reward`` model and LoRA ``adapter``; and a ``wide`` model with a ``wide-adapter``."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for name, sizes in (("model", {}), ("wide", {"hidden_size": 64})):
        model_folder(place / name, **sizes)
        tokenizer = AutoTokenizer.from_pretrained(place / name)
        adapter = "adapter" if name == "model" else "wide-adapter"
        model = AutoModelForCausalLM.from_pretrained(place / name)
        targets = ["q_proj", "v_proj"]
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
        adapted.save_pretrained(place / adapter)
        tokenizer.save_pretrained(place / adapter)
    reward = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=1)
    reward.save_pretrained(place / "reward")
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(place / "reward")


def copy(place: Path, base: str, name: str, hurt: Hurt) -> Path:
    """A copy of a good folder with one modification."""
    shutil.rmtree(place / name, ignore_errors=True)
    shutil.copytree(place / base, place / name)
    hurt(place / name)
    return place / name


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Set keys of a JSON file."""
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def says(file: str = "config.json", **changes: Any) -> Hurt:
    """Modification: set keys of a JSON file."""
    return lambda folder: edit(folder, file, **changes)


def weights(change: Callable[[Tensors], Tensors | None]) -> Hurt:
    """Modification: change the tensors of a folder, in place or by replacing all."""

    def hurt(folder: Path) -> None:
        (file,) = folder.glob("*model.safetensors")
        tensors = load_file(file)
        changed = change(tensors)
        save_file(tensors if changed is None else changed, file, metadata={"format": "pt"})

    return hurt


def without(*parts: str) -> Hurt:
    """Modification: remove tensors whose names contain one of the parts."""
    return weights(lambda w: {k: v for k, v in w.items() if not any(part in k for part in parts)})


def with_value(name: str, value: float) -> Hurt:
    """Modification: change one value of a tensor."""

    def change(tensors: Tensors) -> None:
        tensors[next(k for k in tensors if name in k)].view(-1)[7] = value

    return weights(change)


def reshaped(name: str) -> Hurt:
    """Modification: remove a tensor's last row."""

    def change(tensors: Tensors) -> None:
        key = next(k for k in tensors if name in k)
        tensors[key] = tensors[key][:-1].contiguous()

    return weights(change)


def added(name: str) -> Hurt:
    """Modification: add an extra tensor."""
    return weights(lambda w: {**w, name: torch.zeros(3, 3)})


def more_tokens(folder: Path) -> None:
    """Modification: give the tokenizer two tokens without rows in the embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<NEW1>", "<NEW2>"])
    tokenizer.save_pretrained(folder)


def other_tokens(folder: Path) -> None:
    """Modification: swap the ids of two tokens."""
    path = folder / "tokenizer.json"
    about = json.loads(path.read_text())
    vocabulary = about["model"]["vocab"]
    first, second = sorted(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(about))


# --- folders that no library must open ---

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def writes(file: str, content: bytes) -> Hurt:
    """Modification: write a file with this content."""
    return lambda folder: bool((folder / file).write_bytes(content))


def header(change: Callable[[dict[str, Any]], Any]) -> Hurt:
    """Modification: change the header of the weights but not the bytes after it."""

    def hurt(folder: Path) -> None:
        (file,) = folder.glob("*model.safetensors")
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])
        change(about)
        text = json.dumps(about).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return hurt


def in_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Hurt:
    """Modification: change ``tokenizer.json``."""

    def hurt(folder: Path) -> None:
        path = folder / "tokenizer.json"
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    return hurt


def shaped(*shape: int) -> Hurt:
    """Modification: give a tensor another shape in the header."""
    return header(lambda about: about["model.norm.weight"].update(shape=list(shape)))


def as_gpt2(folder: Path) -> None:
    """A GPT-2 whose masks, which are in no file, would fill the memory."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 259, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    edit(folder, n_positions=10**6, n_ctx=10**6)


def adapted(**changes: Any) -> Hurt:
    """Modification: set keys of an adapter's configuration."""
    return says("adapter_config.json", **changes)


ENDLESS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
# name: (the good folder, its modification)
BROKEN: dict[str, tuple[str, Hurt]] = {
    "deep configuration": ("model", writes("config.json", DEEP)),
    "deep generation settings": ("model", writes("generation_config.json", DEEP)),
    "deep tokenizer": ("model", writes("tokenizer.json", DEEP)),
    "deep tokenizer settings": ("model", writes("tokenizer_config.json", DEEP)),
    "deep header": ("model", header(lambda h: h.update(__metadata__=json.loads("[" * 900 + "]" * 900)))),
    "width as text": ("model", says(hidden_size="32")),
    "width negative": ("model", says(hidden_size=-32)),
    "width zero": ("model", says(hidden_size=0)),
    "width a fraction": ("model", says(hidden_size=32.5)),
    "width of 2^40": ("model", says(hidden_size=1 << 40)),
    "width of 10^300": ("model", says(hidden_size=10**300)),
    "width of 2^20": ("model", says(hidden_size=1 << 20)),
    "width a list": ("model", says(hidden_size=[32, 32])),
    "10^8 layers": ("model", says(num_hidden_layers=10**8)),
    "9,000 layers": ("model", says(num_hidden_layers=9000)),
    "-1 layers": ("model", says(num_hidden_layers=-1)),
    "layers as text": ("model", says(num_hidden_layers="two")),
    "10^9 labels": ("reward", says(num_labels=10**9, id2label=None)),
    "feed-forward of 10^9": ("model", says(intermediate_size=10**9)),
    "vocabulary of 10^9": ("model", says(vocab_size=10**9)),
    "vocabulary of -5": ("model", says(vocab_size=-5)),
    "no heads": ("model", says(num_attention_heads=0)),
    "3 heads": ("model", says(num_attention_heads=3)),
    "3 key heads": ("model", says(num_key_value_heads=3)),
    "10^6 a head": ("model", says(head_dim=10**6)),
    "positions as text": ("model", says(max_position_embeddings="many")),
    "positions whose masks fill the memory": ("model", as_gpt2),
    "padding outside the vocabulary": ("model", says(pad_token_id=10**6)),
    "ends outside the vocabulary": ("model", says(eos_token_id=[1, 999_999])),
    "start as text": ("model", says(bos_token_id="<s>")),
    "ends of -7": ("model", says("generation_config.json", eos_token_id=-7)),
    "GPTQ": ("model", says(quantization_config={"quant_method": "gptq", "bits": 4})),
    "bitsandbytes": ("model", says(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
    "a method of quantisation that there is not": ("model", says(quantization_config={"quant_method": "x"})),
    "compressed tensors": ("model", says(compression_config={"format": "pack-quantized"})),
    "unknown type of model": ("model", says(model_type="nonsense")),
    "no type of model": ("model", lambda folder: (folder / "config.json").write_text("{}")),
    "an encoder": ("model", says(model_type="bert", architectures=["BertForMaskedLM"])),
    "two towers": ("model", says(model_type="t5", architectures=["T5ForConditionalGeneration"])),
    "unknown activation": ("model", says(hidden_act="evil")),
    "rotation by a text": ("model", says(rope_parameters={**ROPE, "rope_theta": "x"})),
    "rotation by 0": ("model", says(rope_parameters={**ROPE, "rope_type": "linear", "factor": 0.0})),
    "unknown rotation": ("model", says(rope_parameters={**ROPE, "rope_type": "evil"})),
    "epsilon as text": ("model", says(rms_norm_eps="small")),
    "tying as text": ("model", says(tie_word_embeddings="maybe")),
    "architectures no list": ("model", says(architectures={"a": 1})),
    "negative shape": ("model", shaped(-32)),
    "shape of 2^62 x 4": ("model", shaped(1 << 62, 4)),
    "shape of other bytes": ("model", shaped(31)),
    "shape as text": ("model", header(lambda h: h["model.norm.weight"].update(shape="32"))),
    "bytes beyond the file": ("model", header(lambda h: h["model.norm.weight"].update(data_offsets=[0, 1 << 50]))),
    "overlapping bytes": ("model", header(lambda h: h["model.norm.weight"].update(data_offsets=[0, 128]))),
    "unknown number format": ("model", header(lambda h: h["model.norm.weight"].update(dtype="F7"))),
    "weights that are counts": ("model", weights(lambda w: {k: v.long() for k, v in w.items()})),
    "tokenizer no object": ("model", writes("tokenizer.json", b"[]")),
    "tokenizer cut short": ("model", writes("tokenizer.json", b'{"version": "1.0", "added')),
    "tokenizer without a model": ("model", in_tokenizer(lambda t: t.pop("model"))),
    "ids of 10^9": ("model", in_tokenizer(lambda t: t["model"]["vocab"].update({"zz": 10**9}))),
    "ids below 0": ("model", in_tokenizer(lambda t: t["model"]["vocab"].update({"zz": -1}))),
    "a splitting pattern without end": ("model", in_tokenizer(lambda t: t.update(pre_tokenizer=ENDLESS))),
    "no token for the unknown": ("model", in_tokenizer(lambda t: t.update(model=WORDS, pre_tokenizer=None))),
    "special tokens as numbers": ("model", says("tokenizer_config.json", eos_token=7)),
    "tokenizer class as a list": ("model", says("tokenizer_config.json", tokenizer_class=[1])),
    "adapter of rank 10^9": ("adapter", adapted(r=10**9)),
    "adapter of rank -1": ("adapter", adapted(r=-1)),
    "adapter of rank two": ("adapter", adapted(r="two")),
    "adapter of an unknown type": ("adapter", adapted(peft_type="EVIL")),
    "adapter without a type": ("adapter", adapted(peft_type=None)),
    "adapter on layers that there are not": ("adapter", adapted(target_modules=["nothing"])),
    "adapter by an endless pattern": ("adapter", adapted(target_modules="(([a-z.]|[a-z0-9._])+)+!")),
    "deep adapter": ("adapter", writes("adapter_config.json", DEEP)),
    "adapter on an adapter": ("adapter", lambda f: edit(f, "adapter_config.json", base_model_name_or_path=str(f))),
}
