"""A judge as the reward of ``afzal iterate``: the same bytes as with its reward function; hashing and refusals."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers_replies import send_reply
from helpers_runs import model_folder, one_thread, pair_file

from afzal import config, recipes, runs
from afzal.config import IterateConfig, Setting
from afzal.errors import AfzalError
from afzal.iterate import iterate
from afzal.judging import rewards as judging
from afzal.recipes.input_hashes import input_hashes
from afzal.rewards.source import Rewarder, implicit_rewards


def judge(folder: Path, text: str) -> str:
    path = folder / "judge.yaml"
    path.write_text(text)
    return str(path)


def reward_or_judge(spec: str) -> Rewarder:
    return judging.reward_or_judge(spec, replies=Path(spec).with_name("replies.sqlite"))


def settings(folder: Path, out: Path, reward: str) -> IterateConfig:
    """One round of one update."""
    small = {"n": 3, "max_new_tokens": 6, "max_tokens": 64, "require_eos": False, "held_out": 2, "rounds": 1}
    small |= {"held_out_samples": 1, "batch_size": 4, "max_steps": 1, "eval_fraction": 0.0, "device": "cpu"}
    small |= {"model": str(folder / "model"), "prompts": str(folder / "pairs.jsonl"), "out": str(out)}
    return config.build(IterateConfig, [Setting(k, v) for k, v in (small | {"reward": reward}).items()])


def inputs(folder: Path) -> Path:
    model_folder(folder / "model")
    pair_file(folder / "pairs.jsonl", 12)
    (folder / "rewards.py").write_text("def length(prompt, answer):\n    return float(len(answer))\n")
    return folder


def test_the_longest_answer_is_chosen_and_a_rule_scores_as_the_function_does(tmp_path):
    inputs(tmp_path)
    with one_thread():
        ruled = iterate(settings(tmp_path, tmp_path / "a", judge(tmp_path, "kind: rule\nrule: longest\n")))
        plain = iterate(settings(tmp_path, tmp_path / "b", f"{tmp_path / 'rewards.py'}:length"))
    one, two = (sorted(p.relative_to(out) for p in out.rglob("*.jsonl")) for out in (ruled, plain))
    assert one == two
    names = [n for n in one if n.name in ("samples.jsonl", "scores.jsonl", "pairs.jsonl")]
    assert len(names) >= 3
    assert all((ruled / n).read_bytes() == (plain / n).read_bytes() for n in names)
    pairs = [row for n in names if n.name == "pairs.jsonl" for row in runs.read_jsonl(ruled / n)]
    assert pairs


def test_rules_and_functions(tmp_path):
    rewards = reward_or_judge(judge(tmp_path, "kind: rule\nrule: shortest\n"))
    assert rewards(["a", "a", "a"], ["", "xx", "x"]) == [0.0, -2.0, -1.0]
    (tmp_path / "taste.py").write_text("def last(prompt, answer):\n    return int(answer[-1]) + len(prompt)\n")
    rewards = reward_or_judge(judge(tmp_path, f"kind: function\nfunction: {tmp_path / 'taste.py'}:last\n"))
    assert rewards(["a", "bb"], ["x3", "x1"]) == [4.0, 3.0]


def test_a_policy_gives_its_implicit_reward(tmp_path):
    ours, theirs = (str(model_folder(tmp_path / name, hidden_size=size)) for name, size in (("a", 32), ("b", 64)))
    text = f"kind: policy\nmodel: {ours}\nreference: {theirs}\nbeta: 0.5\n"
    rows = (["why?", "why?"], ["so", "no idea"])
    said = reward_or_judge(judge(tmp_path, text))(*rows)
    assert said == implicit_rewards(ours, theirs, beta=0.5)(*rows)
    assert said == pytest.approx([5 * x for x in implicit_rewards(ours, theirs, beta=0.1)(*rows)])


def test_what_a_judge_names_is_hashed_with_it(tmp_path):
    inputs(tmp_path)
    spec = judge(tmp_path, f"kind: function\nfunction: {tmp_path / 'rewards.py'}:length\n")
    given = settings(tmp_path, tmp_path / "out", spec)
    before = input_hashes(given)
    assert input_hashes(given) == before
    (tmp_path / "rewards.py").write_text("def length(prompt, answer):\n    return -float(len(answer))\n")
    after = input_hashes(given)
    assert after["reward"] != before["reward"]
    assert {k: v for k, v in after.items() if k != "reward"} == {k: v for k, v in before.items() if k != "reward"}


@pytest.mark.parametrize("kind", ["model", "http"])
def test_a_judge_that_is_asked_in_words_is_refused(tmp_path, kind):
    text = f"kind: {kind}\nmodel: {model_folder(tmp_path / 'm')}\n" + "url: http://127.0.0.1:9\n" * (kind == "http")
    text += "" if kind == "model" else "verdict: {choices: {A: first, B: second}}\n"
    spec = judge(tmp_path, text)
    with pytest.raises(AfzalError, match=f"a judge of kind {kind} is not a reward"):
        input_hashes(settings(tmp_path, tmp_path / "out", spec))
    with pytest.raises(AfzalError, match="is not a reward"):
        reward_or_judge(spec)


class Scores(BaseHTTPRequestHandler):
    """A server whose score is the answer's word count; it keeps its requests."""

    asked: list[str]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        said = "I would rather not." if "unreadable" in text else f"SCORE: {len(text.split('Answer: ')[1].split())}"
        send_reply(self, said)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def scores():
    Own = type("Own", (Scores,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", Own.asked
    server.shutdown()
    server.server_close()


def scoring(url: str, order: str = "larger") -> str:
    asks = "prompt: 'Question: {{ prompt }} Answer: {{ answer }}'"
    return f"kind: http\nurl: {url}\nmodel: m\n{asks}\nverdict: {{score: {{order: {order}}}}}\nattempts: 1\n"


def test_a_server_that_scores_each_answer_is_a_reward_and_is_asked_once(tmp_path, scores):
    url, asked = scores
    rewards = reward_or_judge(judge(tmp_path, scoring(url)))
    rows = ["why?", "why?", "how?"], ["a b c", "a", "{{ prompt }} a"]
    assert rewards(*rows) == [3.0, 1.0, 4.0]
    assert "Question: how? Answer: {{ prompt }} a" in asked  # an answer's text is not a template
    assert len(asked) == 3
    assert reward_or_judge(judge(tmp_path, scoring(url)))(*rows) == [3.0, 1.0, 4.0]
    assert len(asked) == 3
    assert reward_or_judge(judge(tmp_path, scoring(url, "smaller")))(*rows) == [-3.0, -1.0, -4.0]


def test_an_answer_without_a_readable_score_stops(tmp_path, scores):
    rewards = reward_or_judge(judge(tmp_path, scoring(scores[0])))
    with pytest.raises(AfzalError) as caught:
        rewards(["why?", "why?"], ["fine", "unreadable"])
    assert "gives no score" in str(caught.value)
    assert "'unreadable'" in str(caught.value)
    assert "there is no score line" in str(caught.value)


def test_rounds_learn_from_a_server_as_from_the_function_that_it_computes(tmp_path, scores):
    url, asked = scores
    inputs(tmp_path)
    (tmp_path / "words.py").write_text("def words(prompt, answer):\n    return float(len(answer.split()))\n")
    with one_thread():
        served = iterate(settings(tmp_path, tmp_path / "a", judge(tmp_path, scoring(url))))
        plain = iterate(settings(tmp_path, tmp_path / "b", f"{tmp_path / 'words.py'}:words"))
    files = sorted(p.relative_to(served) for p in served.rglob("scores.jsonl"))
    assert files
    assert all((served / n).read_bytes() == (plain / n).read_bytes() for n in files)
    assert asked
    assert (served / "replies.sqlite").is_file()


def test_ppo_takes_a_judge(tmp_path, scores):
    inputs(tmp_path)
    small = {"iterations": 1, "batch_size": 2, "minibatches": 1, "ppo_epochs": 1, "sample_tokens": 4, "max_tokens": 64}
    small |= {"model": str(tmp_path / "model"), "data": str(tmp_path / "pairs.jsonl"), "device": "cpu"}
    small |= {"eval_fraction": 0.0, "sample_prompts": 0, "reward": judge(tmp_path, scoring(scores[0]))}
    with one_thread():
        run = recipes.train(config.make("rloo", out=str(tmp_path / "run"), **small))
    assert scores[1]
    assert (run / "replies.sqlite").is_file()
