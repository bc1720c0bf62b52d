"""Comparison settings: what is accepted, and clear refusals of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afzal import config
from afzal.errors import AfzalError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "compare.md"
DPO = {"name": "dpo", "train": "dpo", "beta": 0.1}
REWARD = {"name": "rm", "train": "reward"}


def make(*methods: dict[str, Any], **settings: Any) -> config.CompareConfig:
    base = {"model": "m", "data": "d", "prompts": "p", "rewards": {"gold": "r.py:gold"}, "methods": list(methods)}
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in {**base, **settings}.items()])


def test_entries_keep_their_order_their_settings_and_what_they_need():
    best = {"name": "bon", "best_of": [4, 2], "reward": "${rm}", "label": "best of n"}
    entries = config.entries(make(DPO, REWARD, best, {"name": "old", "run": "runs/old-{seed}"}))
    assert [(e.name, e.kind, e.value) for e in entries] == [
        ("dpo", "train", "dpo"),
        ("rm", "train", "reward"),
        ("bon", "best_of", (2, 4)),
        ("old", "run", "runs/old-{seed}"),
    ]
    assert [e.label for e in entries] == ["dpo", "rm", "best of n", "old"]
    assert [e.is_policy for e in entries] == [True, False, True, True]
    assert entries[0].settings == {"beta": 0.1}
    assert entries[2].needs == ("rm",)


def test_entries_are_ordered_by_what_they_need():
    later = {"name": "again", "train": "dpo", "model": "${dpo}"}
    assert [e.name for e in config.ordered(config.entries(make(later, DPO)))] == ["dpo", "again"]


def test_names_are_substituted_everywhere():
    value = {"a": ["${x}/best", 3], "b": {"c": "${x}+${y}"}}
    assert config.substituted(value, {"x": "1", "y": "2"}) == {"a": ["1/best", 3], "b": {"c": "1+2"}}


@pytest.mark.parametrize(("text", "seeds"), [("0,1,2", [0, 1, 2]), ("[3, 4]", [3, 4]), ("7", [7])])
def test_seeds_can_be_typed(text, seeds):
    typed = config.read_override(f"seeds={text}")
    base = [config.Setting(k, v) for k, v in make(DPO).model_dump().items()]
    assert config.build(config.CompareConfig, [*base, typed]).seeds == seeds


def test_dumped_settings_read_back_to_the_same(tmp_path):
    made = make(DPO, matched_kl=[2, 0.5], kl_budget=3)
    path = tmp_path / "compare.yaml"
    path.write_text(config.dump(made))
    assert config.build(config.CompareConfig, config.read_file(path)) == made
    assert made.matched_kl == [0.5, 2.0]


def test_a_typo_on_the_command_line_is_distinguished_from_the_file(tmp_path):
    file = tmp_path / "ladder.yaml"
    file.write_text("levels: 2\ndata: d.jsonl\n")
    with pytest.raises(AfzalError, match=r"command line: unknown setting 'levls' \(did you mean levels\?\)"):
        config.of_file(config.LadderConfig, file, ["levls=3"])
    file.write_text("levels: 2\nlevls: 3\n")  # the file has its levels
    with pytest.raises(AfzalError, match="unknown setting 'levls'") as error:
        config.of_file(config.LadderConfig, file)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("methods", "settings", "said"),
    [
        ([{"train": "dpo"}], {}, "entry 1 of methods needs a name"),
        ([{"name": "a b", "train": "dpo"}], {}, "needs a name made of letters"),
        ([{"name": "start", "train": "dpo"}], {}, "that name means the start model"),
        ([{"name": "x"}], {}, "needs exactly one of train, iterate, run, best_of, but has none"),
        ([{"name": "x", "train": "dpo", "run": "r"}], {}, "but has train, run"),
        ([{"name": "x", "train": "dop"}], {}, "did you mean dpo?"),
        ([DPO, DPO], {}, "two entries have the same name"),
        ([{**DPO, "seed": 3}], {}, "'seed' is set by the comparison itself"),
        ([{"name": "x", "run": "r", "beta": 1}], {}, "'beta' has no effect on run"),
        ([{"name": "x", "best_of": 1}], {}, "best_of must be a whole number above 1"),
        ([{"name": "x", "best_of": [2, True]}], {}, "best_of must be a whole number above 1"),
        (
            [{**DPO, "model": "${rwd}"}, {**REWARD, "name": "rwrd"}],
            {},
            "needs 'rwd', but there is no such entry (did you mean rwrd?)",
        ),
        ([{**DPO, "model": "${b}"}, {**DPO, "name": "b", "model": "${dpo}"}], {}, "wait for each other: dpo, b"),
        ([{**DPO, "model": "${b}"}, {"name": "b", "best_of": 2}], {}, "writes no folder to start from"),
        ([REWARD], {}, "nothing to compare: all entries are reward models"),
        ([DPO], {"rewards": {"gold": "${rm}"}}, "there is no entry 'rm'"),
        ([DPO], {"rewards": {"gold": "${dpo}"}}, "'dpo' is not a reward model"),
        ([DPO], {"rewards": []}, "write it as {name: file.py:function"),
        ([DPO], {"common": {"out": "x"}}, "'out' is set by the comparison itself"),
        ([{"name": "x", "run": "r"}], {"common": {"lr": 1}}, "common has no effect"),
        ([{"name": "x", "best_of": 2}], {"snapshots": 3}, "snapshots has no effect"),
        ([DPO], {"seeds": []}, "different seeds"),
        ([DPO], {"seeds": [1, 1]}, "different seeds"),
        ([DPO], {"seeds": "a,b"}, r"write it as \[0, 1, 2\]"),
        ([DPO], {"matched_kl": [0.0]}, "greater than 0"),
        ([DPO], {"temperature": 0}, "greater than 0"),
        ([DPO], {"sample": 3}, "did you mean samples?"),
    ],
)
def test_impossible_settings_are_refused(methods, settings, said):
    import re

    with pytest.raises(AfzalError, match=said if said.startswith("write it as \\") else re.escape(said)):
        make(*methods, **settings)


def test_every_setting_is_described_in_the_documentation():
    text = DOCS.read_text(encoding="utf-8")
    assert [key for key in config.CompareConfig.model_fields if f"| `{key}` |" not in text] == []
