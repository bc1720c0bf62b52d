"""Templates in complete runs: ends of answers, template options of rows, and refusals in the template's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_families import template_of
from helpers_runs import model_folder
from helpers_tokenizers import CHATML, byte_tokenizer

from afzal import config, data, recipes, runs
from afzal.cli import main
from afzal.compare.measure import set_up
from afzal.config import CompareConfig, GenerateConfig, IterateConfig, Setting
from afzal.errors import AfzalError
from afzal.generate import prompt_ids
from afzal.generate.run import generate
from afzal.iterate import iterate
from afzal.iterate.prompts import read_questions
from afzal.prepare import prepare
from afzal.tokens import Speaker

SAYS = (
    "{% if tools %}{{ 'Tools: ' + tools[0].name + '. ' }}{% endif %}{% if loud %}{{ 'LOUD. ' }}{% endif %}"
    "{% for m in messages %}{{ m.role[0] + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role != ('user', 'assistant')[loop.index0 % 2] %}"
    "{{ raise_exception('user and assistant take turns, user first') }}{% endif %}"
    "{{ m.content + '<|im_end|>' }}{% endfor %}"
)
REWARD = "def longer(prompt, answer):\n    return float(len(answer))\n"


def _model(path: Path, template: str, name: str = "model") -> Path:
    """The tiny model with a template and its end marker, at the end of which its BOS is named as a further EOS."""
    folder = model_folder(path / name, vocab_size=261)
    tokenizer = byte_tokenizer(template=CHATML)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def _file(path: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / name


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _pairs(n: int, better: str = "yes", worse: str = "no", **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": _said("user", f"Q{k}"), "chosen": _said("assistant", f"{better}{k}")}
        | {"rejected": _said("assistant", f"{worse}{k}"), **more}
        for k in range(n)
    ]


STATED = (
    {},
    {"tools": [{"name": "clock"}]},
    {"chat_template_kwargs": {"loud": True}},
    {"tools": [{"name": "lamp"}], "chat_template_kwargs": {"loud": True}},
)
PROMPTS = [
    "u: Q0<|im_end|>a: ",
    "Tools: clock. u: Q0<|im_end|>a: ",
    "LOUD. u: Q0<|im_end|>a: ",
    "Tools: lamp. LOUD. u: Q0<|im_end|>a: ",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a file with one question under four sets of options, and other questions without options."""
    path = tmp_path_factory.mktemp("templates")
    _model(path, SAYS)
    (path / "rewards.py").write_text(REWARD)
    _file(path, [row for stated in STATED for row in _pairs(1, **stated)], "one.jsonl")
    _file(path, [{**row, **STATED[3]} for row in _pairs(12)], "many.jsonl")
    return path


def _decoded(ids: Any) -> str:
    return byte_tokenizer(template=CHATML).decode(list(ids))


def test_what_rows_say_reaches_training_and_rollouts(place: Path) -> None:
    given = {"model": str(place / "model"), "data": str(place / "one.jsonl"), "eval_fraction": 0.0}
    trained = prepare(config.make("dpo", **given))
    rollouts = prepare(config.make("rloo", **given, reward=f"{place / 'rewards.py'}:longer", sample_tokens=4))
    for prepared in (trained, rollouts):
        assert [_decoded(t.prompt) for t in prepared.train] == PROMPTS


