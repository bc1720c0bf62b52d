"""The two starting models: small LLaVA and Qwen2-Audio models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.media.world import QUESTION, SIDE, World, captions

_WIDTH = 96
_TOWER = 64
_LAYERS = 3
_POSITIONS = 256
_TEMPLATE = (
    "{{% for m in messages %}}{{{{ m['role'] + ': ' }}}}{{% if m['content'] is string %}}{{{{ m['content'] }}}}"
    "{{% else %}}{{% for p in m['content'] %}}{{% if p['type'] == 'text' %}}{{{{ p['text'] }}}}"
    "{{% elif p['type'] == '{kind}' %}}{marker}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{{% if m['role'] == 'assistant' %}}{{{{ eos_token }}}}{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}assistant: {{% endif %}}"
)


def write(to: Path, world: World, seed: int) -> None:
    """Save a model with its processor, in the format of `transformers`."""
    import torch

    torch.manual_seed(seed)
    model, processor = _llava() if world == "shapes" else _qwen2_audio()
    model.save_pretrained(to)
    processor.save_pretrained(to)


def _tokenizer(world: World, kind: str, marker: str, *specials: str) -> Any:
    """A tokenizer with the captions' words as single tokens, and bytes for all else."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    corpus = [f"user: {QUESTION[world]}\nassistant: {text}\n" for text in captions(world)]
    made.train_from_iterator(corpus, trainer)
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<bos>", "<eos>")])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **names)
    wrapped.chat_template = _TEMPLATE.format(kind=kind, marker=marker)
    wrapped.add_special_tokens({"additional_special_tokens": list(specials)})
    return wrapped


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": _POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _llava() -> tuple[Any, Any]:
    import transformers as T

    tokenizer = _tokenizer("shapes", "image", "<image>", "<image>")
    images = T.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = T.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    vision = T.CLIPVisionConfig(
        hidden_size=_TOWER,
        intermediate_size=2 * _TOWER,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        projection_dim=_TOWER,
    )
    config = T.LlavaConfig(
        vision_config=vision,
        text_config=T.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return T.LlavaForConditionalGeneration(config), processor


def _qwen2_audio() -> tuple[Any, Any]:
    import transformers as T

    marker = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    tokenizer = _tokenizer("tones", "audio", marker, "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    sounds = T.WhisperFeatureExtractor(feature_size=24, chunk_length=1)
    processor = T.Qwen2AudioProcessor(sounds, tokenizer, chat_template=tokenizer.chat_template)
    audio = {
        "num_mel_bins": 24,
        "d_model": _TOWER,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * _TOWER,
        "max_source_positions": 50,
    }
    config = T.Qwen2AudioConfig(
        audio_config=audio,
        text_config=_text(tokenizer) | {"model_type": "qwen2"},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return T.Qwen2AudioForConditionalGeneration(config), processor
