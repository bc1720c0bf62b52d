"""YAML, overrides and Python values give the same checked object; the resolved copy reads back to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from afzal import config
from afzal.errors import AfzalError

BASE = {"model": "M", "data": "d/prefs.jsonl"}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("method", config.METHODS)
def test_the_dumped_copy_reads_back_to_an_equal_object(tmp_path: Path, method: str):
    rewarded = {"reward": "r.py:f"} if issubclass(config.CONFIGS[method], config.OnlineConfig) else {}
    rewarded |= {"samples": "S"} if method == "irl" else {}
    usual = {"lr": 3e-7, "columns": {"chosen": "good: one"}, "eos_token": "<s>", "seed": 2**40}
    settings = config.make(method, **BASE, **usual, **rewarded)
    assert config.load(written(tmp_path, config.dump(settings))) == settings


def test_every_optional_setting_survives_the_round_trip(tmp_path: Path):
    settings = config.make(
        "kto",
        **BASE,
        eval_data="held.jsonl",
        lora_rank=8,
        lora_alpha=4,
        lora_targets=["q_proj", "v_proj"],
        reference="adapter_off",
        desirable_weight=1.3,
        chat_template="{% for m in messages %}\n{{ m.content }}: #'\"\n{% endfor %}",
        axis="no",
        max_steps=7,
        early_stop_patience=2,
    )
    assert config.load(written(tmp_path, config.dump(settings))) == settings


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001", "+1e-6", "10e-7"])
def test_numbers_with_exponents_are_numbers_in_files_and_overrides(tmp_path: Path, text: str):
    path = written(tmp_path, f"method: dpo\nmodel: M\ndata: D\nlr: {text}\n")
    assert config.load(path).lr == pytest.approx(1e-6)
    assert config.load(path, [f"adam_eps={text}"]).adam_eps == pytest.approx(1e-6)  # type: ignore[attr-defined]


def test_a_text_setting_stays_text_whatever_it_looks_like(tmp_path: Path):
    path = written(tmp_path, "method: dpo\nmodel: M\ndata: D\n")
    settings = config.load(path, ["data=1e-6", "model=2024", "axis=yes", "eos_token=[INST]", "out=a=b"])
    assert (settings.data, settings.model, settings.axis) == ("1e-6", "2024", "yes")
    assert (settings.eos_token, settings.out) == ("[INST]", "a=b")


def test_overrides_win_and_the_last_one_counts(tmp_path: Path):
    path = written(tmp_path, "method: dpo\nmodel: M\ndata: D\nbatch_size: 4\nmax_steps: 9\n")
    settings = config.load(path, ["batch_size=8", "batch-size=16", "max_steps=null", "gradient_checkpointing=true"])
    assert (settings.batch_size, settings.max_steps, settings.activation_checkpointing) == (16, None, "full")


@pytest.mark.parametrize("columns", ["chosen=good,prompt=q", "{chosen: good, prompt: q}"])
def test_columns_as_pairs_or_as_a_mapping(tmp_path: Path, columns: str):
    path = written(tmp_path, "method: dpo\nmodel: M\ndata: D\n")
    assert config.load(path, [f"columns={columns}"]).columns == {"chosen": "good", "prompt": "q"}


@pytest.mark.parametrize(
    ("method", "lora_rank", "lr"),
    [("sft", None, 2e-5), ("sft", 8, 2e-4), ("dpo", None, 1e-6), ("kto", None, 5e-6), ("kto", 8, 5e-5)],
)
def test_the_default_learning_rate_depends_on_method_and_mode(method: str, lora_rank: int | None, lr: float):
    assert config.make(method, **BASE, lora_rank=lora_rank).lr == lr
    assert config.make(method, **BASE, lora_rank=lora_rank, lr=7e-6).lr == 7e-6


def test_the_default_run_folder_names_method_and_data():
    assert config.make("ipo", model="M", data="some/where/prefs.jsonl.gz").out == "runs/ipo-prefs"
    assert config.make("ipo", model="M", data="team/set").out == "runs/ipo-set"


def test_held_out_data_take_the_place_of_the_held_out_share():
    assert config.make("dpo", **BASE).eval_fraction == 0.1
    assert config.make("dpo", **BASE, eval_data="held.jsonl").eval_fraction == 0.0


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.make("dpo", **BASE).lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("kind", [*config.CONFIGS.values(), config.GenerateConfig, config.ExportConfig])
def test_every_setting_has_a_sentence_and_a_heading(kind: type[config.Settings]):
    headings = {"Data", "Model", "Optimisation", "Rollouts", "Objective", "Constraint", "Evaluation", "Run"}
    for key, field in kind.model_fields.items():
        assert field.description, key
        assert field.description.endswith("."), key
        assert config.section(kind, key) in headings, key


def test_advice_is_silent_on_usual_settings_and_names_unusual_ones():
    assert config.advice(config.make("dpo", **BASE)) == []
    assert config.advice(config.make("sft", **BASE, lora_rank=8)) == []
    told = config.advice(config.make("dpo", **BASE, lr=1e-3, beta=5, batch_size=2, epochs=9, tokens_per_forward=64))
    assert [note.split()[0] for note in told] == ["lr", "beta", "batch_size", "9", "tokens_per_forward"]


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"eval_fraction": 0, "sample_tokens": 4}, "no effect: sample_tokens, since nothing is held out"),
        (
            {"eval_fraction": 0, "sample_prompts": 4, "sample_temperature": 0.5},
            "no effect: sample_prompts, sample_temperature, since nothing is held out",
        ),
        ({"sample_prompts": 0, "sample_tokens": 4}, "no effect: sample_tokens, since sample_prompts is 0"),
        ({"sample_prompts": 0}, None),
        ({"eval_fraction": 0, "eval_data": "H", "sample_tokens": 4}, None),
    ],
)
def test_unused_sample_settings_are_named(given, note):
    assert config.advice(config.make("dpo", **BASE, **given)) == ([note] if note else [])


def test_hostile_yaml_is_not_executed(tmp_path: Path):
    path = written(tmp_path, "method: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(AfzalError, match=r"run\.yaml:1: not valid YAML: could not determine a constructor"):
        config.load(path)


def test_a_generate_config_takes_one_source_of_prompts():
    assert config.build(config.GenerateConfig, [config.Setting("model", "M"), config.Setting("prompt", "Hi")]).n == 1
    for extra in ([], [config.Setting("prompt", "Hi"), config.Setting("prompts", "f.jsonl")]):
        with pytest.raises(AfzalError, match="give either prompt"):
            config.build(config.GenerateConfig, [config.Setting("model", "M"), *extra])


def test_none_is_a_choice_if_allowed_and_else_a_missing_value():
    read = lambda kind, text: config.build(kind, [config.Setting("model", "M"), config.read_override(text)])  # noqa: E731
    assert read(config.PlanConfig, "reference=none").reference == "none"
    assert read(config.PlanConfig, "reference=null").reference is None
    assert read(config.PlanConfig, "nodes=none").nodes is None
