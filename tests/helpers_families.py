"""Chat templates of the current model families: their structure, rewritten (``fixtures/templates``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers_tokenizers import MARKERS

TEMPLATES = Path(__file__).parent / "fixtures" / "templates"


@dataclass(frozen=True)
class Family:
    """The tokens that a template writes, and its peculiarities.

    ``end`` follows an answer; ``thinks``: the template writes ``reasoning_content``; ``opens_thoughts``: its generation
    prompt opens the thoughts; ``options`` are sets of switches to try.
    """

    markers: tuple[str, ...]
    end: str
    bos: str | None = None
    eos: str = "<eos>"
    has_system: bool = True
    has_tools: bool = False
    thinks: bool = False
    opens_thoughts: bool = False
    options: tuple[dict[str, Any], ...] = field(default_factory=lambda: ({},))


def template_of(name: str) -> str:
    """The template of a family."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA3_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_EITHER = ({}, {"enable_thinking": False}, {"enable_thinking": True})

FAMILIES = {
    "qwen2.5": Family(_CHATML, "<|im_end|>", has_tools=True),
    "qwen3": Family(_CHATML, "<|im_end|>", has_tools=True, thinks=True, options=_EITHER),
    "qwen3_thinking": Family(_CHATML, "<|im_end|>", has_tools=True, thinks=True, opens_thoughts=True),
    "llama2": Family((), " </s>", bos="<s>", eos="</s>"),
    "llama3": Family(
        _LLAMA3_MARKS, "<|eot_id|>", bos="<bos>", has_tools=True, options=({}, {"date_string": "26 Jul 2024"})
    ),
    "mistral_v1": Family((), "</s>", bos="<s>", eos="</s>", has_system=False),
    "mistral_v3": Family(
        ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        "</s>",
        bos="<s>",
        eos="</s>",
        has_tools=True,
    ),
    "gemma2": Family(("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", bos="<bos>", has_system=False),
    "gemma3": Family(("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", bos="<bos>"),
    "phi3": Family((*_ROLES, "<|end|>"), "<|end|>"),
    "phi4": Family((*_CHATML, "<|im_sep|>"), "<|im_end|>"),
    "deepseek_v3": Family(_DEEPSEEK, "<｜end▁of▁sentence｜>", bos="<bos>", eos="<｜end▁of▁sentence｜>"),
    "deepseek_r1": Family(
        _DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        bos="<bos>",
        eos="<｜end▁of▁sentence｜>",
        opens_thoughts=True,
    ),
    "glm4": Family(("[gMASK]", "<sop>", *_ROLES), "<|user|>"),
    "glm4.5": Family(("[gMASK]", "<sop>", *_ROLES), "<|user|>", has_tools=True, thinks=True, options=_EITHER),
    "gpt_oss": Family(
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        "<|return|>",
        eos="<|return|>",
        has_tools=True,
        thinks=True,
    ),
    "command_r": Family(
        (
            *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>"),
            *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        ),
        "<|END_OF_TURN_TOKEN|>",
        bos="<bos>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "olmo2": Family((), "<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>"),
    "smollm3": Family(_CHATML, "<|im_end|>", has_tools=True, options=_EITHER),
    "granite3": Family(
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        eos="<|end_of_text|>",
        has_tools=True,
    ),
    "falcon3": Family(_ROLES, "<|endoftext|>", eos="<|endoftext|>"),
    "falcon": Family((), "<eos>"),
    "zephyr": Family(_ROLES, "</s>", eos="</s>"),
    "kimi_k2": Family(
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
        "<|im_end|>",
        has_tools=True,
    ),
    "minimax": Family(("]~!b[", "]~b]", "[e~["), "[e~[", has_tools=True, thinks=True, opens_thoughts=True),
    "nemotron4": Family(("<extra_id_0>", "<extra_id_1>"), "\n<extra_id_1>", has_tools=True),
    "nemotron_nano": Family(_LLAMA3_MARKS, "<|eot_id|>", bos="<bos>"),
}

MARKERS.update({template_of(name): family.markers for name, family in FAMILIES.items()})
