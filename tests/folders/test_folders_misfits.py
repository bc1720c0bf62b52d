"""Folders that do not fit their use: commands x misfits, each refused by name with exit code 2."""

import json
import shutil
from pathlib import Path

import helpers_folders as make
import pytest
import torch
import yaml
from helpers_runs import pair_file
from safetensors import safe_open
from safetensors.torch import load_file

from afzal.cli import main
from afzal.errors import AfzalError
from afzal.folders import kinds
from afzal.model.load import context_tokens, load_model, load_tokenizer, save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("misfits")
    make.bases(root)
    pair_file(root / "pairs.jsonl", 8)
    (root / "rewards.py").write_text("def length(prompt, answer):\n    return float(len(answer))\n")
    compared = {"data": str(root / "pairs.jsonl"), "prompts": str(root / "pairs.jsonl"), "sample_tokens": 4}
    compared |= {"rewards": {"length": f"{root}/rewards.py:length"}, "methods": [{"name": "best", "best_of": 2}]}
    (root / "compare.yaml").write_text(yaml.safe_dump(compared))
    return root


TRAIN = ["--max-steps", "1", "--batch-size", "4", "--sample-prompts", "0", "--eval-fraction", "0"]
# a command line for each use of a folder; {bad} is the folder, the others are good
COMMANDS = {
    "check": "check {pairs} --model {bad}",
    "plan": "plan dpo --model llama-3.2-1b --tokenizer {bad} --data {pairs}",
    "sft": "train sft --model {bad} --data {pairs} --out {out} TRAIN",
    "dpo": "train dpo --model {bad} --data {pairs} --out {out} TRAIN",
    "reference": "train dpo --model {model} --reference {bad} --data {pairs} --out {out} TRAIN",
    "reward": "train reward --model {bad} --data {pairs} --out {out} --max-steps 1 --batch-size 4",
    "ppo": "train ppo --model {bad} --reward {rewards} --data {pairs} --out {out} --sample-tokens 4",
    "ppo by": "train ppo --model {model} --reward {bad} --data {pairs} --out {out} --sample-tokens 4",
    "value": "train ppo --model {model} --reward {rewards} --value-model {bad} --data {pairs} --out {out}",
    "generate": "generate --model {bad} --prompt Q1 --max-new-tokens 4",
    "score": "score --model {bad} --data {pairs}",
    "score policy": "score --policy {bad} --reference {model} --data {pairs}",
    "score reference": "score --policy {model} --reference {bad} --data {pairs}",
    "export": "export {bad} --out {out}",
    "iterate": "iterate --model {bad} --prompts {pairs} --reward {rewards} --out {out} --max-new-tokens 4",
    "compare": "compare {compare} model={bad} out={out}",
}
POLICIES = ["sft", "dpo", "ppo", "generate", "iterate", "compare", "score policy"]
JUDGES = ["ppo by", "value", "score"]
SECOND = ["reference", "score reference"]
TOKENS = ["check", "plan"]
ALL, NAN = [*POLICIES, *SECOND, "reward"], float("nan")
Q, NORM, HEAD = "layers.1.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"
QB = "layers.1.self_attn.q_proj.lora_B"
# name: (the good folder, its modification, the expected message, the commands)
MISFITS = {
    "a tensor missing": ("model", make.without(Q), Q, ALL),
    "the head missing": ("model", make.without(HEAD), HEAD, [*POLICIES, *SECOND]),
    "a layer missing": ("model", make.without("layers.1."), "layers.1.", ALL),
    "all missing": ("model", make.without("model."), "num_hidden_layers is 2; number of weight tensors: 1", ALL),
    "another shape": ("model", make.reshaped(Q), Q, ALL),
    "a tensor too many": ("model", make.added("model.extra.weight"), "model.extra.weight", [*POLICIES, "reward"]),
    "NaN": ("model", make.with_value(NORM, NAN), f"{NORM} has NaN (1 of 32", ALL),
    "infinity": ("model", make.with_value(Q, float("inf")), f"{Q} has an infinity (1 of", [*POLICIES, "reward"]),
    "too many tokens": ("model", make.more_tokens, "<NEW1>", [*ALL, *TOKENS]),
    "another tokenizer": ("model", make.other_tokens, "another tokenizer", SECOND),
    "quantised": ("model", make.says(quantization_config={"quant_method": "awq"}), "awq", [*ALL, "check"]),
    "a reward model as policy": ("reward", lambda folder: None, "is a reward model", [*POLICIES, *SECOND]),
    "a policy as reward model": ("model", lambda folder: None, "is a language model", JUDGES),
    "a reward head missing": ("reward", make.without("score"), "no reward head", [*JUDGES, "reward"]),
    "a reward head too many": ("model", make.added("score.weight"), "a reward head", [*JUDGES, "reward"]),
    "a reward tensor missing": ("reward", make.without(Q), Q, [*JUDGES, "reward"]),
    "a reward head of NaN": ("reward", make.with_value("score", NAN), "score.weight has NaN", [*JUDGES, "reward"]),
    "two labels": ("reward", make.weights(lambda w: {**w, "score.weight": torch.ones(2, 32)}), "2x32", JUDGES),
    "an adapter tensor missing": ("adapter", make.without(QB), QB, [*POLICIES, "export"]),
    "an adapter layer missing": ("adapter", make.without("layers.1."), "lacks base_model", [*POLICIES, "export"]),
    "an adapter of NaN": ("adapter", make.with_value("lora_A", NAN), "NaN", [*POLICIES, "export"]),
    "an adapter of another base": (
        "adapter",
        lambda folder: make.edit(folder, "adapter_config.json", base_model_name_or_path=str(folder.parent / "wide")),
        "2x64 in the model",
        [*POLICIES, "export"],
    ),
    "an adapter's tokenizer": ("adapter", make.more_tokens, "<NEW1>", [*POLICIES, *TOKENS, "export"]),
    "an adapter of a reward model": (
        "adapter", make.says("adapter_config.json", task_type="SEQ_CLS"), "of a reward model", [*POLICIES, "export"]
    ),
}  # fmt: skip
TABLE = [(command, misfit) for misfit, (*_, commands) in MISFITS.items() for command in commands]
SOME = [(commands[k % len(commands)], misfit) for k, (misfit, (*_, commands)) in enumerate(MISFITS.items())]


