"""Draw curves of healthy and sick runs for docs/curves.md: real runs on the enumerable language.

    python -m benchmarks.gallery gallery          # trains the missing runs, and redraws docs/curves/

A sick run is the healthy DPO run with one change, so its curves show the effect of that change. Afzal's diagnosis of a
run is quoted unchanged, whether or not it is what the change was meant to show.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "curves.md"
PICTURES = PAGE.with_suffix("")
BEGIN, END = "<!-- gallery: python -m benchmarks.gallery -->", "<!-- /gallery -->"


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the gallery.

    Attributes:
        name: name of the run and of its pictures.
        title: the change, in a few words.
        shown: metrics to draw.
        folder: folder of an existing run.
        note: a further sentence for the reader.
        settings: differences from the healthy DPO run.
    """

    name: str
    title: str
    shown: Sequence[str] = ("loss", "rewards/accuracies")
    folder: str = ""
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case("sft", "A healthy run of SFT", ("loss",), folder="demo/sft"),
    Case(
        "learns",
        "DPO that learns",
        folder="demo/dpo",
        note="The baseline for the runs below. In this language the true reward favours longer answers, up to three "
        "tokens, so the finding on length is correct and not a fault.",
    ),
    Case("still", "A learning rate that is too low", settings={"lr": 1e-7}),
    Case("diverged", "A learning rate that is too high", settings={"lr": 0.3, "max_grad_norm": 0}),
    Case("overfit", "Sixty passes over 128 pairs", settings={"data": "few.jsonl", "epochs": 60, "batch_size": 32}),
    Case("reversed", "Held-out labels that say the opposite", settings={"eval_data": "reversed.jsonl"}),
    Case("far", "A beta that is too small", ("loss", "kl"), settings={"beta": 0.001, "lr": 5e-3}),
)


def run(folder: Path) -> None:
    """Train the missing runs, and draw all of them."""
    from afzal.lab import demo

    first = folder / "demo" / "dpo"
    if not (first / "report.html").exists():
        demo.run(folder / "demo", quick=True)
    pairs = (folder / "demo" / "data" / "pairs.jsonl").read_text("utf-8").splitlines(keepends=True)
    held_out = (folder / "demo" / "data" / "pairs-held-out.jsonl").read_text("utf-8").splitlines()
    (folder / "few.jsonl").write_text("".join(pairs[:128]), encoding="utf-8")
    (folder / "reversed.jsonl").write_text("".join(_swapped(line) for line in held_out), encoding="utf-8")
    cases = [_outcome(case, folder / case.folder if case.folder else _trained(case, folder, first)) for case in CASES]
    head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{_section(cases)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def _swapped(line: str) -> str:
    """The row with its two answers swapped."""
    row = json.loads(line)
    return json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]}) + "\n"


def _trained(case: Case, folder: Path, first: Path) -> Path:
    """Train the first run with the case's changes; a run that stops early counts too."""
    from afzal import config, recipes
    from afzal.errors import AfzalError

    out = folder / case.name
    if not (out / "report.html").exists():
        files = {"data", "eval_data"} & set(case.settings)
        changed = {**case.settings, **{key: str(folder / case.settings[key]) for key in files}, "out": str(out)}
        if "epochs" in changed:
            changed["max_steps"] = None
        settings = [*config.read_file(first / "run.yaml"), *(config.Setting(k, v) for k, v in changed.items())]
        try:
            recipes.train(config.resolve(settings), command="")
        except AfzalError as error:
            print(f"{case.name}: {error}")
    return out


def _outcome(case: Case, path: Path) -> dict[str, Any]:
    """The case's pictures, and Afzal's verdict with the checks that raised an alarm."""
    from afzal import report
    from afzal.api.results import Run

    body = json.loads(report.build(path).with_suffix(".json").read_text("utf-8"))
    PICTURES.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name in case.shown:
        (file,) = Run(path).plot(name).save(PICTURES / f"{case.name}-{name.rpartition('/')[2]}.svg")
        pictures[name] = file.name
    raised = [
        {key: diagnosis[key] for key in ("check", "severity", "title", "explanation", "rule", "remedy")}
        for diagnosis in body["diagnoses"]
        if diagnosis["severity"] in ("bad", "watch")
    ]
    return {
        "name": case.name,
        "title": case.title,
        "changed": dict(case.settings),
        "note": case.note,
        "verdict": body["verdict"],
        "alarms": raised,
        "pictures": pictures,
    }


def _section(cases: Sequence[Mapping[str, Any]]) -> str:
    """The gallery as Markdown: the change, the curves, and Afzal's diagnosis."""
    lines: list[str] = []
    for case in cases:
        verdict = case["verdict"]
        changed = ", ".join(f"`{key}={value}`" for key, value in case["changed"].items())
        about = " ".join(filter(None, (f"Changed: {changed}." if changed else "", case["note"])))
        lines += [f"### {case['title']}", *(["", about] if about else [])]
        lines += ["", *(f"![{case['title']}: {name}](curves/{file})" for name, file in case["pictures"].items())]
        lines += ["", f"> **{verdict['word']}**: {verdict['sentence']}"]
        for alarm in case["alarms"]:
            lines += [">", f"> *{alarm['check']}*: {alarm['explanation']} Try: {alarm['remedy'] or 'nothing'}."]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(parser.parse_args().out)
