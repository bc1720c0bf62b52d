"""Positions: no prompt is cut, no answer exceeds the model's last position, and NaN logits are reported."""

import json
import math

import pytest
import torch
from helpers_folders import bases, copy, says
from helpers_runs import model_folder, pair_file
from transformers import GPT2Config, GPT2LMHeadModel

from afzal import config, recipes, runs
from afzal.cli import main
from afzal.compare import compare
from afzal.errors import AfzalError
from afzal.generate import Sampling, answer_limits, sample
from afzal.generate.token_sampling import draw_tokens

POSITIONS = 16
PROMPTS = [[5] * 12, [6] * 3, [7] * 15, [8] * 12, [9] * 9]
WAYS = ["shared", "stock"]


@pytest.fixture(scope="module")
def learned() -> GPT2LMHeadModel:
    """A GPT-2: its positions are table rows, so one too many is an error in the library."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).eval()


def test_the_limits_by_hand():
    assert answer_limits([12, 3, 15], 8, 16) == [4, 8, 1]
    assert answer_limits([12, 3, 15], 8, None) == [8, 8, 8]
    assert answer_limits([], 8, 16) == []


def test_a_prompt_that_fills_the_model_is_refused_by_its_number_and_length():
    with pytest.raises(AfzalError, match=r"prompt 1 has 16 tokens, and the model has 16 positions.*1 more"):
        answer_limits([3, 16, 20], 8, 16)


@pytest.mark.parametrize("way", WAYS)
def test_answers_end_at_the_last_position(learned, way):
    drawn = sample(learned, PROMPTS, eos=[], n=2, sampling=Sampling(10), decoding=way)
    assert [len(s.ids) for s in drawn] == [4, 4, 10, 10, 1, 1, 4, 4, 7, 7]
    assert {s.stop for s in drawn} == {"length"}
    assert [s.prompt_index for s in drawn] == [i for i in range(5) for _ in range(2)]


@pytest.mark.parametrize("way", WAYS)
def test_a_shorter_limit_gives_the_beginning_of_the_same_answers(learned, way):
    whole = sample(learned, PROMPTS, eos=[1], n=2, sampling=Sampling(10), decoding=way)
    begun = sample(learned, PROMPTS, eos=[1], n=2, sampling=Sampling(3), decoding=way)
    assert [s.ids[:3].tolist() for s in whole] == [s.ids.tolist() for s in begun]


def test_both_decoding_methods_agree_at_the_limit(learned):
    shared, stock = (sample(learned, PROMPTS, eos=[1], n=3, sampling=Sampling(9), decoding=way) for way in WAYS)
    assert [s.ids.tolist() for s in shared] == [s.ids.tolist() for s in stock]


def test_a_prompt_without_room_is_refused_before_anything_is_drawn(learned):
    with pytest.raises(AfzalError, match="prompt 1 has 16 tokens"):
        sample(learned, [[5], [5] * POSITIONS], eos=[], sampling=Sampling(1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_logits_that_are_no_numbers_are_the_models_fault(learned, way, temperature):
    """From the third token on, as in a model that overflows on longer texts."""

    def spoil(_module, arguments, out):
        late = arguments[0].shape[1] == 1 and len(calls) > 2
        calls.append(1)
        return out * math.nan if late else out

    calls: list[int] = []
    sample(learned, [[5]], eos=[], sampling=Sampling(1), decoding=way)  # the trial of the decoding method is over
    hook = learned.lm_head.register_forward_hook(spoil)
    try:
        with pytest.raises(AfzalError, match="log-probs are not numbers"):
            sample(learned, [[5, 6]], eos=[], sampling=Sampling(9, temperature=temperature), decoding=way)
    finally:
        hook.remove()


def test_a_row_of_nan_disturbs_no_other_row():
    logits = torch.stack([torch.full((300,), math.nan), torch.zeros(300)])
    tokens, logps = draw_tokens(logits, torch.tensor([0.5, 0.502], dtype=torch.float64), Sampling())
    assert tokens[1] == 150
    assert logps[1] == pytest.approx(-math.log(300))
    assert logps[0].isnan()
    assert 0 <= tokens[0] < 300


# --- the commands ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of 64 positions, one byte a token, and pairs."""
    root = tmp_path_factory.mktemp("positions")
    model_folder(root / "model", max_position_embeddings=64)
    pair_file(root / "pairs.jsonl", 12)
    (root / "rewards.py").write_text("def length(prompt, answer):\n    return float(len(answer))\n")
    return root


def test_generate_reads_the_whole_prompt_and_says_where_the_answer_must_end(place, capsys):
    line = ["generate", "--model", str(place / "model"), "--prompt", "x" * 60, "--temperature", "0"]
    assert main([*line, "--max-new-tokens", "3"]) == 0
    short = capsys.readouterr()
    assert "note: answers" not in short.err
    assert main([*line, "--max-new-tokens", "64"]) == 0
    long = capsys.readouterr()
    assert long.out.startswith(short.out.rstrip("\n"))
    assert "after at most 4 tokens, not 64: the model has 64 positions" in long.err


def test_generate_refuses_a_prompt_longer_than_the_model(place, capsys):
    assert main(["generate", "--model", str(place / "model"), "--prompt", "x" * 70]) == 2
    assert "prompt 0 has 70 tokens, and the model has 64 positions" in capsys.readouterr().err


def test_samples_of_a_run_end_at_the_last_position(place, tmp_path):
    given = {"model": str(place / "model"), "data": str(place / "pairs.jsonl"), "out": str(tmp_path / "run")}
    recipes.train(config.make("sft", **given, max_steps=1, batch_size=4, sample_tokens=200, sample_prompts=2))
    rows = list(runs.read_jsonl(tmp_path / "run" / "samples.jsonl"))
    assert rows
    assert all(len(row["prompt"].encode()) + row["tokens"] <= 64 for row in rows)


def test_compare_refuses_to_cut_a_prompt(place, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": "x" * n}) + "\n" for n in (5, 6, 60)))
    made = config.build(
        config.CompareConfig,
        [
            config.Setting(key, value)
            for key, value in {
                "model": str(place / "model"),
                "data": str(place / "pairs.jsonl"),
                "prompts": str(tmp_path / "prompts.jsonl"),
                "out": str(tmp_path / "out"),
                "rewards": {"length": f"{place}/rewards.py:length"},
                "methods": [{"name": "best", "best_of": 2}],
                "sample_tokens": 8,
            }.items()
        ],
    )
    with pytest.raises(AfzalError, match="1 of 3 prompts have more than 56 tokens"):
        compare(made)


def test_a_reference_with_fewer_positions_is_refused(tmp_path, capsys):
    bases(tmp_path)
    pair_file(tmp_path / "pairs.jsonl", 8)
    short = copy(tmp_path, "model", "short", says(max_position_embeddings=24))
    line = ["train", "dpo", "--model", str(tmp_path / "model"), "--reference", str(short)]
    assert main([*line, "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run")]) == 2
    assert "has 24 positions, and sequences may have 256 tokens" in capsys.readouterr().err