def refused(place: Path, command: str, misfit: str, capsys) -> None:
    base, hurt, named, _ = MISFITS[misfit]
    bad, out = make.copy(place, base, "bad", hurt), place / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = {"bad": bad, "out": out, "model": place / "model", "pairs": place / "pairs.jsonl"}
    words |= {"rewards": f"{place}/rewards.py:length", "compare": place / "compare.yaml"}
    line = [
        part for word in COMMANDS[command].split() for part in (TRAIN if word == "TRAIN" else [word.format(**words)])
    ]
    code, said = main(line), capsys.readouterr().err
    assert code == 2, said
    assert named in said
    assert "bug of Afzal" not in said


@pytest.mark.parametrize(("command", "misfit"), SOME)
def test_every_misfit_is_refused_by_name(place, command, misfit, capsys):
    refused(place, command, misfit, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "misfit"), [pair for pair in TABLE if pair not in SOME])
def test_every_misfit_is_refused_in_every_command_that_it_concerns(place, command, misfit, capsys):
    refused(place, command, misfit, capsys)


def test_the_table_names_every_command():
    assert {command for command, _ in TABLE} == COMMANDS.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_good_folders_load_whether_heads_are_tied_or_not(tmp_path, tied):
    folder = make.model_folder(tmp_path / "model", tie_word_embeddings=tied)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
    model = load_model(str(folder))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) is tied


def test_old_buffers_next_to_the_weights_are_no_misfit(place):
    """Llama folders from 2023 contain the rotary frequencies of every layer."""
    old = make.copy(place, "model", "old", make.added("model.layers.0.self_attn.rotary_emb.inv_freq"))
    assert load_model(str(old)).config.model_type == "llama"


# --- vocabularies of adapters ---


