"""``afzal import``: every documented kind of peer configuration becomes settings that Afzal accepts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from afzal import cli, config
from afzal.data import read
from afzal.data.mixture import mixture_of
from afzal.errors import AfzalError
from afzal.peers import PEERS, as_yaml, import_config, mixture_yaml, summary

FIXTURES = Path(__file__).parents[1] / "fixtures" / "peers"
FILES = sorted(FIXTURES.glob("*/*.yaml"))


def imported(name: str, **options):
    return import_config(FIXTURES / f"{name}.yaml", **options)


def written(tmp_path, text: str, **options):
    path = tmp_path / "theirs.yaml"
    path.write_text(text, encoding="utf-8")
    return import_config(path, **options)


def test_there_are_many_of_each_peer():
    counts = Counter(path.parent.name for path in FILES)
    assert set(counts) == set(PEERS)
    assert min(counts.values()) >= 10
    assert sum(counts.values()) >= 30


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_each_is_recognised_named_in_full_and_accepted(tmp_path, path):
    made = import_config(path, mixture=str(tmp_path / "mix.yaml"))
    assert made.peer == PEERS[path.parent.name].NAME
    said = {remark.key for remark in made.remarks}
    assert not set(yaml.safe_load(path.read_text(encoding="utf-8"))) - said, "keys that nothing was said about"
    assert not [r for r in made.remarks if r.fate == "unknown"]
    assert all(r.why for r in made.remarks if r.fate in ("lost", "idle", "changed")), "a reason is missing"
    file = tmp_path / "ours.yaml"
    file.write_text(as_yaml(made), encoding="utf-8")
    loaded = config.load(file)
    for key, value in made.settings.items():
        assert getattr(loaded, key) == value
    assert loaded.lr == made.settings["lr"]  # always explicit: an adapter would multiply the default
    if made.mixture is not None:
        assert made.settings["data"] == str(tmp_path / "mix.yaml")
        (tmp_path / "mix.yaml").write_text(mixture_yaml(made), encoding="utf-8")
        assert len(mixture_of(tmp_path / "mix.yaml").sources) > 1


EXPECTED = {
    "trl/dpo": {"method": "dpo", "batch_size": 16, "max_steps": 1000, "epochs": 1000.0, "eval_every_steps": 50},
    "trl/dpo_lora": {"adapter": "lora", "lora_rank": 32, "lora_alpha": 16.0, "lr": 5e-6, "dtype": "bf16"},
    "trl/dpo_defaults": {"lr": 1e-6, "batch_size": 8, "epochs": 3.0, "warmup": 0.0, "seed": 42, "eval_fraction": 0.0},
    "trl/dpo_ipo_cached": {"objective": "ipo_mean", "reference": "cached", "optimizer": "rmsprop", "warmup": 0.1},
    "trl/dpo_mpo": {"objective": "0.8*dpo+0.2*bco_pair+sft", "max_tokens": 131072},
    "trl/dpo_robust_smoothed": {"objective_arg": {"beta": 0.1, "label_smoothing": 0.1}, "warmup": 0.0, "device": "cpu"},
    "trl/dpo_follow": {"objective_arg": {"beta": 0.1, "divergence": "alpha", "alpha": 0.25}, "reference_mixup": 0.5},
    "trl/cpo_simpo": {"objective": "simpo", "objective_arg": {"beta": 2.5, "gamma": 1.6}},
    "trl/kto": {"method": "kto", "desirable_weight": 1.33, "undesirable_weight": 1.0, "batch_size": 16},
    "trl/grpo": {"method": "grpo", "n": 8, "batch_size": 8, "minibatches": 2, "ppo_epochs": 2, "clip_high": 0.28},
    "trl/rloo": {"method": "rloo", "n": 4, "batch_size": 2, "kl_coef": 0.03, "sample_tokens": 256},
    "axolotl/dpo_chat_template": {"columns": {"messages": "conversation"}, "eos_token": "<|eot_id|>", "warmup": 10.0},
    "axolotl/dpo_user_defined": {"objective": "dpo+0.5*sft", "data_format": "question_pair"},
    "axolotl/ipo": {"objective": "ipo_mean", "data": "prefs.jsonl", "columns": {"question": "prompt"}},
    "axolotl/kto": {"quantize": "4bit", "beta": 0.5, "desirable_weight": 0.2, "lora_alpha": 16.0},
    "axolotl/orpo": {"objective": "orpo", "objective_arg": {"lam": 0.2}, "chat_template": "chatml"},
    "axolotl/simpo": {"objective": "simpo+0.5*sft", "objective_arg": {"beta": 2.0, "gamma": 1.0}},
    "axolotl/reward": {"method": "reward", "centering": 0.01, "eval_fraction": 0.05, "eval_every_steps": 100},
    "axolotl/sft_chat": {"warmup": 0.03, "eval_data": "held-out.jsonl", "chat_template": "my-template.jinja"},
    "llamafactory/dpo_lora": {
        "method": "dpo",
        "adapter": "lora",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "max_tokens": 2048,
    },
    "llamafactory/dpo_full_ftx": {"objective": "rpo", "objective_arg": {"beta": 0.2, "eta": 0.5}, "eval_fraction": 0.1},
    "llamafactory/cdpo": {"objective": "cdpo", "reference": "meta-llama/Llama-3.2-1B"},
    "llamafactory/simpo": {"data": "me/shared:en@train_prefs", "objective_arg": {"beta": 2.0, "gamma": 1.0}},
    "llamafactory/ipo": {"objective": "ipo_mean+0.1*sft", "quantize": "4bit"},
    "llamafactory/kto": {"columns": {"kto_tag": "label"}, "desirable_weight": 1.5},
    "llamafactory/reward": {"method": "reward", "centering": 0.0},
    "llamafactory/ppo": {"method": "ppo", "kl_target": 6.0, "kl_coef": 0.2, "temperature": 0.95, "sample_tokens": 512},
    "llamafactory/sft_after_adapter": {"adapter_from": "saves/earlier"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_values(name):
    settings = imported(name).settings
    assert {key: settings.get(key) for key in EXPECTED[name]} == EXPECTED[name]


def test_batches_of_several_processes_add_up():
    assert imported("trl/dpo", processes=4).settings["batch_size"] == 2 * 8 * 4


def test_lost_keys_are_named_with_their_reason():
    made = imported("trl/dpo_ignored_smoothing")
    lost = {r.key: r.why for r in made.remarks if r.fate == "lost"}
    assert set(lost) == {
        "label_smoothing",
        "max_prompt_length",
        "optim",
        "neftune_noise_alpha",
        "fp16",
        "model_revision",
    }
    assert "cdpo" in lost["label_smoothing"]
    assert not made.complete
    assert imported("trl/dpo_defaults").complete


def test_an_unknown_key_is_named(tmp_path):
    made = written(tmp_path, "model_name_or_path: m\ndataset_name: a/b\nbeta: 0.1\nbetta: 0.2\n", method="dpo")
    assert [(r.key, r.value) for r in made.remarks if r.fate == "unknown"] == [("betta", 0.2)]
    assert "betta: 0.2" in as_yaml(made)
    assert not made.complete


def test_defaults_that_differ_are_written_and_named():
    made = imported("trl/dpo_defaults")
    defaults = {r.into: r.value for r in made.remarks if r.fate == "default"}
    assert defaults["batch_size"] == 8
    assert "beta" not in defaults, "the same as Afzal's"
    assert "Afzal's is 64" in as_yaml(made)
    assert any(
        line.strip() == "batch_size: 8 (items per update, of one process; --processes N for several)"
        for line in summary(made)
    )


def test_the_file_of_sources_keeps_fields_and_shares():
    made = imported("llamafactory/orpo_ipo_mix")
    assert made.mixture is not None
    first, second = made.mixture["sources"]
    assert first["share"] == 0.7
    assert second["columns"] == {"instruction": "ask", "input": "about", "chosen": "liked", "rejected": "disliked"}
    assert sum(s["share"] for s in imported("trl/dpo_mixture").mixture["sources"]) == pytest.approx(1)


ROWS = {
    "llamafactory/cdpo": {"ask": "Colour?", "about": "sky", "liked": "Blue.", "disliked": "Green."},
    "llamafactory/kto": {"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}],
                         "label": True},
    "axolotl/dpo_user_defined": {"question": "Sky?", "good": "Blue.", "bad": "Green.", "context": "Be brief."},
    "axolotl/kto_user_defined": {"ask": "Sky?", "answer": "Blue.", "liked": True},
    "axolotl/ipo": {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "axolotl/dpo_chat_template": {"conversation": [{"role": "user", "content": "Sky?"}],
                                  "chosen": {"role": "assistant", "content": "Blue."},
                                  "rejected": {"role": "assistant", "content": "Green."}},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_field_maps_read_the_rows_they_are_for(tmp_path, name):
    settings = imported(name).settings
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(ROWS[name])] * 3), encoding="utf-8")
    item = read(file, columns=settings.get("columns"), format=settings.get("data_format")).items[0]
    best, *others = [turn.content for response in item.responses for turn in response.turns]
    assert best == "Blue."
    assert others in ([], ["Green."])
    assert item.prompt[-1].role == "user"


def test_a_local_folder_gives_the_file_of_its_split(tmp_path):
    data = tmp_path / "rows"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("{}\n", encoding="utf-8")
    text = f"model_name_or_path: m\ndataset_name: {data}\neval_strategy: 'no'\nbeta: 0.1\n"
    assert written(tmp_path, text, method="dpo").settings["data"] == str(data / "train.jsonl")
    evaluated = written(tmp_path, text.replace("'no'", "steps") + "eval_steps: 5\n", method="dpo").settings
    assert evaluated["eval_data"] == str(data / "test.jsonl")


def test_the_command_of_trl_is_recognised_or_asked_for(tmp_path):
    given = "model_name_or_path: m\ndataset_name: a/b\nlearning_rate: 1e-5\n"
    with pytest.raises(AfzalError, match="which command of TRL"):
        written(tmp_path, given)
    assert written(tmp_path, given, method="kto").settings["method"] == "kto"
    named = tmp_path / "my-orpo.yaml"
    named.write_text(given, encoding="utf-8")
    assert import_config(named).settings["objective"] == "orpo"
    assert written(tmp_path, given + "desirable_weight: 2.0\n").settings["method"] == "kto"
    with pytest.raises(AfzalError, match="not a supported command of TRL"):
        written(tmp_path, given, method="ppo")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("method: dpo\nmodel: m\ndata: d\n", "settings of Afzal already"),
        ("a: 1\nb: 2\n", "not recognised"),
        ("base_model: m\ndatasets: [{path: a/b}]\nrl: ebft\nlearning_rate: 1e-5\n", "rl: ebft has no counterpart"),
        ("base_model: m\ndatasets: [{path: a/b}]\nrl: dpo\nlearning_rate: fast\n", 'learning_rate cannot be "fast"'),
        ("stage: pt\nmodel_name_or_path: m\ndataset: a/b\n", "stage 'pt' has no counterpart"),
        ("stage: dpo\npref_loss: kto_pair\nmodel_name_or_path: m\ndataset: a/b\n", "pref_loss 'kto_pair'"),
        ("loss_type: odd\nbeta: 1\nmodel_name_or_path: m\ndataset_name: a/b\n", "'odd' has no counterpart"),
        ("model_name_or_path: m\nloss_type: sigmoid\nbeta: 0.1\n", "names no data"),
        ("model_name_or_path: m\ndataset_name: a/b\nloss_type: sigmoid\nbeta: 0\n", "beta cannot be 0"),
    ],
)
def test_what_is_refused(tmp_path, text, match):
    with pytest.raises(AfzalError, match=match):
        written(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("per_device_train_batch_size: 2.5", "per_device_train_batch_size cannot be 2.5"),
        ("per_device_train_batch_size: .inf", "per_device_train_batch_size cannot be Infinity"),
        ("logging_steps: true", "logging_steps cannot be true"),
        ("model_name_or_path: [m, n]", 'model_name_or_path cannot be ["m", "n"]'),
        ("use_peft: perhaps", 'use_peft cannot be "perhaps"'),
        ("bf16: maybe", 'bf16 cannot be "maybe"'),
        ("datasets: my-data", 'datasets cannot be "my-data"'),
        ("dataset_mixer: [a, b]", 'dataset_mixer cannot be ["a", "b"]'),
        ("output_dir: {a: 1}", 'output_dir cannot be {"a": 1}'),
    ],
)
def test_a_value_of_another_kind_is_named(tmp_path, line, said):
    usual = {"model_name_or_path": "m", "dataset_name": "a/b", "loss_type": "sigmoid", "beta": 0.1}
    usual.pop(line.partition(":")[0], None)
    if line.startswith("dataset"):
        del usual["dataset_name"]
    with pytest.raises(AfzalError) as caught:
        written(tmp_path, yaml.safe_dump(usual) + line + "\n")
    assert caught.value.what == said
    assert caught.value.remedy
    assert caught.value.where == str(tmp_path / "theirs.yaml")


def test_what_cannot_be_computed_with_is_a_fault_of_the_file(tmp_path):
    grpo = "model_name_or_path: m\ndataset_name: a/b\nreward_funcs: [r.f]\nnum_generations: 0\n"
    with pytest.raises(AfzalError, match="num_generations"):
        written(tmp_path, grpo, method="grpo")
    with pytest.raises(AfzalError, match="processes cannot be 0"):
        written(tmp_path, grpo, method="grpo", processes=0)


@pytest.mark.parametrize(
    ("value", "mode"), [("offload", "full"), ("unsloth", "full"), ("true", "full"), ("no", "none")]
)
def test_checkpoints_of_axolotl_that_are_offloaded_are_checkpoints(tmp_path, value, mode):
    text = f"base_model: m\nrl: dpo\nlearning_rate: 1e-5\ngradient_checkpointing: {value}\ndatasets: [{{path: a/b}}]\n"
    assert written(tmp_path, text).settings["activation_checkpointing"] == mode


def test_ranks_of_axolotl_that_share_matrices_do_not_multiply_the_batch(tmp_path):
    text = "base_model: m\nrl: dpo\nlearning_rate: 1e-5\nmicro_batch_size: 4\ndatasets: [{path: a/b}]\n"
    settings = written(tmp_path, text + "tensor_parallel_size: 2\n", processes=8).settings
    assert settings["tensor_parallel"] == 2
    assert settings["batch_size"] == 4 * 4  # four of the eight processes have their own rows
    assert written(tmp_path, text, processes=8).settings["batch_size"] == 32


def test_the_command_prints_writes_and_refuses_to_overwrite(tmp_path, capsys):
    out = tmp_path / "run.yaml"
    assert cli.main(["import", str(FIXTURES / "llamafactory/dpo_full_ftx.yaml"), "--out", str(out)]) == 1
    assert "max_samples: 1000" in capsys.readouterr().out
    assert config.load(out).data == str(tmp_path / "run.data.yaml")
    assert mixture_of(tmp_path / "run.data.yaml").sources[1].columns["chosen"] == "liked"
    assert cli.main(["import", str(FIXTURES / "trl/dpo_defaults.yaml"), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert cli.main(["import", str(FIXTURES / "trl/dpo_defaults.yaml"), "--out", str(out), "--force"]) == 0
    assert config.load(out).method == "dpo"
    capsys.readouterr()
    assert cli.main(["import", str(FIXTURES / "trl/dpo_mixture.yaml"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["peer"] == "TRL"
    assert facts["complete"] is True
    assert cli.main(["import", str(FIXTURES / "axolotl/dpo_two_sets.yaml")]) == 1
    assert yaml.safe_load(capsys.readouterr().out)["chat_template"] == "chatml"
