"""The settings of ``afzal annotate``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .base import Columns, Names, Settings, split_names


def _split_axes(value: Any) -> Any:
    """``helpful=Which one helps, A or B?,safe=Which one is safe?``: a comma ends a question only before ``NAME=``."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in re.split(r",(?=\s*[\w-]+=)", value)]
    if any(not sign or not name.strip() or not question.strip() for name, sign, question in parts):
        raise ValueError("write it as NAME=QUESTION, such as helpful=Which response helps more?")
    return {name.strip(): question.strip() for name, _, question in parts}


def _split_people(value: Any) -> Any:
    """``ann,bob`` as a list of names; ``3``, which YAML and flags read as a number, as text."""
    return [str(value)] if type(value) is int else split_names(value)


Annotators = Annotated[list[str] | None, BeforeValidator(_split_people)]
Axes = Annotated[dict[str, str], BeforeValidator(_split_axes)]


class AnnotateConfig(Settings, frozen=True):
    """A page on which people compare, rank or rate responses."""

    data: str = Field(description="The rows to ask about, in any format that training data may have.")
    out: str | None = Field(None, description="Folder for the votes; default: the file's name with .votes.")
    mode: Literal["pair", "rank", "rate"] | None = Field(
        None, description="Compare two responses, rank several, or rate each; default: by the number of responses."
    )
    axis: Axes = Field(
        {}, description="The question, as NAME=QUESTION; if there are several, each is asked of every item."
    )
    overlap: int = Field(1, ge=1, description="Annotators per question; never exceeded.")
    annotators: Annotators = Field(
        None, description="Names, one address each; or a number of addresses, for people who enter their own names."
    )
    repeat: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of questions repeated to the same person, sides swapped, 20 questions later.",
    )
    gold: str | None = Field(
        None, description="Rows with known answers, in any format; everybody is asked all of them."
    )
    practice: int = Field(0, ge=0, description="Gold questions that come first and are answered with feedback.")
    scale: int = Field(5, ge=2, le=9, description="The best rating, with mode rate; the worst is 1.")
    order: Literal["random", "file", "ask"] = Field(
        "random",
        description="A random order for each annotator, the file's order, or (ask, pairs only) the most informative "
        "first, given the votes so far.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of orders, sides and repeats.")
    markdown: bool = Field(False, description="Render texts as Markdown, without HTML, links or images.")
    guideline: str | None = Field(None, description="A text file with the guideline, shown before the first question.")
    title: str | None = Field(None, description="Title of the page; default: the file's name.")
    host: str = Field(
        "127.0.0.1", description="Address to serve at; the default, loopback, is reachable from this machine only."
    )
    port: int = Field(0, ge=0, le=65535, description="Port to serve at; 0 picks a free one.")
    names: Names = Field(None, description="Additional names to accept in the Host header, such as a proxy's.")
    headless: bool = Field(False, description="Print the addresses and open no browser.")
    until_done: bool = Field(False, description="Stop when nobody has questions left to answer.")
    export: str | None = Field(None, description="File for the rows with their votes, written when the page ends.")
    columns: Columns = Field({}, description="Field names by role, as prompt=q,chosen=good,rejected=bad.")
    data_format: str | None = Field(None, description="Name of the data's format; overrides detection.")
    skip_bad: bool = Field(False, description="Skip damaged rows instead of stopping at the first.")

    @field_validator("annotators")
    @classmethod
    def _named_once(cls, value: list[str] | None) -> list[str] | None:
        if value and not (len(value) == 1 and value[0].isdecimal()):
            if not all(value) or len({name.casefold() for name in value}) < len(value):
                raise ValueError("each annotator needs a unique name")
            if any(len(name) > 60 or not name.isprintable() for name in value):
                raise ValueError("a name has at most 60 characters, all of them visible")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gold is None:
            self._refuse(("practice",), "there are no gold rows to practise on")
        if len(self.people) < self.overlap:
            raise ValueError(
                f"overlap {self.overlap} needs at least as many annotators, but there are {len(self.people)}"
            )
        return self

    @property
    def people(self) -> tuple[str, ...]:
        """A name per address, empty if the person enters it; as many as the overlap unless annotators gives more."""
        if not self.annotators:
            return ("",) * self.overlap
        if len(self.annotators) == 1 and self.annotators[0].isdecimal():
            return ("",) * int(self.annotators[0])
        return tuple(self.annotators)
