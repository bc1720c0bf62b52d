"""Measured answers of a comparison on a tiny model: what is drawn, what rewards are asked, what is kept and reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import model_folder, pair_file
from helpers_runs import settings as run_settings

from afzal import config, recipes
from afzal.compare import measure
from afzal.compare.measure import MeasurementSetup, Snapshot
from afzal.errors import AfzalError
from afzal.generate import prompt_ids, sample
from afzal.model.attention import stock_attention
from afzal.model.load import load_model
from afzal.records import Turns
from afzal.rewards.source import Columns
from afzal.train import checkpoint

SAMPLES, LONGEST = 2, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A start model of which about a third of all tokens end an answer, and prompts with a column of their own."""
    root = tmp_path_factory.mktemp("measure")
    model_folder(root / "model")
    ends = {"eos_token_id": [258, *range(0, 256, 3)], "bos_token_id": 257, "pad_token_id": 256}
    (root / "model" / "generation_config.json").write_text(json.dumps(ends))
    rows = [{"prompt": text, "completion": " yes", "worth": k} for k, text in enumerate(("One:", "And two:", "Three?"))]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "reward.py").write_text("def reward(prompt, answer, worth):\n    return len(answer) + worth\n")
    return root


def settings(place: Path, out: Path, **changes: Any) -> config.CompareConfig:
    base = {
        "model": str(place / "model"),
        "prompts": str(place / "prompts.jsonl"),
        "rewards": {"gold": f"{place / 'reward.py'}:reward"},
        "methods": [{"name": "bon", "best_of": [2, 4]}],
        "samples": SAMPLES,
        "sample_tokens": LONGEST,
        "rows_per_batch": 4,
        "device": "cpu",
        "out": str(out),
        **changes,
    }
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in base.items()])


@pytest.fixture
def setup(place, tmp_path) -> MeasurementSetup:
    return measure.set_up(settings(place, tmp_path))


