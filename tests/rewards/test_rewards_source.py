"""Reward sources: one interface to functions and reward models, and the messages if one cannot be loaded."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_runs import model_folder
from helpers_tokenizers import byte_tokenizer

from afzal.compare import measure
from afzal.config import ScoreConfig
from afzal.errors import AfzalError
from afzal.iterate import stages
from afzal.iterate.prompts import Question
from afzal.model.probe import choose_sharing
from afzal.model.reward import head_scores, load_reward_model, save_reward_model
from afzal.records import Item, Message, Response
from afzal.rewards.assess import score_items
from afzal.rewards.score import _cut, score
from afzal.rewards.source import _Reader, by_text, reward_source
from afzal.tokens import Speaker
from afzal.train.feed import Layout

SOURCE = """
def length(prompt, answer):
    return len(answer) - 0.5 * len(prompt)

def nothing(prompt, answer):
    return float("nan") if "no" in answer else 1.0

def broken(prompt, answer):
    return 1 / 0

number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards")
    (path / "mine.py").write_text(SOURCE)
    model_folder(path / "model")
    made = load_reward_model(str(path / "model"), heads=2)
    save_reward_model(made, byte_tokenizer(), path / "judge", shift=0.25)
    return path


def test_a_function_of_a_file_and_of_a_module(folder, monkeypatch):
    prompts, answers = ["ab", "abcd"], ["xyz", ""]
    assert reward_source(f"{folder}/mine.py:length")(prompts, answers) == [2.0, -2.0]
    monkeypatch.chdir(folder)
    assert reward_source("mine:length")(prompts, answers) == [2.0, -2.0]


def test_of_a_conversation_a_function_gets_the_words():
    asked = (Message("system", "Be brief."), Message("user", "Hi"))
    seen = []
    by_text(lambda prompt, answer: seen.append((prompt, answer)) or 0.0)([asked], ["yes"])
    assert seen == [("Be brief.\n\nHi", "yes")]


def test_a_reward_that_is_no_number_names_the_prompt_and_the_answer(folder):
    source = reward_source(f"{folder}/mine.py:nothing")
    assert source(["why"], ["yes"]) == [1.0]
    with pytest.raises(AfzalError, match=r"(?s)prompt 'why', answer 'no way'.*the reward is nan"):
        source(["why", "why"], ["yes", "no way"])
    with pytest.raises(AfzalError, match=r"(?s)prompt 'why', answer 'yes'.*ZeroDivisionError"):
        reward_source(f"{folder}/mine.py:broken")(["why"], ["yes"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine.py:absent", "no function 'absent'"),
        ("mine.py:number", "no function 'number'"),
        ("other.py:f", "there is no file"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("./nowhere", "does not exist"),
    ],
)
def test_what_is_not_there_is_said_with_a_way_out(folder, monkeypatch, spec, said):
    monkeypatch.chdir(folder)
    with pytest.raises(AfzalError, match=f"(?s){said}.*try: "):
        reward_source(spec)


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(AfzalError, match="is a language model, not a reward model"):
        reward_source(str(folder / "model"))


def test_a_reward_model_gives_its_mean_head_less_its_shift(folder):
    """Against the model itself, one answer at a time; an empty answer consists of its end mark."""
    prompts = ["why?", "why?", "how so?", "why?"]
    answers = [" yes", " because it is so", " no", ""]
    scores = reward_source(str(folder / "judge"))(prompts, answers)
    model, tokenizer = load_reward_model(str(folder / "judge")), byte_tokenizer()
    assert scores == pytest.approx(
        [_alone(model, tokenizer, p + a) - 0.25 for p, a in zip(prompts, answers, strict=True)], abs=1e-5
    )
    assert all(math.isfinite(x) for x in scores)


def test_an_answer_that_was_cut_is_read_without_an_end_mark(folder):
    """Read as written. An answer without tokens keeps its mark, since there is no other position for the score."""
    prompts, answers, ended = ["why?"] * 4, [" yes", " because it is", " because it is", ""], [True, False, True, False]
    source = reward_source(str(folder / "judge"))
    model, tokenizer = load_reward_model(str(folder / "judge")), byte_tokenizer()
    alone = [_alone(model, tokenizer, f"why?{a}", end=e or not a) for a, e in zip(answers, ended, strict=True)]
    scores = source(prompts, answers, ended)
    assert scores == pytest.approx([x - 0.25 for x in alone], abs=1e-5)
    assert abs(scores[1] - scores[2]) > 1e-3
    assert source(prompts, answers, [True] * 4) == source(prompts, answers) != scores


def test_a_run_that_named_its_end_mark_is_read_with_it(folder, tmp_path):
    """Trained with "!" after every answer, it is read with "!" too, unless the caller names another end."""
    judge = tmp_path / "run"
    shutil.copytree(folder / "judge", judge)
    (judge / "run.yaml").write_text("method: reward\neos_token: '!'\n")
    marked, plain = reward_source(str(judge)), reward_source(str(folder / "judge"))
    asked = (["why?"], [" yes"])
    assert marked(*asked) == reward_source(str(folder / "judge"), eos_token="!")(*asked)
    assert abs(marked(*asked)[0] - plain(*asked)[0]) > 1e-4
    own = byte_tokenizer().eos_token
    assert reward_source(str(judge), eos_token=own)(*asked) == plain(*asked)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "why?", "chosen": " yes", "rejected": " no"}\n')
    out = tmp_path / "scores.jsonl"
    score(ScoreConfig(model=str(judge), data=str(rows), out=str(out), device="cpu"))
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["response"], first["score"]) == (" yes", pytest.approx(marked(*asked)[0], abs=1e-5))


