"""The settings of debaters, who argue before a judge, and of assistants, who criticise the answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Settings

TRANSCRIPT = "transcript"
"""The variable that a prompt must name so that the judge sees the arguments."""

DEBATE_PROMPT = """[Question]
{{ prompt }}

[Answer A]
{{ first }}

[Answer B]
{{ second }}

[What was argued for them, by sides that were told which answer to defend. Quotes were compared with the texts above.]
{{ transcript }}

Which answer is better? End with one line: VERDICT: A, VERDICT: B or VERDICT: TIE"""
ASSISTED_PROMPT = DEBATE_PROMPT.replace(
    "[What was argued for them, by sides that were told which answer to defend. Quotes were compared with the texts "
    "above.]",
    "[What an assistant says of them. Quotes were compared with the texts above.]",
)
ARGUE_PROMPT = """[Question]
{{ prompt }}

[Answer {{ side }}, which you defend]
{{ own }}

[The other answer]
{{ other }}
{% if transcript %}
[So far]
{{ transcript }}
{% endif %}
Say in at most 100 words why answer {{ side }} is better.
Quote the texts as <quote>their very words</quote>: quotes are checked."""
ASSIST_PROMPT = """[Question]
{{ prompt }}

[Answer A]
{{ own }}

[Answer B]
{{ other }}

Say in at most 100 words what is wrong with each answer.
Quote the texts as <quote>their very words</quote>: quotes are checked."""


class DebaterConfig(Settings, frozen=True):
    """A writer of arguments or criticism: a local model, a server, or a function. An assistant can also be a reward
    model, which states its scores, or nobody."""

    kind: Literal["model", "http", "function", "reward", "none"] = Field(
        description="model (a folder), http, or function; for an assistant also reward (a reward model's folder, which "
        "states its scores) or none (says nothing)."
    )
    swapped: bool = Field(
        False,
        description="For an assistant: read the two answers swapped, so that its criticism of one is reported for the "
        "other. An adversary, as a control.",
    )
    model: str | None = Field(
        None, description="A folder or hub id; for http the name that the server has for the model."
    )
    url: str | None = Field(None, description="Address of an OpenAI-compatible server, up to and including /v1.")
    key_env: str | None = Field(None, description="The environment variable that holds the server's key.")
    function: str | None = Field(
        None, description="file.py:function(prompt, own, other, side, transcript), which returns a text."
    )
    system: str = Field("", description="The system message; empty for none.")
    prompt: str = Field(
        "", description="Jinja template with prompt, own, other, side and transcript; default: a built-in one."
    )
    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    max_tokens: int = Field(256, ge=1, description="Longest argument, in tokens.")
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    timeout: float = Field(60.0, gt=0, description="Timeout in seconds for one request.")
    attempts: int = Field(5, ge=1, description="Attempts per request before the run stops.")
    concurrency: int = Field(4, ge=1, description="Concurrent requests.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        needed = {"model": ("model",), "http": ("url", "model"), "function": ("function",), "reward": ("model",)}
        for key in needed.get(self.kind, ()):
            if getattr(self, key) is None:
                raise ValueError(f"kind {self.kind} needs {key}")
        fields = type(self).model_fields
        unused = {
            "model": ("url", "key_env", "function", "timeout", "attempts", "concurrency"),
            "http": ("function",),
            "function": tuple(key for key in fields if key not in ("kind", "function", "swapped")),
            "reward": tuple(key for key in fields if key not in ("kind", "model", "swapped")),
            "none": tuple(key for key in fields if key != "kind"),
        }
        self._refuse(unused[self.kind], f"kind {self.kind} does not use it")
        return self