class Asked:
    """A rewarder that remembers what it was asked; its scores differ between all answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(
        self,
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        self.calls.append((list(prompts), list(answers), list(ended or ()), list(columns or ())))
        return [(37 * k) % 101 / 101 for k in range(len(answers))]


def drawn_alone(setup: MeasurementSetup, n: int, seed: int, model: Any = None) -> list[Any]:
    return sample(
        setup.start if model is None else model,
        setup.inputs,
        eos=setup.eos,
        n=n,
        sampling=setup.sampling,
        seed=seed,
        rows_per_batch=4,
    )


def test_the_answers_of_the_start_are_those_drawn_and_rewards_are_asked_about_them(setup):
    gold, other = Asked(), Asked()
    answers = measure.start_answers(setup, {"gold": gold, "other": other}, {"gold": "g", "other": "o"}, 3)
    drawn = drawn_alone(setup, SAMPLES, 3)
    assert answers.tokens.tolist() == np.reshape([len(s.ids) for s in drawn], (3, SAMPLES)).tolist()
    assert answers.unended.tolist() == np.reshape([s.stop == "length" for s in drawn], (3, SAMPLES)).tolist()
    assert 0 < answers.unended.sum() < 3 * SAMPLES, "both kinds occur"
    assert answers.kl.tolist() == [[0.0] * SAMPLES] * 3
    assert answers.drawn_tokens == answers.tokens.mean()
    ids = [list(prompt_ids(p)) for p in setup.inputs]
    texts = [setup.speaker.continuation(ids[s.prompt_index], s.answer.tolist()) for s in drawn]
    assert [t for row in answers.texts for t in row] == texts
    told = ["One:", "One:", "And two:", "And two:", "Three?", "Three?"]
    columns = [{"worth": k} for k in (0, 0, 1, 1, 2, 2)]
    assert gold.calls == other.calls == [(told, texts, (~answers.unended).ravel().tolist(), columns)]
    assert answers.rewards["gold"].shape == (3, SAMPLES)
    assert answers.rewards["gold"].ravel().tolist() == Asked()([], texts)


def test_best_of_n_takes_all_about_an_answer_from_the_best_candidate(setup):
    ranking, gold = Asked(), Asked()
    results = measure.best_of_answers(setup, [1, 4, 2], ranking, "r", {"gold": gold}, {"gold": "g"}, 3, "bon")
    assert [n for n, _ in results] == [1, 4, 2]
    drawn = drawn_alone(setup, 4 * SAMPLES, 3)
    (asked,) = ranking.calls
    told, texts, ended, columns = asked
    assert told == ["One:"] * 8 + ["And two:"] * 8 + ["Three?"] * 8
    assert ended == [s.stop != "length" for s in drawn]
    assert [c["worth"] for c in columns] == [0] * 8 + [1] * 8 + [2] * 8
    scores = np.reshape(Asked()([], texts), (3, 8))
    for n, answers in results:
        for x in range(3):
            for a in range(SAMPLES):
                best = x * 8 + max(range(a * n, a * n + n), key=lambda k: scores[x, k])
                assert answers.texts[x][a] == texts[best]
                assert answers.tokens[x, a] == len(drawn[best].ids)
                assert answers.unended[x, a] == (drawn[best].stop == "length")
        assert answers.kl == pytest.approx(np.full((3, SAMPLES), np.log(n) - (n - 1) / n))
        used = [len(drawn[x * 8 + k].ids) for x in range(3) for k in range(n * SAMPLES)]
        assert answers.drawn_tokens == pytest.approx(sum(used) / (3 * SAMPLES))
    # rewards are asked about the answers that were taken
    assert [call[1] for call in gold.calls] == [[t for row in a.texts for t in row] for _, a in results]
    assert [call[2] for call in gold.calls] == [(~a.unended).ravel().tolist() for _, a in results]


def test_best_of_n_does_not_depend_on_the_other_numbers_asked_for(place, setup, tmp_path):
    class Length(Asked):
        def __call__(self, prompts, answers, ended=None, columns=None):
            return [float(len(t)) for t in answers]

    def longest(*numbers: int) -> dict[int, list[list[str]]]:
        there = replace(setup, config=settings(place, tmp_path / "-".join(map(str, numbers))))
        given = (Length(), "r", {"gold": Asked()}, {"gold": "g"}, 3, "bon")
        return {n: a.texts for n, a in measure.best_of_answers(there, numbers, *given)}

    assert longest(2)[2] == longest(2, 4)[2] == longest(4, 2)[2]
    assert longest(2)[2] != longest(4)[4]


def test_what_was_measured_is_read_again_unless_something_it_depends_on_changed(place, setup, monkeypatch):
    gold = Asked()
    first = measure.start_answers(setup, {"gold": gold}, {"gold": "g"}, 0)
    again = measure.start_answers(setup, {"gold": gold}, {"gold": "g"}, 0)
    assert len(gold.calls) == 1
    for name in ("tokens", "unended", "kl"):
        kept, read = getattr(first, name), getattr(again, name)
        assert (read.tolist(), read.dtype, read.shape) == (kept.tolist(), kept.dtype, kept.shape)
    assert (again.texts, again.drawn_tokens) == (first.texts, first.drawn_tokens)
    assert again.rewards["gold"].tolist() == first.rewards["gold"].tolist()
    assert measure.start_answers(setup, {"gold": gold}, {"gold": "g"}, 1).texts != first.texts  # another seed
    measure.start_answers(setup, {"gold": gold}, {"gold": "another"}, 0)
    measure.start_answers(replace(setup, key="another"), {"gold": gold}, {"gold": "g"}, 0)
    assert len(gold.calls) == 4
    given: dict[str, Any] = {"rewarders": {"gold": Asked()}, "keys": {"gold": "g"}, "name": "bon"}
    ranking = Asked()
    for key, seed in (("r", 0), ("r", 0), ("s", 0), ("s", 1)):
        measure.best_of_answers(setup, [2], ranking, key, seed=seed, **given)
    assert len(ranking.calls) == 3
    measure.best_of_answers(setup, [2, 3], ranking, "s", seed=1, **given)
    assert len(ranking.calls) == 4
    assert len(given["rewarders"]["gold"].calls) == 4


@pytest.mark.parametrize("change", [{"sample_tokens": 2}, {"temperature": 0.5}, {"samples": 3}, {"max_prompts": 2}])
def test_the_key_of_a_comparison_names_what_its_answers_depend_on(place, tmp_path, setup, change):
    assert measure.set_up(settings(place, tmp_path / "elsewhere", rows_per_batch=2)).key == setup.key
    assert measure.set_up(settings(place, tmp_path, **change)).key != setup.key


def test_the_key_names_the_columns_and_the_model(place, tmp_path, setup):
    changed = (place / "prompts.jsonl").read_text().replace('"worth": 2', '"worth": 3')
    (tmp_path / "prompts.jsonl").write_text(changed)
    assert measure.set_up(settings(place, tmp_path, prompts=str(tmp_path / "prompts.jsonl"))).key != setup.key
    model_folder(tmp_path / "model", hidden_size=64)
    assert measure.set_up(settings(place, tmp_path, model=str(tmp_path / "model"))).key != setup.key


def test_prompts_leave_room_for_an_answer(place, tmp_path):
    """The longest prompt has 8 tokens."""
    assert len(measure.set_up(settings(place, tmp_path, max_tokens=LONGEST + 8)).prompts) == 3
    with pytest.raises(AfzalError, match=f"1 of 3 prompts have more than {7} tokens") as error:
        measure.set_up(settings(place, tmp_path, max_tokens=LONGEST + 7))
    assert error.value.why == "the first of them is prompt 1, with 8 tokens"
    with pytest.raises(AfzalError, match="no room for a prompt"):
        measure.set_up(settings(place, tmp_path, max_tokens=LONGEST))
    assert len(measure.set_up(settings(place, tmp_path, max_prompts=2)).prompts) == 2
    first = tmp_path / "one.jsonl"
    first.write_text((place / "prompts.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(AfzalError, match="1 prompts are too few"):
        measure.set_up(settings(place, tmp_path, prompts=str(first)))


@pytest.mark.parametrize(
    ("there", "most", "kept"),
    [(5, 2, [1, 4]), (4, 2, [1, 3]), (7, 3, [1, 4, 6]), (3, 5, [0, 1, 2]), (3, 3, [0, 1, 2]), (9, 1, [8])],
)
def test_snapshots_are_evenly_spaced_and_end_with_the_last(there, most, kept):
    snaps = [Snapshot(Path("run"), k, None, "") for k in range(there)]
    assert [s.step for s in measure._evenly_spaced(snaps, most)] == kept


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory) -> Path:
    """A run of six updates at a rate that moves the policy."""
    root = tmp_path_factory.mktemp("trained")
    pair_file(root / "pairs.jsonl", 12)
    given = run_settings(root, root / "run", model=str(place / "model"), eval_fraction=0.0, lr=1e-2)
    given |= {"max_steps": 6, "save_every_steps": 2, "keep_checkpoints": 5}
    drop = ("sample_prompts", "sample_tokens", "eval_every_steps")
    recipes.train(config.make("dpo", **{k: v for k, v in given.items() if k not in drop}))
    return root / "run"


def test_snapshots_of_a_run_are_its_checkpoints_and_its_finished_model(place, trained):
    snaps = measure.snapshots(trained, 9)
    assert [(s.step, s.checkpoint is None) for s in snaps] == [(2, False), (4, False), (6, True)]
    assert len({s.key for s in snaps}) == 3
    assert [s.step for s in measure.snapshots(trained, 2)] == [4, 6]
    (folder,) = measure.snapshots(place / "model", 9)
    assert (folder.run, folder.step, folder.checkpoint) == (place / "model", 1, None)


def test_snapshots_are_measured_with_their_own_weights_and_their_kl_is_exact(trained, setup):
    gold = Asked()
    snaps = measure.snapshots(trained, 9)
    found = list(measure.measure_snapshots(setup, snaps, {"gold": gold}, {"gold": "g"}, 3, "dpo"))
    assert [snap for snap, _ in found] == snaps
    means = []
    for snap, answers in found:
        model = load_model(str(trained), device=torch.device("cpu"))
        if snap.checkpoint is not None:
            model.load_state_dict(checkpoint.load(snap.checkpoint)[0]["model"], strict=False)
        drawn = drawn_alone(setup, SAMPLES, 3, model)
        assert answers.tokens.ravel().tolist() == [len(s.ids) for s in drawn]
        exact = [_kl(model, setup.start, prompt_ids(setup.inputs[s.prompt_index]), s.ids) for s in drawn]
        assert answers.kl.ravel() == pytest.approx(exact, rel=1e-3, abs=1e-5)
        means.append(answers.kl.mean())
    assert 0 < means[0] < means[1] < means[2]
    again = list(measure.measure_snapshots(setup, snaps, {"gold": gold}, {"gold": "g"}, 3, "dpo"))
    assert [a.texts for _, a in again] == [a.texts for _, a in found]
    assert len(gold.calls) == 3
    # only the second is missing: its weights are put into the run's model
    (Path(setup.config.out) / "measured" / "dpo-step-00000004.json").unlink()
    again = list(measure.measure_snapshots(setup, snaps, {"gold": gold}, {"gold": "g"}, 3, "dpo"))
    assert [a.texts for _, a in again] == [a.texts for _, a in found]
    assert len(gold.calls) == 4


@torch.no_grad()
def _kl(policy: Any, first: Any, prompt: Sequence[int], ids: np.ndarray) -> float:
    """KL(policy || first) of the next token, summed along the answer."""
    whole = torch.tensor([[*prompt, *ids.tolist()]])
    with stock_attention(policy), stock_attention(first):
        ours, theirs = (
            m(input_ids=whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (policy, first)
        )
    return float((ours.exp() * (ours - theirs)).sum())


def test_a_checkpoint_that_does_not_fit_is_refused(trained, setup, tmp_path, monkeypatch):
    (first, *_) = measure.snapshots(trained, 9)
    assert first.checkpoint is not None
    tensors = checkpoint.load(first.checkpoint)[0]["model"]
    some = next(iter(tensors))
    wrong = {
        "differs": {**tensors, some: tensors[some][:1]},
        f"{some} differs": {k: v for k, v in tensors.items() if k != some},
        "alien differs": {**tensors, "alien": torch.zeros(1)},
    }
    model = load_model(str(trained), device=torch.device("cpu"))
    for said, given in wrong.items():
        monkeypatch.setattr(checkpoint, "load", lambda path, given=given: ({"model": given},))
        with pytest.raises(AfzalError, match="does not fit the model of its run") as error:
            measure._copy_weights(model, first.checkpoint)
        assert said in error.value.why
