"""The table of formats. To add one, write ``parse(row) -> Item`` and add an entry to one of the table's parts.

An entry applies to a row that has all fields of ``requires`` (``"a|b"`` means either) and passes ``accepts``. If
several apply, the one whose required fields include the other's wins; among equal ones, the first listed.
"""

from __future__ import annotations

from afzal.data.format import Format, is_list
from afzal.data.formats_datasets import DATASETS
from afzal.data.formats_layouts import LAYOUTS
from afzal.data.formats_single import SINGLE

_IDS = "prompt_ids|prompt_input_ids|chosen_ids|chosen_input_ids|rejected_ids|rejected_input_ids|input_ids|token_ids"

REFUSED: tuple[Format, ...] = (
    Format(
        "tokenised",
        (_IDS,),
        None,
        {},
        family="refused",
        accepts=is_list(_IDS),
        refusal="The rows hold token ids ({fields}). Ids belong to one tokenizer and their prompt boundary cannot be "
        "checked: give the texts in prompt, chosen and rejected instead.",
    ),
    Format(
        "stepwise",
        ("prompt", "completions", "labels"),
        None,
        {},
        family="refused",
        accepts=lambda row: is_list("completions")(row) and is_list("labels")(row),
        refusal="The rows hold one label per step of an answer ({fields}): process supervision, which Afzal does not "
        "train yet. One label per complete answer works: prompt, completion, label.",
    ),
)

FORMATS: tuple[Format, ...] = (*REFUSED, *LAYOUTS, *DATASETS, *SINGLE)


def named(name: str) -> list[Format]:
    """The entries of this name."""
    return [entry for entry in FORMATS if entry.name == name]
