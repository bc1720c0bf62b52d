import json
from pathlib import Path

import numpy as np
import pytest

from afzal import runs
from afzal.errors import AfzalError
from afzal.lab import demo, exact, language
from afzal.report import sections

TINY = demo.Plan(demonstrations=2000, sft_steps=60, pairs=600, dpo_steps=20, betas=(1.0, 0.1))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "QUICK", TINY)
    try:
        return demo.run(tmp_path_factory.mktemp("demo") / "out", quick=True)
    finally:
        patch.undo()


def test_demo_leaves_runs_and_data_behind(made):
    assert made.name == "dpo"
    assert [r.name for r in runs.find(made.parent)] == ["dpo", "dpo-beta-1", "sft"]
    assert {r.facts()["status"] for r in runs.find(made.parent)} == {"finished"}
    assert len((made.parent / "data" / "pairs.jsonl").read_text().splitlines()) == TINY.pairs
    facts = runs.open_run(made).facts()
    assert facts["data"]["train"] == TINY.pairs
    assert facts["steps"] == TINY.dpo_steps


def test_the_report_holds_the_frontier_and_figures_that_can_be_had_again(made):
    """The page's figures are recomputed here from the saved models alone."""
    from transformers import AutoModelForCausalLM

    gain, listed = sections.read(made)
    assert isinstance(gain.chart, sections.FrontierChart)
    assert gain.table is not None
    _, prompts = language.prompts()
    policies = {
        name: exact.log_policy(AutoModelForCausalLM.from_pretrained(made.parent / folder), prompts)
        for name, folder in (("SFT", "sft"), ("DPO, beta 1", "dpo-beta-1"), ("DPO, beta 0.1", "dpo"))
    }
    rewards = language.reward(prompts)
    spots = {s.label: s for s in gain.chart.points}
    for row, (name, policy) in zip(gain.table.rows, policies.items(), strict=False):
        figures = exact.evaluate(policy, policies["SFT"], rewards)
        assert row[:3] == (name, f"{figures.reward:.3f}", f"{figures.kl:.3f}")
        assert (spots[name].x, spots[name].y) == pytest.approx((figures.kl, figures.reward))
        assert figures.reward <= np.interp(figures.kl, *np.array(gain.chart.optimum).T) + 1e-9
    assert listed.table is not None
    assert len(listed.table.rows) == 10
    page = (made / "report.html").read_text()
    picture = (made.parent / "frontier.svg").read_text()
    assert picture.partition("</style>")[2].partition("/>")[2].removesuffix("</svg>") in page
    assert gain.title in page
    assert "<svg" in page[page.index(gain.title, page.index("<h2")) :]


def test_the_runs_of_the_demo_never_saw_the_held_out_prompts(made):
    data = made.parent / "data"
    read = {p.name: {json.loads(s)["prompt"] for s in p.open()} for p in data.glob("*.jsonl")}
    for name in ("pairs", "demonstrations"):
        assert not read[f"{name}.jsonl"] & read[f"{name}-held-out.jsonl"]


def test_nothing_is_overwritten(tmp_path):
    assert demo._unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert demo._unused(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    (tmp_path / "demo-2").write_text("a file")
    assert demo._unused(tmp_path / "demo") == tmp_path / "demo-3"


def test_model_and_data_go_together(tmp_path):
    with pytest.raises(AfzalError, match="together"):
        demo.run(tmp_path / "out", data="pairs.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.shared
def test_the_same_on_real_data(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "QUICK", TINY)
    model, data = shared / "data/models/stories260k", shared / "data/derived/stories_valence_pairs.jsonl"
    demo.run(tmp_path / "out", quick=True, model=str(model), data=str(data))
    first, *_, last = runs.open_run(tmp_path / "out" / "real").metrics("eval")
    assert first["loss"] == pytest.approx(np.log(2), abs=5e-4)
    assert last["rewards/accuracies_low"] > 0.5
    shown = capsys.readouterr().out
    assert "stories_valence_pairs.jsonl" in shown
    assert "beats SFT" in shown
