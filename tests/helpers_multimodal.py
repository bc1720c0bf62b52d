"""Tiny models of the multimodal families with their processors, built from configurations, and media for them."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from helpers_tokenizers import byte_tokenizer

from afzal.folders.load import load_processor, without_videos

WIDTH, LAYERS, HEADS = 32, 2, 4
POSITIONS = 2048

IMAGE_CHAT = (
    "{{% for m in messages %}}{{{{ m['role'] + ': ' }}}}{{% if m['content'] is string %}}{{{{ m['content'] }}}}"
    "{{% else %}}{{% for p in m['content'] %}}{{% if p['type'] == 'text' %}}{{{{ p['text'] }}}}"
    "{{% elif p['type'] == '{kind}' %}}{marker}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{{% if m['role'] == 'assistant' %}}{{{{ eos_token }}}}{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}assistant: {{% endif %}}"
)


def chat_template(kind: str, marker: str) -> str:
    """A template that writes typed parts in order, and ``marker`` for every medium of ``kind``."""
    return IMAGE_CHAT.format(kind=kind, marker=marker)


def tokenizer(kind: str, marker: str, *specials: str) -> Any:
    """Bytes and the special tokens of a family."""
    made = byte_tokenizer(template=chat_template(kind, marker))
    made.add_special_tokens({"additional_special_tokens": list(specials)})
    return made


def text_settings(n_tokens: int) -> dict[str, Any]:
    """A small text model's shape."""
    return {
        "vocab_size": n_tokens,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
    }


def llava() -> tuple[Any, Any]:
    import transformers as T

    tok = tokenizer("image", "<image>", "<image>")
    images = T.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = T.LlavaProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=tok.chat_template,
    )
    vision = T.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    config = T.LlavaConfig(
        vision_config=vision,
        text_config=T.LlamaConfig(**text_settings(len(tok))),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return T.LlavaForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    import transformers as T

    tok = tokenizer("image", "<image>", "<image>", "<fake_token_around_image>", "<end_of_utterance>")
    images = T.Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    processor = T.Idefics3Processor(images, tok, image_seq_len=4, chat_template=tok.chat_template)
    vision = T.models.idefics3.Idefics3VisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = T.Idefics3Config(
        vision_config=vision,
        text_config=T.LlamaConfig(**text_settings(len(tok))),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=256,
    )
    return T.Idefics3ForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    import transformers as T

    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    tok = tokenizer("image", marker, "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    images = T.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    processor = without_videos(T.Qwen2VLProcessor)(images, tok, chat_template=tok.chat_template)
    ids = {
        "image_token_id": tok.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tok.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tok.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tok.convert_tokens_to_ids("<|vision_end|>"),
    }
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = text_settings(len(tok)) | {"rope_parameters": rope}
    config = T.Qwen2VLConfig(vision_config=vision, text_config=text, **ids)
    return T.Qwen2VLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    import transformers as T

    tok = tokenizer("image", "<start_of_image>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tok._set_model_specific_special_tokens(names)
    images = T.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = T.Gemma3Processor(images, tok, image_seq_length=4, chat_template=tok.chat_template)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = text_settings(len(tok)) | {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}
    config = T.Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=4,
        image_token_index=tok.image_token_id,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
    )
    return T.Gemma3ForConditionalGeneration(config), processor


def qwen2_audio() -> tuple[Any, Any]:
    import transformers as T

    marker = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    tok = tokenizer("audio", marker, "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    sounds = T.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    processor = T.Qwen2AudioProcessor(sounds, tok, chat_template=tok.chat_template)
    audio = {
        "num_mel_bins": 16,
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "max_source_positions": 50,
    }
    text = text_settings(len(tok)) | {"model_type": "qwen2"}
    config = T.Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=tok.convert_tokens_to_ids("<|AUDIO|>")
    )
    return T.Qwen2AudioForConditionalGeneration(config), processor


_TAGS = (
    "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] "
    "[IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
VOXTRAL_SPECIALS = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    *_TAGS.split(),
    *(f"<SPECIAL_{k}>" for k in range(20, 24)),
]
VOXTRAL_SPECIALS += ["[AUDIO]", "[BEGIN_AUDIO]", *(f"<SPECIAL_{k}>" for k in range(26, 34)), "[TRANSCRIBE]"]


@cache
def voxtral_files() -> TemporaryDirectory[str]:
    """A folder with a Voxtral-like vocabulary (35 special tokens, the 256 bytes, five word pieces) and audio settings
    (chunks of 2 s, 25 tokens each)."""
    import transformers as T

    folder = TemporaryDirectory(prefix="voxtral-")
    pieces = [bytes([b]) for b in range(256)] + [b" t", b"he", b" the", b"in", b"an"]
    names = [{"rank": k, "token_str": s, "is_control": True} for k, s in enumerate(VOXTRAL_SPECIALS)]
    spectrogram = {"num_mel_bins": 16, "hop_length": 160, "window_size": 400}
    sound = {"sampling_rate": 16000, "frame_rate": 12.5, "audio_encoding_config": spectrogram, "chunk_length_s": 2.0}
    about = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(names),
            "default_num_special_tokens": len(names),
            "version": "v7",
        },
        "vocab": [{"rank": k, "token_bytes": b64encode(p).decode(), "token_str": None} for k, p in enumerate(pieces)],
        "special_tokens": names,
        "audio": sound,
    }
    (Path(folder.name) / "tekken.json").write_text(json.dumps(about))
    sounds = T.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    sounds.processor_class = "VoxtralProcessor"
    sounds.save_pretrained(folder.name)
    return folder


def voxtral() -> tuple[Any, Any]:
    import transformers as T

    processor = load_processor(voxtral_files().name)
    audio = {
        "num_mel_bins": 16,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_source_positions": 100,
    }
    names = {"pad_token_id": 11, "bos_token_id": 1, "eos_token_id": 2}
    text = text_settings(len(processor.tokenizer)) | names | {"head_dim": 8, "rope_theta": 10000.0}
    config = T.VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=24)
    return T.VoxtralForConditionalGeneration(config), processor


FAMILIES: dict[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "llava": ("image", llava),
    "idefics3": ("image", idefics3),
    "qwen2_vl": ("image", qwen2_vl),
    "gemma3": ("image", gemma3),
    "qwen2_audio": ("audio", qwen2_audio),
    "voxtral": ("audio", voxtral),
}
"""Per family: its kind of media, and the function that makes a model and its processor."""


def made(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A family's model with seeded weights, in evaluation mode, and its processor."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family][1]()
    for name, weights in model.named_parameters():
        if "mm_input_projection" in name:  # it starts at 0, so images would have no effect
            torch.nn.init.normal_(weights, std=0.1)
    return model.eval(), processor


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG of random colours."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tone(hertz: float, seconds: float = 0.3, rate: int = 16000) -> bytes:
    """A WAV of a sine."""
    import soundfile

    at = np.arange(int(seconds * rate)) / rate
    out = io.BytesIO()
    soundfile.write(out, 0.5 * np.sin(2 * np.pi * hertz * at), rate, format="WAV")
    return out.getvalue()
