"""The model card: valid front matter, honest numbers, and no text that breaks out of its place."""

import re

import helpers_report as rr
import pytest
import yaml

from afzal import report
from afzal.report import model_card, write_card


def front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_is_what_the_hub_wants():
    facts = rr.facts()
    facts["model"]["path"], facts["data"]["source"] = "HuggingFaceTB/SmolLM2-135M", "trl-lib/ultrafeedback_binarized"
    front = front_matter(model_card(facts, rr.config(), []))
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["afzal", "dpo", "preference-optimization"],
        "datasets": ["trl-lib/ultrafeedback_binarized"],
    }


def test_the_hub_reads_the_last_held_out_figures(tmp_path):
    """Loaded back from the file by the hub's own reader, the figures are those of the log, unrounded."""
    from huggingface_hub import ModelCard, metadata_load

    facts = rr.facts()
    facts["data"]["source"] = "trl-lib/ultrafeedback_binarized"
    metrics = rr.dpo_metrics()
    last = [m for m in metrics if m["kind"] == "eval"][-1]
    path = tmp_path / "README.md"
    path.write_text(model_card(facts, rr.config(out="runs/my-dpo"), metrics), "utf-8")
    data = ModelCard.load(path).data
    assert data.model_name == "my-dpo"
    read = {r.metric_type: r.metric_value for r in data.eval_results}
    assert read == {
        "accuracy": last["rewards/accuracies"],
        **{k: last[k] for k in ("rewards/margins", "loss", "kl", "logps/chosen", "logps/rejected")},
        **{k: last[k] for k in ("samples/length", "samples/eos_rate")},
    }
    assert {r.dataset_type for r in data.eval_results} == {"trl-lib/ultrafeedback_binarized"}
    assert {r.dataset_split for r in data.eval_results} == {"held-out"}
    assert {r.task_type for r in data.eval_results} == {"text-generation"}
    assert len(metadata_load(path)["model-index"][0]["results"]) == 1  # one data set, one entry on the hub


def test_figures_that_were_not_measured_are_not_published(tmp_path):
    from huggingface_hub import ModelCard

    blind = [m | {"kl": float("nan"), "loss": None} for m in rr.dpo_metrics()]
    path = tmp_path / "README.md"
    path.write_text(model_card(rr.facts(), rr.config(), blind), "utf-8")
    named = {r.metric_type for r in ModelCard.load(path).data.eval_results}
    assert "accuracy" in named
    assert not {"kl", "loss"} & named


@pytest.mark.parametrize("path", ["/home/someone/models/secret-name/", "../up/base", "./base", "~/base", "C:\\base"])
def test_a_path_of_this_machine_is_no_hub_id_and_is_not_published(path):
    facts = rr.facts()
    facts["model"]["path"] = facts["data"]["source"] = path
    card = model_card(facts, {}, [])
    front = front_matter(card)
    assert "base_model" not in front
    assert "datasets" not in front
    assert "/home/someone" not in card


@pytest.mark.parametrize(
    "evil", ["a: b\n---\n# x", "'\"`{[}]|>-", "!!python/object:os.system", "x\nlicense: mit", "- y"]
)
def test_values_cannot_break_out_of_the_front_matter(evil):
    facts = rr.facts(method=evil)
    facts["model"]["path"] = facts["data"]["source"] = evil
    front = front_matter(model_card(facts, {"out": evil}, rr.dpo_metrics()))
    assert set(front) <= {"base_model", "library_name", "pipeline_tag", "tags", "datasets", "model-index"}
    assert front["tags"][1] == " ".join(evil.split())


def test_values_cannot_break_out_of_the_markdown():
    facts = rr.facts(reference="a | b\n# heading <script>alert(1)</script> [x](javascript:y) `code`", command="x")
    facts["versions"] = {"torch|x": "1\n\n# new"}
    config = rr.config() | {"prompt": "``` \n# out\n```````\n</details><script>alert(1)</script>"}
    card = model_card(facts, config, rr.dpo_metrics(), name="# <img src=x>")
    body = card.split("---\n", 2)[2]  # the front matter is YAML, which no viewer takes as markup
    outside = re.sub(r"(`{3,})(yaml|python)\n.*?\n\1\n", "", body, flags=re.DOTALL)
    assert "<script" not in outside
    assert "<img" not in outside
    assert "\n# heading" not in outside
    assert "\n# new" not in outside
    assert "\n# out" not in outside
    rows = [line for line in card.splitlines() if line.startswith("| reference")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    fences = re.findall(r"^`{3,}", card, re.MULTILINE)
    assert max(map(len, fences)) > 7  # longer than any run of backticks inside


def test_the_table_holds_the_held_out_numbers_with_their_interval():
    metrics = rr.dpo_metrics()
    last = [m for m in metrics if m["kind"] == "eval"][-1]
    card = model_card(rr.facts(), rr.config(), metrics)
    row = next(line for line in card.splitlines() if line.startswith("| Reward accuracy"))
    assert f"{last['rewards/accuracies']:.4f}" in row
    assert f"[{last['rewards/accuracies_low']:.3f}, {last['rewards/accuracies_high']:.3f}]" in row
    assert "9f2c" * 16 in card
    assert "| seed | 0 |" in card
    assert "**Healthy.**" in card


@pytest.mark.parametrize(
    ("method", "arxiv"), [("dpo", "2305.18290"), ("ipo", "2310.12036"), ("kto", "2402.01306"), ("sft", "2203.02155")]
)
def test_the_paper_of_the_method_is_cited(method, arxiv):
    assert f"eprint = {{{arxiv}}}" in model_card(rr.facts(method), rr.config(method), [])


def test_quick_start_is_python_that_names_the_model():
    card = model_card(rr.facts(), rr.config(out='runs/it"s "mine"'), [])
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    compile(code, "card", "exec")
    assert "from_pretrained(path)" in code


def test_without_evaluation_the_card_says_so():
    assert "Nothing was evaluated" in model_card(rr.facts(), {}, [])
    assert model_card({}, {}, []).startswith("---\n")


def test_write_card_puts_it_into_the_run(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    path = write_card(folder)
    assert path == folder / "README.md"
    assert path.read_text("utf-8") == model_card(
        {**rr.facts(), "config": rr.config(), "samples": {}}, rr.config(), rr.dpo_metrics()
    )
    assert report.write_card(folder).read_bytes() == path.read_bytes()