def test_a_text_that_no_data_would_hold_is_read_as_it_was_cut(folder):
    """Its tokens do not survive a round trip, so it takes another path; a spelled-out end mark is text there too."""
    tokenizer = byte_tokenizer()
    reader = _reader(str(folder / "judge"))
    rows = [("why?", " so", True), ("why?", " so", False)]
    model = load_reward_model(str(folder / "judge"))
    expected = [_alone(model, tokenizer, "why? so", end=end) - 0.25 for end in (True, False)]
    assert reader._unread(rows, 100) == pytest.approx(expected, abs=1e-5)


def _reader(spec: str) -> _Reader:
    model = load_reward_model(spec)
    layout = Layout(choose_sharing(model)[0], 1000, torch.device("cpu"))
    return _Reader(lambda batch: head_scores(model, batch) - 0.25, Speaker(byte_tokenizer()), layout, 100)


def test_a_conversation_s_answer_loses_the_mark_of_its_template():
    """Of two answers, the one that was cut: its branch ends with its last word's token."""
    tokenizer = byte_tokenizer()
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.chat_template = template
    asked = (Message("user", "Hi"),)
    item = Item("a", asked, tuple(Response((Message("assistant", words),)) for words in ("yes", "no, since")))
    seen = []

    def score(batch):
        seen.extend(t.branches[k].ids.tolist() for t, k in batch.sources)
        return torch.zeros(batch.n_responses, 1)

    layout = Layout("unshared", 1000, torch.device("cpu"))
    scored, _ = score_items(score, [item], Speaker(tokenizer), layout, max_tokens=100, cut={(0, 1)})
    assert tokenizer.eos_token_id in seen[0]
    assert tokenizer.decode(seen[1]) == "no, since"
    assert scored[0].lengths.tolist() == [4, 9]


def test_rounds_and_comparisons_say_which_answers_ended():
    heard = []

    def give(prompts, answers, ended=None, columns=None):
        heard.append((list(answers), list(ended)))
        return [0.0] * len(answers)

    row = {"prompt_index": 0, "sample": 0, "prompt": "why", "text": "a", "stop": "eos"}
    asked = SimpleNamespace(groups=[[Question("why", ())]], per_round=1)
    settings = SimpleNamespace(reward="file.py:give", reuse_prompts=False)
    job = SimpleNamespace(config=settings, sources={"reward": give}, cost=None, questions=asked)
    stages._scores(job, [row, row | {"text": "b", "stop": "length"}], 1)
    bench = SimpleNamespace(prompts=["why", "how"], columns=[{}, {}])
    unended = np.array([[False, True], [True, False]])
    measure._rewards(bench, [["a", "b"], ["c", "d"]], unended, {"mine": give})
    assert heard == [(["a", "b"], [True, False]), (["a", "b", "c", "d"], [True, False, False, True])]


def test_the_answers_of_a_generated_file_are_cut_where_it_says_so():
    answer = (Response("x"),)
    items = [Item("0", "a", answer, extra={"stop": "length"}), Item("1", "a", answer, extra={"stop": "eos"})]
    assert _cut([*items, Item("2", "a", answer)]) == {(0, 0)}


def _alone(model, tokenizer, text: str, *, end: bool = True) -> float:
    ids = [*tokenizer(text)["input_ids"], *([tokenizer.eos_token_id] if end else [])]
    seen = []
    hook = model.score.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return float((seen[0][0, -1] @ model.score.weight.T).mean().detach())
