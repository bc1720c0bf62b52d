"""The model card, for people and for the hub: what the saved model is, how it was made, and how well it does."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal._version import __version__
from afzal.config import method_in
from afzal.health import diagnose, verdict
from afzal.health.facts import unit_of, writes
from afzal.report.headline import measures
from afzal.report.run_files import enriched_facts, load
from afzal.runs import atomic_write
from afzal.text import is_number, number, visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"

_HUB_METRICS = {"rewards/accuracies": "accuracy"}  # other measures keep their names in metrics.jsonl
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def write_card(run_path: str | Path) -> Path:
    """Write the model card of a run folder; return its path.

    Raises:
        AfzalError: ``run_path`` is not a run folder, or cannot be written.
    """
    run = load(Path(run_path))
    atomic_write(run.path / FILE, model_card(enriched_facts(run), run.config, run.metrics).encode("utf-8", "replace"))
    return run.path / FILE


def model_card(
    run_facts: Mapping[str, Any], config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], name: str = ""
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        run_facts: contents of ``run.json``.
        config: the resolved configuration; its ``push_to_hub`` or ``out`` names the model unless ``name`` is given.
        metrics: lines of ``metrics.jsonl``.
    """
    method = str(run_facts.get("method") or "")
    name = name or str(config.get("push_to_hub") or "") or Path(str(config.get("out") or method or "model")).name
    parts = [
        _front_matter(run_facts, metrics, name),
        f"# {plain(name)}",
        _opening(run_facts, method),
        _quick_start(name, run_facts.get("chat") is True) if writes(run_facts) else _scoring(name, run_facts),
        _numbers(run_facts, metrics),
        _training(run_facts),
        _settings(config),
        _citation(run_facts),
        f"Made with Afzal {plain(str(run_facts.get('afzal') or __version__))}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Text escaped for Markdown and HTML, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split())).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _front_matter(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], name: str) -> str:
    """The part of the card that the hub reads: base model, data set, tags, and held-out figures as ``model-index``."""
    from huggingface_hub import ModelCardData

    model, source = _text(facts, "model", "path"), _text(facts, "data", "source")
    method = _one_line(str(facts.get("method") or ""))
    tags = ["afzal", *([method] if method else []), *(["preference-optimization"] if unit_of(facts) != "token" else [])]
    data = ModelCardData(
        base_model=model if _is_hub_id(model) else None,
        datasets=[source] if _is_data_set(source) else None,
        library_name="transformers",
        model_name=_one_line(name) or "model",
        pipeline_tag=_task(facts),
        tags=tags,
        eval_results=_results(facts, metrics) or None,
    )
    if data.eval_results is None:
        data.model_name = None  # it belongs to the results
    return f"---\n{data.to_yaml()}\n---"


def _results(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """The last held-out value of every measure, as the hub lists results."""
    from huggingface_hub import EvalResult

    source = _text(facts, "data", "source")
    data_name = _one_line(_name(source)) or "held-out data"
    return [
        EvalResult(
            task_type=_task(facts),
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split="held-out",
            metric_type=_HUB_METRICS.get(m.key, m.key),
            metric_name=m.name,
            metric_value=m.after,
        )
        for m in measures(metrics, facts)
    ]


def _task(facts: Mapping[str, Any]) -> str:
    return "text-generation" if writes(facts) else "text-classification"


def _one_line(text: str) -> str:
    """Text on one line: a line break could end the front matter for parsers that look only for ``---``."""
    return " ".join(visible(text).split())


def _opening(facts: Mapping[str, Any], method: str) -> str:
    model, source = (_name(_text(facts, *path)) for path in (("model", "path"), ("data", "source")))
    spec = method_in(facts)
    phrase = spec.full if spec else plain(method) or "training"
    if spec is not None and not spec.full:  # named by its objective
        phrase = f"preference optimisation ({plain(_text(facts, 'objective', 'name'))})"
    sentence = f"Made from **{plain(model)}** by {phrase}"
    sentence += f" on **{plain(source)}**." if source else "."
    return sentence


def _quick_start(path: str, chat: bool) -> str:
    inputs = (
        """messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
        if chat
        else """inputs = tokenizer("Once upon a time", return_tensors="pt")"""
    )
    return f"""## Quick start

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = {json.dumps(path)}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
{inputs}
output = model.generate(**inputs, max_new_tokens=64, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def _scoring(path: str, facts: Mapping[str, Any]) -> str:
    reward = facts.get("reward")
    reward = reward if isinstance(reward, Mapping) else {}
    shift = number(reward.get("shift", 0.0))
    start = _scored_by_transformers(path) if reward.get("transformers_class", True) else _scored_by_afzal(path)
    return f"""## Quick start

{start} Larger is better;
only differences between responses to one prompt are meaningful. `reward_shift` ({shift}) gives preferred
responses a mean of 0."""


def _scored_by_afzal(path: str) -> str:
    return f"""```bash
afzal score --model {shlex.quote(path)} --data responses.jsonl --out scores.jsonl
```

`transformers` has no reward models for this family; Afzal loads this one and subtracts `reward_shift`."""


def _scored_by_transformers(path: str) -> str:
    return f"""```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = {json.dumps(path)}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)
text = "Once upon a time" + " there was a fox." + tokenizer.eos_token  # prompt, response, end
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=True)
with torch.no_grad():
    print(model(**inputs).logits[0, 0] - model.config.reward_shift)
```

The score is read at the last token, which must be the end token used in training."""


def _numbers(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    outcome = verdict(diagnose(metrics, facts))
    lines = ["## Results on held-out data", "", f"**{outcome.word.capitalize()}.** {plain(outcome.sentence)}", ""]
    rows = measures(metrics, facts)
    if not rows:
        return "\n".join([*lines, "Nothing was evaluated on held-out data."])
    lines += ["| measure | before | after | 95% interval | |", "|---|---:|---:|:---:|---|"]
    for m in rows:
        row = m.shown()
        lines.append(f"| {m.name} | {row['before']} | {row['after']} | {m.after_interval} | {m.meaning} |")
    return "\n".join([*lines, "", "Curves, samples and the checks behind the verdict: `report.html`."])


def _training(facts: Mapping[str, Any]) -> str:
    data = facts.get("data") if isinstance(facts.get("data"), Mapping) else {}
    versions = facts.get("versions") if isinstance(facts.get("versions"), Mapping) else {}
    rows = [
        ("data", _name(_text(facts, "data", "source"))),
        ("format", _text(facts, "data", "format")),
        ("rows kept", f"{number(data['kept'])} of {number(data.get('rows'))}" if data and "kept" in data else ""),
        ("data fingerprint (SHA-256)", _text(facts, "data", "fingerprint")),
        ("reference", str(facts.get("reference") or "")),
        ("steps", number(facts["step"]) if is_number(facts.get("step")) else ""),
        ("seed", str(facts["seed"]) if "seed" in facts else ""),
        ("versions", ", ".join(f"{k} {v}" for k, v in (versions or {}).items())),
    ]
    body = "\n".join(f"| {key} | {plain(value)} |" for key, value in rows if value)
    return f"## Training\n\n| | |\n|---|---|\n{body}"


def _settings(config: Mapping[str, Any]) -> str:
    import yaml

    if not config:
        return ""
    body = visible(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    fence = "`" * (max((len(run) for run in re.findall(r"`+", body)), default=0) + 1)
    fence = max(fence, "```", key=len)
    return f"<details><summary>Configuration</summary>\n\n{fence}yaml\n{body}{fence}\n\n</details>"


def _citation(facts: Mapping[str, Any]) -> str:
    spec = method_in(facts)
    if spec is None or spec.paper is None:
        return ""
    key, title, authors, year, arxiv = astuple(spec.paper)
    fields = {"title": f"{{{title}}}", "author": authors, "year": year, "eprint": arxiv, "archivePrefix": "arXiv"}
    body = "\n".join(f"  {field} = {{{value}}}," for field, value in fields.items())
    return f"## Citation\n\nThe method:\n\n```bibtex\n@article{{{key},\n{body}\n}}\n```"


def _text(facts: Mapping[str, Any], part: str, key: str) -> str:
    values = facts.get(part)
    return str(values.get(key) or "") if isinstance(values, Mapping) else ""


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a hub id (``name`` or ``owner/name``) rather than a path on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name and not Path(name).exists()


def _is_data_set(source: str) -> bool:
    """Whether the source is a data set on the hub; a file name can look like a hub id, but has an extension."""
    return _is_hub_id(source) and "." not in source.split("/")[-1]


def _name(source: str) -> str:
    """A hub id as it is; of a path, only the last part, since its place on this machine means nothing to a reader."""
    return source if _is_hub_id(source) else source.rstrip("/").split("/")[-1]
