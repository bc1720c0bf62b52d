"""Tiny tokenizers built on the fly, without downloads, each with a quirk of real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Human: Which is better, the red apple or the green one?\n\nAssistant: The red one, the question is easy.",
    "Once upon a time there was a little girl named Lily. She loved to play in the park.  The end.\n",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))  # 333 4444",
    "Afzal: Oʻzbek tilida savol — javob. Qaysi biri yaxshiroq? Ёлка, дом, вопрос.",
    "今天天气很好。你喜欢哪一个?我喜欢红色的。 café naïve déjà vu 🙂🙃 👩‍👩‍👧 ... !!! ??? ----",
    "the the the question questions quest unquestioned  hello hello  world world\t\ttabs",
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages and messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (m['content'] | trim) + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
MARKERS = {
    CHATML: ("<|im_start|>", "<|im_end|>"),
    LLAMA: (),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    PHI: ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    THINKING: ("<|im_start|>", "<|im_end|>"),
}


def byte_tokenizer(
    *,
    bos: str | None = "<bos>",
    eos: str = "<eos>",
    pad: str = "<pad>",
    add_bos: bool = False,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte (ids 0-255 are the byte values), then ``<pad>`` 256, ``<bos>`` 257, ``<eos>`` 258.

    Args:
        add_bos: the tokenizer itself puts BOS before a text.
        template: chat template; its special markers get ids from 259 on.
    """
    vocab = {character: byte for byte, character in _byte_characters().items()}
    return _byte_level(models.BPE(vocab, []), bos=bos, eos=eos, pad=pad, add_bos=add_bos, template=template)


def bpe_tokenizer(
    *,
    vocab_size: int = 600,
    bos: str | None = "<bos>",
    eos: str = "<eos>",
    pad: str = "<pad>",
    add_bos: bool = False,
    template: str | None = None,
    pre_split: bool = True,
    corpus: Sequence[str] = CORPUS,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2 style) trained on the fly.

    Args:
        pre_split: split into words first, as GPT-2 does; without it merges cross spaces, newlines and thus the
            boundary of prompt and response.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_split)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(corpus, trainer)
    return _byte_level(
        trained.model, bos=bos, eos=eos, pad=pad, add_bos=add_bos, template=template, use_regex=pre_split
    )


def merging_tokenizer(merges: Iterable[tuple[str, str]], **options: Any) -> PreTrainedTokenizerFast:
    """Bytes plus hand-made merges of printable ASCII (ids from 256 in order), without splitting into words."""
    vocab = {character: byte for byte, character in _byte_characters().items()}
    pairs = [tuple(_spelled(side) for side in pair) for pair in merges]
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
    settings: dict[str, Any] = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "add_bos": False, "template": None}
    return _byte_level(models.BPE(vocab, pairs), **{**settings, **options})


def llama_tokenizer(*, template: str | None = None, vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE as in Llama 2: U+2581 prepended to every text, byte fall-back, BOS added."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size + 259, special_tokens=specials, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    backend = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([_added(t) for t in ("<unk>", "<s>", "</s>")])
    return _wrap(backend, bos="<s>", eos="</s>", pad=None, unk="<unk>", add_bos=True, template=template)


def unigram_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece-like Unigram with a Metaspace at the first word, byte fall-back, no BOS; scores set by hand."""
    metaspace = {"replacement": "▁", "prepend_scheme": "first", "split": False}
    words = sorted({w for text in CORPUS for w in text.split()})
    pieces = ["▁", *(f"▁{w}" for w in words), *words, *sorted({c for text in CORPUS for c in text if not c.isspace()})]
    vocab = [("<unk>", 0.0), ("<eos>", 0.0)]
    vocab += [(piece, -8.0 - 0.01 * n) for n, piece in enumerate(dict.fromkeys(pieces))]
    vocab += [(f"<0x{b:02X}>", -30.0) for b in range(256)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(**metaspace)])
    backend.add_special_tokens([_added(t) for t in ("<unk>", "<eos>")])
    return _wrap(backend, bos=None, eos="<eos>", pad="<eos>", unk="<unk>", add_bos=False, template=template)


def word_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Whole words split at white space, everything else ``<unk>``: a tokenizer that cannot spell most texts."""
    chosen = words or sorted({w for text in CORPUS for w in text.split()})
    vocab = {w: i for i, w in enumerate(("<unk>", "<eos>", *chosen))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([_added(t) for t in ("<unk>", "<eos>")])
    return _wrap(backend, bos=None, eos="<eos>", pad=None, unk="<unk>", add_bos=False, template=None)


def _byte_level(
    model: Any,
    *,
    bos: str | None,
    eos: str,
    pad: str,
    add_bos: bool,
    template: str | None,
    use_regex: bool = False,
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    names = [t for t in (pad, bos, eos) if t is not None]
    markers = MARKERS.get(template or "", ())
    backend.add_special_tokens([_added(t) for t in dict.fromkeys([*names, *markers])])
    return _wrap(backend, bos=bos, eos=eos, pad=pad, unk=None, add_bos=add_bos, template=template)


def _wrap(
    backend: Tokenizer,
    *,
    bos: str | None,
    eos: str,
    pad: str | None,
    unk: str | None,
    add_bos: bool,
    template: str | None,
) -> PreTrainedTokenizerFast:
    if add_bos and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    markers = [m for m in MARKERS.get(template or "", ()) if m != eos]
    backend.add_special_tokens([_added(m) for m in markers])
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{k: v for k, v in names.items() if v is not None},
    )
    tokenizer.chat_template = template
    return tokenizer


def _added(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _spelled(text: str) -> str:
    characters = _byte_characters()
    return "".join(characters[b] for b in text.encode())


@cache
def _byte_characters() -> dict[int, str]:
    """The printable stand-in of each byte, as GPT-2 defined it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
