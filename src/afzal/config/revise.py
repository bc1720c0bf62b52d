"""The settings of ``afzal revise``, and the file of principles that it reads."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .base import Settings
from .error_messages import suggestion, yaml_text

CRITIQUE_PROMPT = """[Question]
{{ prompt }}

[Answer]
{{ answer }}

{{ request }}"""
REVISION_PROMPT = """[Question]
{{ prompt }}

[Answer]
{{ answer }}

[Critique]
{{ critique }}

{{ request }}
Write the revised answer and nothing else."""
LABEL_PROMPT = """[Question]
{{ prompt }}

[Answer A]
{{ first }}

[Answer B]
{{ second }}

[Principle]
{{ principle }}

Which answer follows the principle better? End with one line: VERDICT: A, VERDICT: B or VERDICT: TIE"""
REFUSALS = (
    "i cannot",
    "i can't",
    "i can not",
    "i won't",
    "i will not",
    "i'm sorry",
    "i am sorry",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i apologize",
    "i must decline",
    "as an ai",
)


class PrincipleConfig(BaseModel, frozen=True, extra="forbid"):
    """One principle, its requests, and word lists that check it without a model."""

    id: str = Field(min_length=1, description="The principle's name in rows and figures.")
    text: str = Field(min_length=1, description="What an answer should be like.")
    critique: str = Field("", description="The request for a critique. Default: one that names the principle.")
    revision: str = Field("", description="The request for a revision. Default: one that names the principle.")
    avoid: tuple[str, ...] = Field((), description="Words or phrases that break the principle.")
    need: tuple[str, ...] = Field((), description="Words or phrases, one of which an answer must contain.")

    @field_validator("avoid", "need")
    @classmethod
    def _words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.search(r"\w", word) for word in value):
            raise ValueError("holds an entry without a letter or a digit")
        return value

    @property
    def checked(self) -> bool:
        """Whether it has word lists."""
        return bool(self.avoid or self.need)


class PrinciplesConfig(Settings, frozen=True):
    """A file of principles, as named by ``--principles``."""

    principles: list[PrincipleConfig] = Field(description="The principles, each with id and text.")
    system: str = Field("", description="The system message of critiques and revisions; empty for none.")
    critique_prompt: str = Field(
        CRITIQUE_PROMPT,
        description="Jinja template with prompt, answer, principle and request. Empty: no model criticises; the "
        "critique comes from the word lists.",
    )
    revision_prompt: str = Field(
        REVISION_PROMPT, description="Jinja template with prompt, answer, principle, critique and request."
    )
    label_prompt: str = Field(LABEL_PROMPT, description="Jinja template with prompt, first, second and principle.")
    refusals: list[str] = Field(
        list(REFUSALS), description="Phrases that mark an answer as a refusal if it begins with one."
    )

    @field_validator("principles", mode="before")
    @classmethod
    def _each(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value:
            raise ValueError("wanted: a list of principles, each with id and text")
        for number, entry in enumerate(value, 1):
            try:
                PrincipleConfig.model_validate(entry)
            except ValidationError as error:
                details = error.errors(include_url=False)
                slips = [d for d in details if d["type"] == "extra_forbidden"]  # a misspelt key is also a missing one
                raise ValueError(f"principle {number}: {_principle_error((slips or details)[0])}") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        doubled = [name for name, n in Counter(p.id for p in self.principles).items() if n > 1]
        if doubled:
            raise ValueError(f"two principles have the id {doubled[0]!r}")
        unchecked = [p.id for p in self.principles if not p.checked]
        if not self.critique_prompt and unchecked:
            raise ValueError(f"critique_prompt is empty, and principle {unchecked[0]!r} has no word lists")
        return self


def _principle_error(detail: Any) -> str:
    """Say in words what is wrong with one principle."""
    if not detail["loc"]:
        return "wanted: nested settings, such as {id: peace, text: The story has no violence.}"
    key, value = str(detail["loc"][0]), yaml_text(detail["input"])
    if detail["type"] == "extra_forbidden":
        return f"unknown setting {key!r}{suggestion(key, PrincipleConfig.model_fields)}"
    if detail["type"] == "missing":
        return f"the setting {key!r} is missing"
    if detail["type"] == "tuple_type":
        return f"{key} cannot be {value}; wanted: a list of words, such as [kill*, sword]"
    if detail["type"] == "string_type":  # YAML reads 1 and no as a number and a boolean
        return f"{key} cannot {'be' if len(detail['loc']) == 1 else 'hold'} {value}; wanted: text, in quotes if need be"
    if detail["type"] == "string_too_short":
        return f"{key} is empty"
    return f"{key}: {detail['msg'].removeprefix('Value error, ')}"


class ReviseConfig(Settings, frozen=True):
    """Preference pairs from principles: by critiques and revisions, or by a judge's labels."""

    mode: Literal["revision", "label"] = Field(
        "revision",
        description="revision: answer, critique and revision; the pair prefers the revision. label: two answers; a "
        "judge that sees the principle says how likely the first is the better one.",
    )
    model: str = Field(
        description="The model that answers, criticises and revises: a folder or hub id; with url, its name at the "
        "server."
    )
    url: str | None = Field(None, description="Address of an OpenAI-compatible server, up to and including /v1.")
    key_env: str | None = Field(None, description="The environment variable that holds the server's key.")
    prompts: str = Field(
        description="A file of prompts in any format that training data may have. A field twin holds a harmless prompt "
        "that looks similar: its answers are measured but enter no pair. Mode label skips twins; if every row has two "
        "responses, it labels those."
    )
    principles: str = Field(description="YAML file of the principles.")
    out: str = Field(description="Folder for pairs, stages and report; the same command resumes there.")
    rounds: int = Field(1, ge=1, description="Revisions of each answer, each under a different principle if possible.")
    candidates: int = Field(
        1, ge=1, description="Revisions sampled at each step; the one that breaks the fewest word lists is kept."
    )
    match: str | None = Field(
        None,
        description="A score that revisions must keep: a reward model's folder, module:function, file.py:function, or "
        "the YAML file of a judge that scores each answer alone. Pairs then differ in the principle, not in the score.",
    )
    match_within: float | None = Field(
        None, ge=0, description="How far a revision's score may be from the first answer's, in units of the score."
    )
    judge: str | None = Field(
        None, description="For mode label: a judge.yaml of kind model or http, or a model folder. Default: the model."
    )
    clamp: float = Field(
        0.05, ge=0, lt=0.5, description="For mode label: clamp probabilities to between this and 1 minus this."
    )
    temperature: float = Field(1.0, ge=0, description="Temperature of all generated texts; 0 is greedy.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, critique or revision, in tokens.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice of principles and of the texts.")
    batch_size: int = Field(64, ge=1, description="Texts that a local model generates at a time.")
    timeout: float = Field(60.0, gt=0, description="Timeout in seconds for one request to a server.")
    attempts: int = Field(5, ge=1, description="Attempts per request before the run stops.")
    concurrency: int = Field(4, ge=1, description="Concurrent requests to a server.")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.url is None:
            self._refuse(("key_env", "timeout", "attempts", "concurrency"), "there is no url")
        else:
            self._refuse(("batch_size",), "a server writes the texts")
        if self.mode == "label":
            self._refuse(("rounds", "candidates", "match", "match_within"), "nothing is revised in mode label")
            if self.temperature == 0:
                raise ValueError("mode label compares two answers, and at temperature 0 they are identical")
        else:
            self._refuse(("judge", "clamp"), "nobody labels in mode revision")
        if self.match is None:
            self._refuse(("match_within",), "there is no score to match")
        elif self.match_within is None:
            raise ValueError("match needs match_within, the largest allowed distance in units of the score")
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError("candidates are all identical at temperature 0")
        return self