def test_what_rows_say_reaches_generation_and_is_kept_with_the_answers(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    given = {"model": str(place / "model"), "prompts": str(place / "one.jsonl"), "out": str(out), "max_new_tokens": 2}
    generate(config.build(GenerateConfig, [Setting(k, v) for k, v in given.items()]))
    rows = list(runs.read_jsonl(out))
    assert [{k: row[k] for k in ("tools", "chat_template_kwargs") if k in row} for row in rows] == list(STATED)


def test_what_rows_say_reaches_comparisons(place: Path) -> None:
    given = {"model": str(place / "model"), "prompts": str(place / "one.jsonl"), "data": str(place / "one.jsonl")}
    given |= {
        "out": "unused",
        "rewards": {"longer": f"{place / 'rewards.py'}:longer"},
        "methods": [{"name": "a", "train": "dpo"}],
        "sample_tokens": 4,
        "device": "cpu",
    }
    setup = set_up(config.build(CompareConfig, [Setting(k, v) for k, v in given.items()]))
    assert [_decoded(prompt_ids(prompt)) for prompt in setup.inputs] == PROMPTS
    assert setup.eos == [258, 260]


def _rounds(place: Path, out: Path, **more: Any) -> IterateConfig:
    given = {"model": str(place / "model"), "prompts": str(place / "many.jsonl"), "out": str(out), "device": "cpu"}
    given |= {"reward": f"{place / 'rewards.py'}:longer", "n": 4, "max_new_tokens": 6, "max_tokens": 96, "rounds": 1}
    given |= {"require_eos": False, "held_out": 2, "held_out_samples": 2, "batch_size": 4, "max_steps": 1}
    return config.build(IterateConfig, [Setting(k, v) for k, v in (given | {"eval_fraction": 0.0} | more).items()])


def test_what_rows_say_reaches_rounds_and_what_they_train_on(place: Path, tmp_path: Path) -> None:
    from afzal.model.speakers import open_speaker

    settings = _rounds(place, tmp_path / "rounds")
    asked = read_questions(settings, open_speaker(str(place / "model"), chat_template=settings.chat_template))
    for question in [*(q for group in asked.groups for q in group), *asked.held_out]:
        assert _decoded(question.ids).startswith("Tools: lamp. LOUD. u: Q")
    out = iterate(settings)
    pairs = data.read(str(out / "rounds" / "001" / "pairs.jsonl")).items
    assert pairs
    assert all(item.extra == STATED[3] for item in pairs)


def _cut_alike(path: Path, n: int = 8) -> Path:
    return _file(path, _pairs(n, "the same words over and over, all along ", "no"), "cut.jsonl")


@pytest.mark.parametrize("family", ["qwen2.5", "phi4", "smollm3"])
def test_what_ends_an_answer_is_not_read_off_the_rows(family: str, tmp_path: Path) -> None:
    model = _model(tmp_path, template_of(family))
    for name, tokens in (("all cut", 60), ("none cut", 250)):
        given = {"model": str(model), "data": str(_cut_alike(tmp_path)), "out": str(tmp_path / name), "epochs": 1.0}
        given |= {"max_tokens": tokens, "batch_size": 8, "max_steps": 1, "sample_prompts": 0, "eval_fraction": 0.0}
        out = recipes.train(config.make("sft", **given))
        stated = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        assert stated == [258, 260]  # <eos> and <|im_end|>; not the BOS, nor the last letter of the rows


def test_ends_of_texts_and_named_ends(tmp_path: Path) -> None:
    model = _model(tmp_path, CHATML)
    rows = [{"prompt": f"Q{k}", "completion": " the same words over and over"} for k in range(6)]
    given = {"model": str(model), "data": str(_file(tmp_path, rows)), "eval_fraction": 0.0, "max_tokens": 16}

    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 7}))
    assert prepare(config.make("sft", **given)).ends == [7, 258]
    assert prepare(config.make("sft", **given, eos_token="<|im_start|>")).ends == [7, 258, 259]
    tokenizer = byte_tokenizer(template=template_of("glm4"))
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert Speaker(tokenizer).ends(chat=True) == sorted([tokenizer.eos_token_id, user])
    assert Speaker(tokenizer).ends(chat=False) == [tokenizer.eos_token_id]
    bos = tokenizer.bos_token_id
    assert bos in Speaker(tokenizer, model_ends=(bos,)).ends(chat=False)
    assert bos not in Speaker(tokenizer, model_ends=(bos,)).ends(chat=True)


@pytest.mark.parametrize(
    ("template", "lead", "words"),
    [
        (STRICT, _said("system", "Be kind."), "user and assistant take turns, user first"),
        (STRICT, [*_said("user", "One."), *_said("user", "Two.")], "user and assistant take turns, user first"),
        (template_of("gemma2"), _said("system", "Be kind."), "there is no system role"),
        (template_of("llama2"), _said("user", "One."), "user and assistant must take turns"),
        ("{{ 1 / 0 }}", [], "division by zero"),
        (SAYS, _said("assistant", ""), ""),
    ],
)
def test_a_refusal_is_shown_in_the_templates_own_words(
    template: str, lead: list[dict[str, str]], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path, template)
    rows = [{**row, "prompt": [*lead, *row["prompt"]]} for row in _pairs(4)]
    path = _file(tmp_path, rows)
    code = main(["check", str(path), "--model", str(model)])
    shown = capsys.readouterr().out
    if not words:  # an empty assistant turn is not refused
        assert "4 of 4 items became tokens" in shown
        return
    assert code == 1
    assert "0 of 4 items became tokens" in shown
    assert words in shown
    with pytest.raises(AfzalError, match="nothing is left to train dpo on") as told:
        recipes.train(config.make("dpo", model=str(model), data=str(path), out=str(tmp_path / "run")))
    assert words in str(told.value)
    assert "4 template_refused (" in str(told.value)


@pytest.mark.parametrize("verb", ["check", "train", "generate", "generate a prompt", "iterate"])
def test_no_command_runs_on_with_a_hostile_template(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(_model(tmp_path, "{% set n = 10 ** 10 %}{{ 'x' * n }}"))
    rows, out = str(_file(tmp_path, _pairs(4))), str(tmp_path / "out")
    (tmp_path / "rewards.py").write_text(REWARD)
    reward = f"{tmp_path / 'rewards.py'}:longer"
    commands = {
        "check": ["check", rows, "--model", model],
        "train": ["train", "dpo", "--model", model, "--data", rows, "--out", out],
        "generate": ["generate", "--model", model, "--prompts", rows],
        "generate a prompt": ["generate", "--model", model, "--prompt", "Hi"],
        "iterate": ["iterate", "--model", model, "--prompts", rows, "--out", out, "--reward", reward],
    }
    assert main(commands[verb]) == 2
    shown = capsys.readouterr()
    assert "the chat template exceeds its limits" in shown.err + shown.out


def test_what_the_template_leaves_out_is_said_by_check_and_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    model = _model(tmp_path, deaf)
    rows = [{**row, "prompt": [*_said("system", "Be kind."), *row["prompt"]]} for row in _pairs(4)]
    path = _file(tmp_path, rows)
    note = "the template leaves out the system message of 4 items"
    assert main(["check", str(path), "--model", str(model)]) == 0
    assert note in capsys.readouterr().out
    given = {"model": str(model), "data": str(path), "eval_fraction": 0.0}
    assert note in prepare(config.make("dpo", **given)).notes
    online = prepare(config.make("rloo", **given, reward="length", sample_tokens=4))
    assert note in online.notes
