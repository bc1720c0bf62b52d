"""Every setting of a comparison has an effect, or is refused: changed alone, it changes the figures, or how they are
computed. The settings that the result repeats, and seconds, do not count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import model_folder, one_thread, pair_file
from torch.nn.modules.module import register_module_forward_hook

from afzal.cli import main
from afzal.config import CompareConfig

Case = tuple[Any, dict[str, Any]]
"""Another value of a setting, and what else must be given for it to have an effect."""

_TRAINED = {"name": "dpo", "train": "dpo"}
CASES: dict[str, Case] = {
    "model": ("other", {}),
    "data": ("more.jsonl", {}),
    "prompts": ("more.jsonl", {}),
    "max_prompts": (3, {}),
    "rewards": ({"letters": "rewards.py:letters"}, {}),
    "methods": ([_TRAINED | {"beta": 0.5}], {}),
    "common": ({"batch_size": 4, "max_steps": 1, "lr": 0.05, "eval_fraction": 0.0, "device": "cpu"}, {}),
    "seeds": ([1], {}),
    "samples": (3, {}),
    "sample_tokens": (3, {}),
    "temperature": (0.3, {}),
    "snapshots": (2, {}),
    "matched_kl": ([0.001], {}),
    "kl_budget": (1e-6, {}),
    "resamples": (200, {}),
    "show_prompts": (2, {}),
    "rows_per_batch": (4, {}),
    "tokens_per_forward": (40, {}),
    "max_tokens": (8, {}),
    "eos_token": ("e", {"sample_tokens": 40, "temperature": 9.0}),
    "device": ("cuda:7", {}),
    "generator": (
        "server.yaml",
        {},
    ),  # effects of a server that follows the policies: tests/compare/test_compare_server_answers.py
    "out": ("elsewhere", {}),
    "judges": ({"longest": "rule:longest"}, {}),
    "judge_prompts": (2, {"judges": {"longest": "rule:longest"}}),
}
REFUSALS = {"max_tokens": "max_tokens", "device": "cuda", "generator": "with the same weights"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare-settings")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model_folder(path / "model", **small, tie_word_embeddings=True, initializer_range=0.5)
    model_folder(path / "other", **small, tie_word_embeddings=True, initializer_range=1.0)
    pair_file(path / "pairs.jsonl", 6)
    rows = [json.loads(line) for line in (path / "pairs.jsonl").read_text().splitlines()]
    more = [r | {"prompt": f"Or {r['prompt']}", "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    (path / "more.jsonl").write_text("".join(json.dumps(r) + "\n" for r in more))
    (path / "server.yaml").write_text("kind: vllm\nurl: http://127.0.0.1:9/v1\nmodel: one-for-all\n")
    (path / "rewards.py").write_text(
        "def length(prompt, answer):\n    return float(len(answer))\n\n\n"
        "def letters(prompt, answer):\n    return float(sum(c < 'n' for c in answer))\n"
    )
    return path


def outcome(changes: dict[str, Any], folder: Path, place: Path, monkeypatch: Any, capsys: Any) -> dict[str, Any]:
    """The figures and how they were computed, or the refusal with its reason."""
    given: dict[str, Any] = {
        "model": "model",
        "data": "pairs.jsonl",
        "prompts": "pairs.jsonl",
        "rewards": {"length": "rewards.py:length"},
        "methods": [_TRAINED],
        "common": {"batch_size": 4, "max_steps": 2, "lr": 0.05, "eval_fraction": 0.0, "device": "cpu"},
        "seeds": [0],
        "samples": 2,
        "sample_tokens": 5,
        "snapshots": 1,
        "resamples": 100,
        "show_prompts": 1,
        "device": "cpu",
    } | changes
    given["out"] = str(place / given.get("out", "out"))
    for key in {"model", "data", "prompts", "generator"} & given.keys():
        given[key] = str(folder / given[key])
    given["rewards"] = {name: str(folder / spec) for name, spec in given["rewards"].items()}
    (place / "compare.yaml").write_text(yaml.safe_dump(given))
    bodies: list[dict[str, Any]] = []
    monkeypatch.setattr("afzal.report.write_comparison", lambda out, body: (bodies.append(body), out)[1])
    calls: Counter[str] = Counter()
    hook = register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    try:
        with one_thread():
            code = main(["compare", str(place / "compare.yaml")])
    finally:
        hook.remove()
        monkeypatch.undo()
    if code:
        return {"refused": capsys.readouterr().err}
    files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
    return {"figures": _figures(json.loads(json.dumps(bodies[0]))), "calls": calls, "files": files}


def _figures(value: Any) -> Any:
    """The result without repeated settings and without seconds."""
    if isinstance(value, dict):
        return {k: _figures(v) for k, v in value.items() if k not in ("settings", "runs", "seconds")}
    return [_figures(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    """Outcomes without a change, by the settings they need."""
    return {}


def test_every_setting_of_compare_is_asked():
    assert set(CASES) == set(CompareConfig.model_fields)


@pytest.mark.parametrize("key", CASES)
def test_a_setting_of_compare_changes_the_comparison(
    key: str, folder: Path, tmp_path: Path, known: dict[str, Any], monkeypatch: Any, capsys: Any
):
    value, needed = CASES[key]
    name = json.dumps(needed)
    for part in ("before", "after"):
        (tmp_path / part).mkdir()
    if name not in known:
        known[name] = outcome(needed, folder, tmp_path / "before", monkeypatch, capsys)
    after = outcome(needed | {key: value}, folder, tmp_path / "after", monkeypatch, capsys)
    assert "refused" not in known[name], known[name]
    assert known[name] != after, f"{key} has no effect on compare"
    assert REFUSALS.get(key, "") in after.get("refused", ""), after
    assert ("refused" in after) == (key in REFUSALS), after
