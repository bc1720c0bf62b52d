"""``afzal train prefer``: every objective trains from a file; impossible or ignored settings are refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_objectives import of_each_kind
from helpers_runs import dropped_lines, fingerprint, finished, pair_file, settings, start

from afzal import config, objectives, recipes, runs
from afzal.errors import AfzalError
from afzal.prepare import prepare
from afzal.train import checkpoint

# mdpo needs rows with images or sounds: tests/recipes/test_recipes_media_objectives.py
POLICIES = [o.name for o in objectives.REGISTRY.values() if o.scores == "policy" and o.name != "mdpo"]
SHORT = {"epochs": 1.0, "eval_every_steps": None, "save_every_steps": None, "sample_prompts": 0, "max_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefer")
    settings(path, path / "unused")
    rows = [
        {"prompt": f"Q{i}?", "responses": [f" a{i}", f" bb{i}", f" ccc{i}"], "scores": [3.0, 1.0 + i % 2, 0.5]}
        for i in range(24)
    ]
    votes = [
        {
            "afzal": 1,
            "id": f"r{i}",
            "prompt": row["prompt"],
            "responses": [{"turns": t} for t in row["responses"]],
            "votes": [
                {"vote": "rating", "response": k, "value": s, "kind": "score"} for k, s in enumerate(row["scores"])
            ],
        }
        for i, row in enumerate(rows)
    ]
    write(path / "ranked.jsonl", votes)
    pairs = [json.loads(line) for line in (path / "pairs.jsonl").read_text().splitlines()]
    write(path / "tasked.jsonl", [row | {"task": "ab"[k % 2]} for k, row in enumerate(pairs)])
    return path


def rating(response: int, value: float) -> dict[str, Any]:
    return {"vote": "rating", "response": response, "value": value, "kind": "score"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prefer(folder: Path, out: Path, objective: str, **overrides: Any) -> config.TrainConfig:
    return config.make("prefer", objective=objective, **settings(folder, out, **(SHORT | overrides)))


def run(folder: Path, out: Path, objective: str, **overrides: Any) -> runs.Run:
    return runs.open_run(recipes.train(prefer(folder, out, objective, **overrides)))


def data_for(folder: Path, name: str) -> dict[str, Any]:
    if "task" in objectives.get(name).uses:
        return {"data": str(folder / "tasked.jsonl")}
    return {"data": str(folder / "ranked.jsonl")} if objectives.get(name).unit == "group" else {}


@pytest.mark.parametrize("name", of_each_kind(POLICIES))
def test_every_objective_trains_and_learns_from_its_first_loss(folder, tmp_path, name):
    result = run(folder, tmp_path / "run", name, max_steps=12, epochs=9.0, lr=3e-3, **data_for(folder, name))
    facts, lines = result.facts(), result.metrics("train")
    assert facts["objective"]["name"] == name
    declared = facts["objective"]["at_reference"]
    if declared is not None:
        assert lines[0]["loss"] == pytest.approx(declared, rel=1e-4)
    if name not in (
        "discopop",
        "beta_dpo",
    ):  # one rises at first by its shape, the other drops different pairs each time
        assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["grad_norm"] > 0
    assert "loss" in result.metrics("eval")[-1]


def test_a_weighted_sum_is_the_sum_of_its_terms(folder, tmp_path):
    """Each term with its own count; the total of the log is the weighted sum of the parts."""
    result = run(
        folder, tmp_path / "mix", "0.8*sigmoid + 0.2*bco + 1.0*nll", objective_arg={"beta": 0.2, "bco.beta": 0.05}
    )
    facts = result.facts()["objective"]
    assert facts["name"] == "0.8*dpo + 0.2*bco + 1*sft"
    assert facts["params"] == {"dpo.beta": 0.2, "bco.beta": 0.05}
    for line in [*result.metrics("train"), *result.metrics("eval")]:
        parts = [line[f"loss/{name}"] for name in ("dpo", "bco", "sft")]
        assert line["loss"] == pytest.approx(0.8 * parts[0] + 0.2 * parts[1] + parts[2], rel=1e-5)
    assert result.metrics("train")[0]["loss/dpo"] == pytest.approx(0.693147, abs=1e-5)
    assert "bco/shift" in result.metrics("train")[-1]
    page, card = ((result.path / name).read_text() for name in ("report.html", "README.md"))
    assert "preference optimisation, 0.8*dpo + 0.2*bco + 1*sft" in page
    assert "by preference optimisation (0.8" in card


def test_the_gradient_of_a_sum_is_the_sum_of_gradients(folder, tmp_path):
    """One step of plain gradient descent (no clipping, RMS or momentum) from each objective alone, and from the sum."""
    import torch
    from helpers_models import make, random_trees

    from afzal.model.probe import choose_sharing
    from afzal.model.reference import live_reference
    from afzal.train.feed import Feed, Layout
    from afzal.train.method import Method
    from afzal.train.optim import trainable
    from afzal.train.update import accumulate

    def gradient(expression: str) -> torch.Tensor:
        model = make("llama")
        choose_sharing(model)
        method = Method(objectives.bind(expression), live_reference(model))
        accumulate(model, method, Feed(random_trees(8), (), 8, 0, Layout("shared", 90)).update(0))
        return torch.cat([p.grad.flatten() for p in trainable(model).values()])

    mixed = gradient("0.5*dpo + 2*ipo")
    torch.testing.assert_close(mixed, 0.5 * gradient("dpo") + 2 * gradient("ipo"), rtol=1e-4, atol=1e-5)


def test_k_wise_data_reach_the_loss_whole(folder, tmp_path):
    """Three rated responses per prompt: one loss per prompt, ln 3! at the start, without any pairs."""
    result = run(folder, tmp_path / "run", "plackett_luce", data=str(folder / "ranked.jsonl"))
    equal = 0.5 * (1.791759 + 1.791759)
    assert result.metrics("train")[0]["loss"] == pytest.approx(equal, abs=1e-5)
    trees = prepare(prefer(folder, tmp_path / "x", "plackett_luce", data=str(folder / "ranked.jsonl"))).train
    assert {len(t.branches) for t in trees} == {3}
    assert sorted({t.scores for t in trees}) == [(3.0, 1.0, 0.5), (3.0, 2.0, 0.5)]


def test_multi_turn_pairs_reach_any_objective(folder, tmp_path):
    turns = lambda text: [  # noqa: E731
        {"role": "assistant", "content": text},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": text + "!"},
    ]
    ask = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": ask, "chosen": turns(f"A{i}"), "rejected": turns(f"B{i}")} for i in range(8)]
    path = write(tmp_path / "turns.jsonl", rows)
    result = run(folder, tmp_path / "run", "ld_dpo", data=str(path), eval_fraction=0.0)
    assert result.metrics("train")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def labelled_rows(**columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{i}?", "chosen": f" yes{i}", "rejected": f" no{i}", **columns} for i in range(12)]


def test_ties_are_left_out_where_an_objective_knows_none_and_listed(folder, tmp_path):
    rows = labelled_rows()
    rows[3] |= {"p": 0.5}
    path = write(tmp_path / "ties.jsonl", rows)
    made = prepare(prefer(folder, tmp_path / "x", "aot", data=str(path), eval_fraction=0.0))
    assert len(made.train) == 11
    assert [line["reason"] for line in dropped_lines(made) if line["stage"] == "select"] == [
        "tie",
        "no_pair",
    ]
    assert len(prepare(prefer(folder, tmp_path / "x", "rao_kupper", data=str(path), eval_fraction=0.0)).train) == 12


@pytest.mark.parametrize(
    ("objective", "overrides", "said"),
    [
        ("dpoo", {}, "unknown objective 'dpoo'; did you mean dpo"),
        ("0.5*dpo + 0.5*sigmoid", {}, "appears twice"),
        ("0.5 dpo", {}, "is not an objective"),
        ("0*dpo", {}, "must be a number above 0"),
        ("dpo", {"objective_arg": {"label_smoothing": 0.1}}, "label_smoothing has no effect on dpo (only on aot"),
        ("orpo", {"objective_arg": {"beta": 0.1}}, "beta has no effect on orpo"),
        ("dpo", {"objective_arg": {"beta": 0}}, "dpo: beta cannot be 0.0; wanted: a number in (0, inf)"),
        ("robust", {"objective_arg": {"label_smoothing": 0.5}}, "wanted: a number in [0, 0.5)"),
        ("exo_pair", {"objective_arg": {"label_smoothing": 0}}, "wanted: a number in (0, 0.5)"),
        ("f_dpo", {"objective_arg": {"divergence": "hellinger"}}, "choose one of reverse_kl, forward_kl"),
        ("dpo + bco", {"objective_arg": {"ipo.beta": 0.1}}, "there is no term 'ipo' (only dpo, bco)"),
        ("tdpo", {"reference": "cached"}, "objective 'tdpo2' cannot use reference=cached"),
        ("epsilon_dpo", {"reference": "cached"}, "objective 'epsilon_dpo' cannot use reference=cached"),
        ("simpo", {"reference": "cached"}, "reference has no effect: simpo has no reference"),
        ("cpo", {"reference_sync_steps": 2}, "reference_sync_steps has no effect: cpo has no reference"),
        ("dpo", {"learn": ["nu"]}, "learn: dpo can learn nothing, not 'nu'"),
        ("davidson", {"learn": ["beta"]}, "learn: davidson can learn only nu, not 'beta'"),
        ("bradley_terry", {}, "trains reward models, not policies"),
        ("0.5*kto + 0.5*dpo", {}, "cannot be combined with an objective on pairs"),
        ("no_such_module:fn", {}, "there is no module 'no_such_module'"),
        ("json:dumps", {}, "is a function, not an objective"),
        ("json:nothing", {}, "has no function 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(folder, tmp_path, objective, overrides, said, monkeypatch):
    room = sys.modules["afzal.recipes.train"]  # the package's attribute of that name is the function
    monkeypatch.setattr(room, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(AfzalError) as caught:
        recipes.train(prefer(folder, tmp_path / "run", objective, **overrides))
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "column", "said"),
    [
        ("aot", {"p": 0.8}, "objective 'aot' takes certain labels only, and this one has the probability 0.8"),
        ("aot_unpaired", {"weight": 2.0}, "objective 'aot_unpaired' takes no weights, and this pair has the weight 2"),
    ],
)
def test_columns_that_would_be_ignored_are_refused_with_their_row(folder, tmp_path, objective, column, said):
    path = write(tmp_path / "rows.jsonl", labelled_rows(**column))
    with pytest.raises(AfzalError) as caught:
        prepare(prefer(folder, tmp_path / "x", objective, data=str(path), eval_fraction=0.0))
    assert said in str(caught.value)
    assert "rows.jsonl:1" in str(caught.value)


def test_majority_makes_uncertain_labels_certain_on_request(folder, tmp_path):
    path = write(tmp_path / "soft.jsonl", labelled_rows(p=0.8))
    made = prepare(prefer(folder, tmp_path / "x", "aot", data=str(path), eval_fraction=0.0, soft_labels="majority"))
    assert {q.p for t in made.train for q in t.preferences} == {1.0}


def test_margins_are_used_or_said_to_be_without_effect(folder, tmp_path):
    path = write(tmp_path / "margins.jsonl", labelled_rows(margin=3.0))
    given = {"data": str(path), "eval_fraction": 0.0}
    used = prepare(prefer(folder, tmp_path / "x", "odpo", **given))
    ignored = prepare(prefer(folder, tmp_path / "x", "dpo", **given))
    assert not [n for n in used.notes if "no effect" in n]
    assert "no effect on dpo: margins (strengths) of 12 opinions" in ignored.notes
    plain, offset = (run(folder, tmp_path / n, n, **given).metrics("train")[0]["loss"] for n in ("dpo", "odpo"))
    assert offset == pytest.approx(1.386294, abs=1e-5)  # -log sigma(-log 3) = log 4
    assert plain == pytest.approx(0.693147, abs=1e-5)


OWN = '''
from afzal.objectives import Pairs, Scored, log_ratios, objective


@objective("cubic_test", unit="pair", needs_reference=True, at_reference=1.0, formula="(1 - h)^4", paper="none")
def cubic(policy: Scored, reference: Scored, pairs: Pairs, *, scale: float = 1.0):
    """A toy: the fourth power of the distance of the margin from 1."""
    rho = log_ratios(policy, reference)
    return (1 - scale * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs])) ** 4, rho.detach()
'''


def test_an_objective_of_ones_own_is_one_file(folder, tmp_path, monkeypatch):
    """The example of CONTRIBUTING: a decorated function in a module of the current folder, named as module:function."""
    (tmp_path / "my_objectives.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    try:
        result = run(
            folder, tmp_path / "run", "my_objectives:cubic", max_steps=15, epochs=9.0, objective_arg={"scale": 0.5}
        )
        lines = result.metrics("train")
        assert lines[0]["loss"] == pytest.approx(1.0, abs=1e-5)
        assert lines[-1]["loss"] < 0.8
        assert result.facts()["objective"] == {
            "name": "cubic_test",
            "unit": "pair",
            "params": {"scale": 0.5},
            "at_reference": 1.0,
        }
    finally:
        objectives.REGISTRY.pop("cubic_test", None)


# values carried from update to update


CARRIED = {
    "bco": {},
    "epsilon_dpo": {},
    "beta_dpo": {},
    "davidson": {"learn": ["nu"], "learned_lr": 0.1},
    "dpo": {"reference_sync_steps": 3, "reference_mixup": 0.5},
}


# a state, a scalar and a model; others with a state are slow
OF_EACH = [
    "bco",
    "davidson",
    "dpo",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("epsilon_dpo", "beta_dpo")),
]


def test_what_is_carried_is_asked():
    stateful = {name for name in POLICIES if objectives.get(name).initial_state is not None}
    assert set(CARRIED) >= stateful - {"bco_pair", "group_dpo"}


@pytest.mark.parametrize("name", OF_EACH)
def test_running_state_learned_scalars_and_a_moving_reference_survive_a_resume(folder, tmp_path, name):
    """Eight updates in one go, and four, a lost end, and four again: the same bytes."""
    extra = {"objective": name, **CARRIED[name], "epochs": 4.0, "max_steps": 8, "save_every_steps": 4}
    extra |= {"keep_checkpoints": 20, "eval_every_steps": 4}
    given = settings(folder, tmp_path / "whole", **extra)
    assert finished(start("prefer", given)) == 0
    cut = given | {"out": str(tmp_path / "cut")}
    assert finished(start("prefer", cut)) == 0
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir()):
        if checkpoint.step_of(path) > 4:
            shutil.rmtree(path)
    assert finished(start("prefer", cut, resume=True)) == 0
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_a_learned_tie_parameter_moves_and_is_told(folder, tmp_path):
    rows = [r | ({"p": 0.5} if i % 2 else {}) for i, r in enumerate(labelled_rows())]
    path = write(tmp_path / "ties.jsonl", rows)
    given = {
        "data": str(path),
        "eval_fraction": 0.0,
        "learn": ["nu"],
        "learned_lr": 0.1,
        "max_steps": 10,
        "epochs": 10.0,
    }
    result = run(folder, tmp_path / "run", "davidson", **given, objective_arg={"nu": 0.3})
    first, last = (result.metrics("train")[k]["learned/nu"] for k in (0, -1))
    assert first == pytest.approx(0.3, abs=1e-5)
    assert last > first, "half of the pairs are ties, and nu = 0.3 expects fewer"
    assert result.facts()["learned"]["davidson.nu"] > last


def test_a_reference_that_follows_brings_the_loss_back_to_its_start(folder, tmp_path):
    """TR-DPO with a full copy after every second update: the next loss is ln 2 again."""
    result = run(folder, tmp_path / "run", "dpo", max_steps=6, epochs=2.0, reference_sync_steps=2, reference_mixup=1.0)
    losses = [line["loss"] for line in result.metrics("train")]
    assert [loss == pytest.approx(0.693147, abs=1e-5) for loss in losses] == [True, False] * 3


def test_a_half_way_reference_lies_half_way(folder):
    import torch
    from helpers_models import make

    from afzal.model.reference import live_reference, move_towards_policy

    model = make("llama")
    reference = live_reference(model)
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.add_(2.0)
    move_towards_policy(reference, model, 0.25)
    torch.testing.assert_close(reference.model.lm_head.weight, before + 0.5)


def test_pair_file_is_what_these_runs_read(folder):
    assert pair_file(folder / "again.jsonl").read_text() == (folder / "pairs.jsonl").read_text()
