"""Reward models from the command's settings to a folder that other programs load; and scores of files."""

import json
import math
import re
import shlex
from dataclasses import replace

import pytest
import torch
from helpers_runs import model_folder, pair_file, settings
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from afzal import cli, config, recipes, runs
from afzal.errors import AfzalError
from afzal.model.reward import HEADS_FILE, load_reward_model, shift_of
from afzal.rewards.score import score

WRITES = ("sample_prompts", "sample_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl", n=60)
    return path


def train(folder, name, *, resume=False, **overrides):
    given = settings(folder, folder / name, **({"lr": 3e-3, "save_every_steps": None} | overrides))
    made = config.make("reward", **{k: v for k, v in given.items() if k not in WRITES})
    return runs.open_run(recipes.train(made, resume=resume))


def scores(tmp_path, model, folder):
    """The lines that ``afzal score`` writes for the pairs."""
    given = {"model": str(model), "data": str(folder / "pairs.jsonl"), "out": str(tmp_path / f"{model.name}.jsonl")}
    score(config.build(config.ScoreConfig, [config.Setting(k, v) for k, v in given.items()]))
    return [json.loads(line) for line in (tmp_path / f"{model.name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    return train(folder, "trained")


def test_a_run_learns_and_says_how_well(trained):
    held_out = trained.metrics("eval")
    assert held_out[-1]["rewards/accuracies"] >= 0.9
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    assert not [k for k in held_out[-1] if k.startswith(("logps", "lengths", "samples", "perplexity"))]
    figures = trained.facts()["reward"]
    assert figures["accuracy"]["value"] == held_out[-1]["rewards/accuracies"]
    assert figures["accuracy"]["n"] == held_out[-1]["n"]
    assert 0 <= figures["calibration"]["brier"] < 0.25
    assert {"length", "length_within"} <= set(figures)
    page = (trained.path / "report.html").read_text()
    for words in ("Reliability", "What the score follows", "reward model"):
        assert words in page
    card = (trained.path / "README.md").read_text()
    assert "text-classification" in card
    assert "AutoModelForSequenceClassification" in card


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 2}])
def test_a_family_that_transformers_has_no_reward_models_of_says_how_to_use_it(folder, lora, tmp_path, capsys):
    model_folder(tmp_path / "model", "GraniteConfig")
    run = train(folder, tmp_path / "run", model=str(tmp_path / "model"), max_steps=2, **lora)
    (command,) = re.findall(r"```bash\n(afzal score .*?)\n```", (run.path / "README.md").read_text())
    assert "AutoModelForSequenceClassification" not in (run.path / "README.md").read_text()
    words = shlex.split(command.replace("responses.jsonl", str(folder / "pairs.jsonl")))
    words = [str(tmp_path / word) if word in ("run", "scores.jsonl") else word for word in words]
    assert cli.main(words[1:]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_the_folder_scores_as_afzal_does(trained, folder, tmp_path):
    given = {"model": str(trained.path), "data": str(folder / "pairs.jsonl"), "out": str(tmp_path / "scores.jsonl")}
    made = config.build(config.ScoreConfig, [config.Setting(k, v) for k, v in given.items()])
    said = score(made)
    assert said[0] == "120 responses of 60 items scored"
    assert said[1].startswith("accuracy 1.000") or float(said[1].split()[1]) > 0.9
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 120
    model = AutoModelForSequenceClassification.from_pretrained(trained.path)
    tokenizer = AutoTokenizer.from_pretrained(trained.path)
    for row in rows[:6]:
        ids = tokenizer(row["prompt"] + row["response"], add_special_tokens=True).input_ids
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
        with torch.no_grad():
            logit = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert row["score"] == pytest.approx(logit - model.config.reward_shift, abs=1e-4)
        assert row["score_sd"] == 0.0
    with pytest.raises(AfzalError, match="nothing was overwritten"):
        score(made)


def test_preferred_responses_have_mean_0_after_the_stated_shift(folder, tmp_path):
    run = train(folder, "all", eval_fraction=0.0, eval_every_steps=None, max_steps=5)
    shift = shift_of(load_reward_model(str(run.path)))
    assert shift == run.facts()["reward"]["shift"] != 0
    preferred = [row["score"] for row in scores(tmp_path, run.path, folder) if row["response_index"] == 0]
    assert len(preferred) == 60
    assert sum(preferred) / 60 == pytest.approx(0, abs=1e-5)
    free = train(folder, "free", eval_fraction=0.0, eval_every_steps=None, max_steps=5, shift="none")
    assert shift_of(load_reward_model(str(free.path))) == 0
    assert (free.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_an_ensemble_says_where_it_is_unsure(folder, tmp_path):
    run = train(folder, "ensemble", heads=4, max_steps=12)
    assert (run.path / HEADS_FILE).exists()
    assert run.facts()["reward"]["spread_over_heads"] > 0
    assert AutoModelForSequenceClassification.from_pretrained(run.path).config.num_labels == 1
    rows = scores(tmp_path, run.path, folder)
    assert all(row["score_sd"] > 0 for row in rows)


def test_an_update_that_no_head_has_drawn_is_a_step_without_gradient(folder):
    """Batches of one item and two heads: one in seven updates has no weight at all, which must not end the run."""
    run = train(folder, "undrawn", heads=2, batch_size=1, max_steps=30, eval_fraction=0.0, eval_every_steps=None)
    lines = run.metrics("train")
    undrawn = [line["step"] for line in lines if "loss" not in line]
    assert len(lines) == 30
    assert undrawn
    assert [line["step"] for line in lines if line["grad_norm"] == 0] == undrawn
    assert run.facts()["status"] == "finished"


def test_adapters_are_merged_into_a_folder_that_loads(folder):
    run = train(folder, "lora", lora_rank=2, max_steps=4)
    assert not (run.path / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(run.path)
    assert model.config.num_labels == 1
    assert run.facts()["model"]["trainable"] < run.facts()["model"]["parameters"]


def test_a_reward_model_trains_on(trained, folder):
    """A run that starts from a reward model's folder keeps the head: its first evaluation equals that run's last."""
    again = train(folder, "again", model=str(trained.path), max_steps=1)
    before, after = trained.metrics("eval")[-1], again.metrics("eval")[0]
    assert after["loss"] == pytest.approx(before["loss"], abs=1e-5)


def test_stopped_and_resumed_ends_with_the_same_bits(folder, monkeypatch):
    names = recipes.train.__globals__
    fit, same = names["fit"], {"heads": 2, "max_steps": 6}
    whole = train(folder, "whole", **same)

    def stopped(*args, hooks, state, **rest):
        asked = replace(hooks, stop=lambda: "SIGTERM" if state.step == 3 else None)
        return fit(*args, hooks=asked, state=state, **rest)

    monkeypatch.setitem(names, "fit", stopped)
    with pytest.raises(recipes.Stopped):
        train(folder, "part", **same)
    monkeypatch.setitem(names, "fit", fit)
    part = train(folder, "part", resume=True, **same)
    for name in ("model.safetensors", HEADS_FILE):
        assert (part.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_strengths_are_used_by_the_margin_loss_and_named_where_they_are_not(folder, tmp_path):
    rows = [{"prompt": "q", "chosen": "yes please", "rejected": "no", "score_chosen": 3.0, "score_rejected": 1.0}] * 4
    rows = [row | {"prompt": f"q{i}"} for i, row in enumerate(rows)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    losses = {}
    for objective in ("bradley_terry", "bradley_terry_margin"):
        run = train(
            folder,
            f"rated-{objective}",
            data=str(tmp_path / "rated.jsonl"),
            objective=objective,
            centering=0.0,
            max_steps=1,
            eval_fraction=0.0,
            eval_every_steps=None,
            batch_size=4,
        )
        losses[objective] = run.metrics("train")[0]
    plain, margin = (m["loss"] for m in losses.values())
    gap = losses["bradley_terry"]["rewards/margins"]
    assert plain == pytest.approx(math.log1p(math.exp(-gap)), abs=0.02)
    assert margin > plain + 1, "a gap of 2 is asked for, and a fresh head has none"


def test_a_loss_that_is_none_of_reward_models_is_refused(folder):
    with pytest.raises(AfzalError, match="not a reward-model loss"):
        train(folder, "wrong", objective="dpo")


def test_a_check_names_the_pairs_that_a_reward_model_contradicts(trained, folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for row in rows[:20]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path = tmp_path / "turned.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["check", str(path), "--reward", str(trained.path), "--json"])
    told = {one["code"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert told["ambiguous_pairs"]["total"] == 60
    suspicious = told["suspicious_pairs"]
    assert (suspicious["severity"], suspicious["count"]) == ("minor", 20)
    assert {int(name.split(":")[1]) for name in suspicious["ids"]} == set(range(1, 21))


def test_a_policy_is_scored_by_its_implicit_reward(folder, tmp_path):
    """beta (log pi - log pi_ref) over the response and its end, from the models' own logits."""
    torch.manual_seed(1)
    policy = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn_like(p))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    given = {"policy": str(tmp_path / "policy"), "reference": str(folder / "model"), "beta": 0.5}
    given |= {"data": str(folder / "pairs.jsonl"), "out": str(tmp_path / "implicit.jsonl")}
    said = score(config.build(config.ScoreConfig, [config.Setting(k, v) for k, v in given.items()]))
    assert said[1].startswith("accuracy")
    row = json.loads((tmp_path / "implicit.jsonl").read_text().splitlines()[0])
    prompt = tokenizer(row["prompt"]).input_ids
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    answer = [*tokenizer(row["response"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    reference = AutoModelForCausalLM.from_pretrained(folder / "model")

    def logp(model):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(answer)[:, None]).sum())

    assert row["score"] == pytest.approx(0.5 * (logp(policy) - logp(reference)), abs=1e-4)
    assert row["tokens"] == len(answer)


def test_a_language_model_does_not_score_by_a_head_drawn_at_random(folder, tmp_path):
    with pytest.raises(AfzalError, match="is a language model, not a reward model"):
        scores(tmp_path, folder / "model", folder)


def test_rankings_train_by_plackett_luce_and_by_pairs(folder, tmp_path):
    """Four ranked answers per prompt: whole rankings, and all pairs with weight 1 / C(4, 2), learn the same order."""
    words = ["please do", "do it", "no way", "no no never"]
    rows = [
        {"prompt": f"Q{n}?", "responses": [f" {w} {n % 7}" for w in words], "scores": [3.0, 2.0, 1.0, 0.0]}
        for n in range(48)
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for objective in ("plackett_luce_reward", "bradley_terry"):
        run = train(folder, f"ranked-{objective}", data=str(tmp_path / "ranked.jsonl"), objective=objective)
        first, last = run.metrics("eval")[0], run.metrics("eval")[-1]
        assert last["loss"] < 0.5 * first["loss"]
        assert run.facts()["reward"]["accuracy"]["value"] > 0.9
    with pytest.raises(AfzalError, match="single head"):
        train(folder, "refused", data=str(tmp_path / "ranked.jsonl"), objective="plackett_luce_reward", heads=2)


def test_annotators_are_told_apart(folder, tmp_path):
    """One annotator agrees with the learned preference, another always says the opposite."""
    from afzal import data
    from afzal.records import Comparison, Item, Response

    people = ("ann", "ben", "cem", "dov")
    made = [
        Item(
            f"i{n}",
            f"Q{n}: how 1?",
            (Response(f" please see {n % 9}"), Response(f" no way {n % 9}")),
            tuple(Comparison(0, 1, "second" if who == "dov" else "first", annotator=who) for who in people),
        )
        for n in range(60)
    ]
    data.write(made, tmp_path / "votes.jsonl", "afzal")
    run = train(folder, "votes", data=str(tmp_path / "votes.jsonl"))
    by_annotator = run.facts()["reward"]["annotators"]
    assert by_annotator["ann"]["value"] == by_annotator["cem"]["value"] == 1
    assert by_annotator["dov"]["value"] == 0
    assert by_annotator["ann"]["n"] == run.metrics("eval")[-1]["n"]
    assert "Annotators" in (run.path / "report.html").read_text()


def test_bf16_trains_and_saves_float32(folder):
    run = train(folder, "bf16", dtype="bf16", max_steps=8)
    assert run.metrics("eval")[-1]["rewards/accuracies"] > 0.8
    assert AutoModelForSequenceClassification.from_pretrained(run.path).dtype == torch.float32


def test_a_model_in_memory_must_be_a_reward_model(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    given = {k: v for k, v in settings(folder, folder / "memory", max_steps=2).items() if k not in WRITES}
    made = config.make("reward", **given)
    with pytest.raises(AfzalError, match="not a reward model of 1 heads"):
        recipes.train(made, model=AutoModelForCausalLM.from_pretrained(folder / "model"), tokenizer=tokenizer)
    made = config.make("reward", **(given | {"out": str(folder / "memory-2")}))
    path = recipes.train(made, model=load_reward_model(str(folder / "model")), tokenizer=tokenizer)
    assert AutoModelForSequenceClassification.from_pretrained(path).config.num_labels == 1