def enlarged(place: Path, name: str) -> Path:
    """An adapter whose base was enlarged by two rows before training, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(place / "model"),
        AutoModelForCausalLM.from_pretrained(place / "model"),
    )
    tokenizer.add_tokens(["<NEW1>", "<NEW2>"])
    model.resize_token_embeddings(len(tokenizer))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        place / name
    )
    tokenizer.save_pretrained(place / name)
    return place / name


def test_an_adapter_that_brings_a_larger_embedding_gets_its_base_enlarged(place, tmp_path):
    folder = enlarged(place, "enlarged")
    rows = len(load_tokenizer(str(folder)))
    model = load_model(str(folder))
    saved = load_file(folder / "adapter_model.safetensors")
    assert model.get_input_embeddings().num_embeddings == rows == kinds.saved_rows(folder)
    assert torch.equal(model.get_input_embeddings().weight, saved["base_model.model.model.embed_tokens.weight"])
    assert torch.equal(model.get_output_embeddings().weight, saved["base_model.model.lm_head.weight"])
    save_model(model, load_tokenizer(str(folder)), tmp_path / "again")
    assert load_model(str(tmp_path / "again")).get_input_embeddings().num_embeddings == rows


def test_an_enlarged_head_that_was_not_saved_is_not_made_up(place):
    folder = make.copy(place, enlarged(place, "enlarged").name, "headless", make.without("lm_head"))
    with pytest.raises(AfzalError, match=r"lacks base_model\.model\.lm_head\.weight"):
        load_model(str(folder))


def test_an_adapter_of_a_smaller_vocabulary_is_refused_with_both_sizes(place):
    smaller = make.copy(place, enlarged(place, "enlarged").name, "smaller", lambda folder: None)
    make.weights(lambda w: {k: v[:9].contiguous() if "embed" in k or "head" in k else v for k, v in w.items()})(smaller)
    with pytest.raises(AfzalError, match=r"9 rows, and the base model's has 259"):
        load_model(str(smaller))


# --- the kind of a folder, and the location of its base ---


def test_a_model_configuration_next_to_an_adapter_leaves_it_an_adapter(place):
    """Some trainers write it; the weights decide."""
    both = make.copy(place, "adapter", "with-config", lambda f: shutil.copy(place / "model" / "config.json", f))
    assert load_model(str(both)).peft_config
    assert context_tokens(str(both)) == 256


def test_a_complete_model_and_an_adapter_in_one_folder_are_refused(place):
    both = make.copy(place, "adapter", "both", lambda f: shutil.copytree(place / "model", f, dirs_exist_ok=True))
    with pytest.raises(AfzalError, match="a whole model and an adapter"):
        load_model(str(both))


def test_adapter_weights_alone_are_refused_with_what_they_lack(place):
    alone = make.copy(place, "adapter", "alone", lambda f: (f / "adapter_config.json").unlink())
    with pytest.raises(AfzalError, match=r"it has no adapter_config\.json"):
        load_model(str(alone))


def test_a_base_is_found_from_the_adapters_folder_and_from_the_current_one(place, tmp_path, monkeypatch):
    base = lambda name: make.says("adapter_config.json", base_model_name_or_path=name)  # noqa: E731
    beside = make.copy(place, "adapter", "beside", base("../model"))
    monkeypatch.chdir(tmp_path)
    assert kinds.base_of(beside) == str(place / "model")
    typed = make.copy(place, "adapter", "typed", base("model"))
    monkeypatch.chdir(place)
    assert kinds.base_of(typed) == str(place / "model")
    monkeypatch.chdir(tmp_path)
    assert kinds.base_of(typed) == "model"  # which could be the name of a hub model
    with pytest.raises(AfzalError, match="no such folder here or next to the adapter"):
        load_model(str(typed))


def test_a_base_that_is_two_folders_is_refused(place, tmp_path, monkeypatch):
    typed = make.copy(place, "adapter", "typed", make.says("adapter_config.json", base_model_name_or_path="model"))
    shutil.copytree(place / "model", typed / "model")
    monkeypatch.chdir(place)
    with pytest.raises(AfzalError, match="may be either of two folders"):
        kinds.base_of(typed)


def test_a_saved_adapter_names_its_base_by_its_full_path(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    first, second = (["train", "sft", "--data", "pairs.jsonl", "--out", str(tmp_path / run), *TRAIN] for run in "12")
    assert main([*first, "--model", "model", "--lora-rank", "2"]) == 0
    assert main([*second, "--model", str(tmp_path / "1")]) == 0
    monkeypatch.chdir(tmp_path)
    for run in "12":
        about = json.loads((tmp_path / run / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == str(place / "model")
        load_model(run)


def test_an_adapter_with_a_relative_base_path_is_saved_with_the_full_path(place, tmp_path, monkeypatch):
    beside = make.copy(place, "adapter", "beside", make.says("adapter_config.json", base_model_name_or_path="../model"))
    monkeypatch.chdir(tmp_path)
    save_model(load_model(str(beside)), load_tokenizer(str(beside)), tmp_path / "saved")
    assert kinds.base_of(tmp_path / "saved") == str(place / "model")


@pytest.mark.parametrize(
    ("hurt", "named"),
    [
        (make.without("prompt"), "prompt_embeddings"),
        (make.with_value("prompt", NAN), "has NaN (1 of 4 rows)"),
        (make.reshaped("prompt"), "[4, 32]"),
    ],
)
def test_a_copied_adapter_is_inspected_like_a_merged_one(place, hurt, named, tmp_path, capsys):
    """Virtual tokens cannot be merged, so export copies them."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / "model")
    made = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    made.save_pretrained(place / "virtual")
    shutil.copy(place / "model" / "tokenizer.json", place / "virtual")
    shutil.copy(place / "model" / "tokenizer_config.json", place / "virtual")
    assert main(["export", str(place / "virtual"), "--out", str(tmp_path / "good")]) == 0
    bad = make.copy(place, "virtual", "bad", hurt)
    assert main(["export", str(bad), "--out", str(tmp_path / "bad")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/x/.cache/huggingface/hub/models--org--name/snapshots/0abc", "org/name"),
        ("/cache/models--gpt2/snapshots/0abc", "gpt2"),
        ("org/name", "org/name"),
    ],
)
def test_a_base_from_the_hub_keeps_its_id(path, name):
    assert kinds.stored_name(path) == name


