"""A Modelfile's TEMPLATE, run as Ollama would, gives exactly the prompts of the model's own chat template."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers_tokenizers import CHATML, byte_tokenizer

from afzal.errors import AfzalError
from afzal.records import Message
from afzal.tokens import Speaker
from afzal.tokens.ollama import modelfile

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "templates"
EXACT = ("command_r", "falcon", "falcon3", "gemma2", "glm4", "glm4.5", "kimi_k2", "minimax", "mistral_v1", "nemotron4")
EXACT += ("nemotron_nano", "olmo2", "phi3", "phi4", "qwen2.5", "qwen3", "zephyr")
REFUSED = {
    "llama2": "inside the first user turn",
    "gemma3": "inside the first user turn",
    "mistral_v3": "inside the first user turn",
    "llama3": "writes the current date",
    "smollm3": "writes the current date",
}


def speaker(name: str, **options) -> Speaker:
    return Speaker(byte_tokenizer(template=(TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), **options))


def go(text: str, messages: list[Message]) -> str:
    """An interpreter for the used part of Go's templates, with Ollama's rule for a Modelfile's system message."""
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    default = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    if default and messages[0].role != "system":
        messages = [Message("system", default[1]), *messages]
    tokens = re.split(r"(\{\{.*?\}\})", template)

    def block(at: int, message: Message | None) -> tuple[str, int]:
        out = ""
        while at < len(tokens):
            token = tokens[at]
            if token in ("{{ end }}", "{{ else }}"):
                return out, at
            if token == "{{ range .Messages }}":
                for one in messages:
                    part, stop = block(at + 1, one)
                    out += part
                at = stop
            elif token.startswith("{{ if eq .Role "):
                chosen = message is not None and message.role == token.split('"')[1]
                part, stop = block(at + 1, message)
                other = ""
                if tokens[stop] == "{{ else }}":
                    other, stop = block(stop + 1, message)
                out += part if chosen else other
                at = stop
            else:
                out += str(message.content) if token == "{{ .Content }}" else token
            at += 1
        return out, at

    return block(0, None)[0]


def talks(system: bool) -> list[list[Message]]:
    roles = ["user", "assistant"] * 3
    long = [Message(role, f"part {i}\nof it") for i, role in enumerate(roles[:5])]
    chats = [long[:1], long[:3], long]
    return chats + [[Message("system", "Be kind."), *talk] for talk in chats if system]


@pytest.mark.parametrize("name", EXACT)
def test_the_prompts_are_the_same(name):
    own = speaker(name)
    text = modelfile(own, "./model.gguf")
    for messages in talks("no system message" not in text):
        assert go(text, messages) == own.renderer.prompt(messages, {})
    assert text.splitlines()[text.startswith("#")] == "FROM ./model.gguf"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused(name):
    with pytest.raises(AfzalError, match=re.escape(REFUSED[name])):
        modelfile(speaker(name), "./model.gguf")


def test_the_runtimes_own_bos_is_not_written_twice():
    own = Speaker(byte_tokenizer(template="{{ bos_token }}" + CHATML, add_bos=True))
    text = modelfile(own, "./model.gguf")
    assert "<bos>" not in text
    assert "<bos>" + go(text, talks(False)[1]) == own.renderer.prompt(talks(False)[1], {})
    without = Speaker(byte_tokenizer(template="{{ bos_token }}" + CHATML))
    assert 'TEMPLATE """<bos>' in modelfile(without, "./model.gguf")


def test_answers_stop_where_the_model_was_trained_to_end():
    text = modelfile(Speaker(byte_tokenizer(template=CHATML)), "./model.gguf")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert 'PARAMETER stop "<eos>"' in text


def test_braces_of_go_are_refused():
    template = "{% for m in messages %}{{ '{' + '{' + m['role'] + ': ' + m['content'] + ';' }}{% endfor %}{{ 'so ' }}"
    with pytest.raises(AfzalError, match="cannot be reproduced exactly in Ollama"):
        modelfile(Speaker(byte_tokenizer(template=template)), "./model.gguf")
