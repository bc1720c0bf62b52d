"""distilabel's ratings of generations, alone or next to the pair that was made from them."""

import json

import pytest

from afzal.data import read
from afzal.errors import AfzalError
from afzal.records import Comparison

USER, BLUE, GREEN = (
    {"role": r, "content": c} for r, c in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Green."))
)
RATED = {"instruction": "Sky?", "generations": ["Green.", "Blue."], "ratings": [1, 5]}
PAIR = RATED | {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}


def read_rows(folder, rows, **how):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path, **how)


def strengths(dataset):
    return [vote.strength for item in dataset.items for vote in item.votes if isinstance(vote, Comparison)]


def test_a_pair_against_its_ratings_is_damage(tmp_path):
    assert read_rows(tmp_path, [PAIR]).format == "ratings"
    with pytest.raises(AfzalError, match="'chosen' is rated 1, below rejected, 5"):
        read_rows(tmp_path, [PAIR, PAIR | {"ratings": [5, 1]}])
    assert read_rows(tmp_path, [PAIR | {"generations": [" Green.", "Blue. "], "ratings": [5, 5]}]).kept == 1  # a tie
    with pytest.raises(AfzalError, match="'ratings' has 1 values for 2 responses"):
        read_rows(tmp_path, [PAIR, PAIR | {"ratings": [1]}])


def test_rows_whose_ratings_failed_are_counted(tmp_path):
    dataset = read_rows(tmp_path, [RATED, RATED | {"ratings": None}, RATED | {"ratings": ["N/A", "3"]}])
    assert dataset.drop_counts == {"no_ratings": 1}
    assert [len(item.votes) for item in dataset.items] == [2, 1]


def test_the_models_of_generations_are_their_sources(tmp_path):
    for field in ("generation_models", "model_names", "generation_model"):
        (item,) = read_rows(tmp_path, [RATED | {field: ["m1", "m2"]}]).items
        assert [response.source for response in item.responses] == ["m1", "m2"]
    (item,) = read_rows(tmp_path, [RATED | {"generation_models": ["m1"]}]).items
    assert [response.source for response in item.responses] == [None, None]


@pytest.mark.parametrize("names", [("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected")])
def test_ratings_of_a_pair_are_its_margin(tmp_path, names):
    row = {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]} | dict(
        zip(names, (5.0, 2.0), strict=True)
    )
    dataset = read_rows(tmp_path, [row | {"generation_prompt": ["<s>[INST] Sky? [/INST]"]}])
    assert strengths(dataset) == [3.0]
    assert dataset.unread == ["generation_prompt"]


def test_a_field_that_cannot_be_named_is_ignored_by_its_format(tmp_path):
    row = {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    with pytest.raises(AfzalError, match="'conversation' may change") as refused:
        read_rows(tmp_path, [row | {"conversation": [{"input": "Sky?", "output": "A third answer."}]}])
    assert refused.value.remedy.startswith("ignore it, if it means nothing, with --format conversational; or say")