# --- misfits that would show only at the end of a run, or never ---


@pytest.mark.parametrize("more", [[], ["--lora-rank", "2"]], ids=["whole", "adapter"])
def test_generation_settings_that_are_read_and_not_written_do_not_end_a_run(place, more, tmp_path):
    """As in folders from 2023: a temperature without sampling."""
    old = make.says("generation_config.json", temperature=0.6, top_p=0.9, do_sample=False)
    folder, out = make.copy(place, "model", "old", old), tmp_path / "run"
    line = ["train", "sft", "--model", str(folder), "--data", str(place / "pairs.jsonl"), "--out", str(out)]
    assert main([*line, *more, *TRAIN]) == 0
    written = json.loads((out / "generation_config.json").read_text())
    assert (written["temperature"], written["top_p"], written["do_sample"]) == (0.6, 0.9, True)


def test_generation_settings_that_cannot_be_written_are_refused_before_a_run(place):
    bad = make.copy(place, "model", "bad", make.says("generation_config.json", num_beams=1, num_return_sequences=4))
    with pytest.raises(AfzalError, match="num_return_sequences"):
        load_model(str(bad))


def test_packed_weights_that_the_configuration_does_not_mention_are_reported_as_such(place):
    """As GPTQ writes them: other names, integers."""

    def pack(tensors):
        return {
            k.replace("_proj.weight", "_proj.qweight"): (v * 100).int() if "_proj" in k else v
            for k, v in tensors.items()
        }

    packed = make.copy(place, "model", "packed", make.weights(pack))
    with pytest.raises(AfzalError, match="packed or quantised weights in their place"):
        load_model(str(packed))


def test_a_model_in_memory_needs_rows_for_its_tokenizer_too(place, tmp_path):
    import afzal

    tokenizer = load_tokenizer(str(place / "model"))
    tokenizer.add_tokens(["<NEW1>"])
    given = {"model": load_model(str(place / "model")), "tokenizer": tokenizer}
    with pytest.raises(AfzalError, match="<NEW1>"):
        afzal.fit("sft", **given, data=str(place / "pairs.jsonl"), out=str(tmp_path / "run"))
