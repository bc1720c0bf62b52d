"""Answers token by token: streamed tokens equal the samples; a chat's votes work in aggregate and train."""

from __future__ import annotations

import io
import json
import shutil
from threading import Event

import pytest
import torch
from helpers_models import make
from helpers_runs import model_folder
from helpers_tokenizers import byte_tokenizer

from afzal import data, runs
from afzal.cli import main
from afzal.config import ChatConfig
from afzal.generate import Sampling, sample
from afzal.generate.chat import ChatModel, StreamedText, names_of, start_of
from afzal.records import Message
from afzal.tokens import Speaker

PROMPTS = [[5, 6, 7, 8, 9], [12, 13]]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("decoding", ["shared", "stock"])
def test_streamed_tokens_are_the_samples(decoding):
    heard: dict[tuple[int, int], list[int]] = {}
    samples = sample(
        make("llama"),
        PROMPTS,
        eos=list(range(2, 12)),  # rows end at different steps
        n=3,
        sampling=Sampling(max_new_tokens=12),
        decoding=decoding,
        on_token=lambda row, token: heard.setdefault((row.prompt, row.sample), []).append(token),
    )
    assert len({len(s.ids) for s in samples}) > 1
    assert [heard[s.prompt_index, k % 3] for k, s in enumerate(samples)] == [s.ids.tolist() for s in samples]


def test_a_listener_may_end_the_decoding_and_leaves_the_model_unchanged():
    model = make("llama")
    plain = sample(model, PROMPTS, eos=[2], sampling=Sampling(max_new_tokens=6))
    attention = model.config._attn_implementation

    def enough(row, token):
        raise KeyboardInterrupt

    for decoding in ("shared", "stock"):
        with pytest.raises(KeyboardInterrupt):
            sample(model, PROMPTS, eos=[2], sampling=Sampling(max_new_tokens=6), decoding=decoding, on_token=enough)
        assert model.config._attn_implementation == attention
    again = sample(model, PROMPTS, eos=[2], sampling=Sampling(max_new_tokens=6))
    assert [s.ids.tolist() for s in again] == [s.ids.tolist() for s in plain]


def test_a_character_is_held_back_until_all_its_bytes_are_there():
    tokenizer = byte_tokenizer()
    ids = tokenizer("so ʻé", add_special_tokens=False)["input_ids"]
    told, shown = [], ""
    text = StreamedText(Speaker(tokenizer), [5], lambda keep, more: told.append((keep, more)))
    for k, token in enumerate(ids):
        text.add(token)
        shown = "".join(more for _, more in told)
        assert "\ufffd" not in shown, k
    assert shown == "so ʻé"
    assert all(keep == len("".join(m for _, m in told[:k])) for k, (keep, _) in enumerate(told))


@pytest.fixture
def chatting(tmp_path):
    """A run with a chat template and the model that it started from, whose weights differ."""
    start, run = model_folder(tmp_path / "start"), tmp_path / "run"
    (start / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copytree(start, run)
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "model.safetensors")
    save_file({name: w + 0.05 * torch.randn_like(w) for name, w in weights.items()}, run / "model.safetensors")
    (run / "run.json").write_text(json.dumps({"afzal": "0", "status": "finished", "model": {"path": str(start)}}))
    return run


def test_a_partner_answers_the_same_however_often_and_stops_when_told(chatting):
    config = ChatConfig(model=str(chatting), max_new_tokens=24)
    one = ChatModel(str(chatting), "one", config)
    assert not one.continues_text
    turns = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "and?"))
    grown = ""

    def hear(keep, text):
        nonlocal grown
        grown = grown[:keep] + text

    said = one.answer(turns, 3, hear, Event())
    assert said.text == grown
    assert said == one.answer(turns, 3, lambda keep, text: None, Event())
    assert said != one.answer(turns, 4, lambda keep, text: None, Event())
    asked = one.speaker.renderer
    assert asked is not None
    told, stop = [], Event()

    def enough(keep, text):
        told.append(text)
        stop.set()

    cut = one.answer(turns, 3, enough, stop)
    assert cut.stop == "stopped"
    assert said.text.startswith(cut.text)
    assert 0 < cut.tokens < said.tokens


def test_the_default_partner_is_where_the_run_started(chatting, tmp_path):
    assert start_of(str(chatting)) == str(tmp_path / "start")
    shutil.rmtree(tmp_path / "start")
    assert start_of(str(chatting)) is None
    assert start_of(str(tmp_path)) is None
    assert names_of(["a", "a"]) == ["a", "a (again)"]


def test_blind_votes_go_through_aggregate_and_train(chatting, tmp_path, monkeypatch, capsys):
    keys = ["1", "2", "0", "9", "1", "2"]
    lines = [line for k, key in enumerate(keys) for line in (f"question {k}", key, "/new")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    arguments = ["chat", "run", "--blind", "--max-new-tokens", "8", "--annotator", "ann", "--top-k", "40"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("better? 1, 2") == 6
    assert "run over start: " in said
    assert "1 equal, 1 both bad" in said
    assert "next: afzal aggregate run.chat" in said
    items = data.read(tmp_path / "run.chat").items
    outcomes = [vote.outcome for item in items for vote in item.votes]
    assert len(outcomes) == 6
    assert outcomes.count("tie") == outcomes.count("both_bad") == 1
    assert items[0].extra["sampling"]["top_k"] == 40
    assert main(["aggregate", "run.chat"]) == 0
    assert "5" in capsys.readouterr().out
    train = [
        "train",
        "dpo",
        "--model",
        "run",
        "--data",
        "run.chat",
        "--out",
        "out",
        "--epochs",
        "1",
        "--batch-size",
        "2",
    ]
    assert main([*train, "--eval-fraction", "0", "--sample-prompts", "0"]) == 0
    facts = runs.open_run(tmp_path / "out").facts()
    assert facts["status"] == "finished"
    assert facts["chat"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alone", "--blind"], "blind has no effect"),
        (["--port", "80"], "port has no effect"),
        (["--out", "x"], "out has no effect"),
        (["--temperature", "0", "--top-k", "3"], "no effect at temperature 0"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(chatting, capsys, arguments, said):
    assert main(["chat", str(chatting), *arguments]) == 2
    assert said in capsys.readouterr().err
