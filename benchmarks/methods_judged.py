"""SFT, DPO and PPO against their start, judged by judges and people: a small version of Table 2 of the DPO paper.

    python -m benchmarks.methods_judged OUT --page benchmarks/results/judging    # a few minutes on two cores
    python -m benchmarks.methods_judged OUT --quick                              # a few updates: does it run?

All runs start from the story model with 260 thousand weights. DPO and a reward model learn from pairs of stories
ordered by word valence, SFT from the better stories, PPO from the reward model. Then one command answers held-out
openings with every model and judges the answers (Rafailov et al. 2023): ``afzal judge sft dpo ppo --against
stories260k``. The two people are simulated: they see the valence of an answer, call close answers a tie, and err on
15% of the others. Running the command again resumes a stopped run. Needs the folder ``shared/data`` next to the
checkout, or AFZAL_SHARED.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from afzal import data
from afzal.records import Comparison, Item, Outcome
from benchmarks.people import data as stories
from benchmarks.people.steps import afzal, start
from benchmarks.sentiment import valence
from benchmarks.stages import Stage, make_all

PEOPLE, SLIPS, CLOSE = ("anvar", "barno"), 0.15, 1.0
RUNS = ("sft", "dpo", "ppo")
_TOKENS, _ANSWERS = 48, 2
_ABOUT = """\
`python -m benchmarks.methods_judged OUT --page benchmarks/results/judging`: SFT, DPO and PPO from the same
start, a story model with 260 thousand parameters, on held-out openings. This command makes the table: `afzal judge
sft dpo ppo --against stories260k --prompts held-out.jsonl --judge reward --judge stories260k --judge rule:longest
--people votes.jsonl --out judged`. **The two people are simulated**: they see the summed valence of words, call a
difference below 1 a tie, and err on 15% of the others. The judge `reward` is a reward model trained on DPO's pairs,
and also PPO's reward. `stories260k` is the start itself as a judge by log-probs: it does not understand the
question, and nearly every pair is a tie.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the judges' pages")
    parser.add_argument("--page", type=Path, help="folder for the table as methods.json, .md and .svg")
    parser.add_argument("--quick", action="store_true", help="a few updates and prompts")
    options = parser.parse_args(argv)
    make_all(options.out, stages(options.out, quick=options.quick))
    made = options.out / "judged"
    if options.page:
        options.page.mkdir(parents=True, exist_ok=True)
        for ending in ("json", "svg"):
            shutil.copyfile(made / f"table.{ending}", options.page / f"methods.{ending}")
        title, _, rest = (made / "table.md").read_text("utf-8").partition("\n")
        (options.page / "methods.md").write_text(f"{title}\n\n{_ABOUT}\n{rest}", "utf-8")
    print((made / "table.md").read_text("utf-8"))


def stages(out: Path, *, quick: bool = False) -> list[Stage]:
    """Data, runs, answers with their first verdicts, votes, and the table of judges and people."""
    updates = 2 if quick else 96
    size = replace(stories.Size(), held_out=6) if quick else stories.Size()
    return [
        Stage("data", lambda to: stories.write(to, size)),
        Stage("sft", lambda to: train("sft", out, to, ["--lr", "5e-4", "--max-steps", str(max(1, updates // 4))])),
        Stage("dpo", lambda to: train("dpo", out, to, ["--lr", "3e-4", "--beta", "0.1", "--max-steps", str(updates)])),
        Stage("reward", lambda to: train("reward", out, to, ["--lr", "3e-4", "--max-steps", str(updates)])),
        Stage("ppo", lambda to: ppo(out, to, iterations=1 if quick else 24)),
        Stage("drawn", lambda to: judge(out, to)),
        Stage("votes.jsonl", lambda to: vote(out / "drawn" / "rows.jsonl", to)),
        Stage("judged", lambda to: judge(out, to, "--people", str(out / "votes.jsonl"))),
    ]


def train(method: str, out: Path, to: Path, settings: Sequence[str]) -> None:
    """``afzal train`` on the pairs labelled by valence; nothing is held out, since other openings are judged."""
    common = ["--model", start(), "--data", out / "data" / "clean.jsonl", "--out", to, "--batch-size", "16"]
    fixed = ["--epochs", "200", "--lr-schedule", "constant", "--warmup", "0", "--eval-fraction", "0", "--device", "cpu"]
    afzal("train", method, *common, *fixed, *settings)


def ppo(out: Path, to: Path, *, iterations: int) -> None:
    """PPO on the pairs' openings, with the reward model trained on the pairs."""
    about = ["--model", start(), "--data", out / "data" / "clean.jsonl", "--reward", out / "reward", "--out", to]
    size = ["--iterations", str(iterations), "--batch-size", "32", "--sample-tokens", str(_TOKENS)]
    how = ["--lr", "3e-4", "--lr-schedule", "constant", "--warmup", "0", "--ppo-epochs", "2", "--minibatches", "2"]
    afzal("train", "ppo", *about, *size, *how, "--kl-coef", "0.1", "--eval-fraction", "0", "--device", "cpu")


def judge(out: Path, to: Path, *more: str) -> None:
    """Answer held-out openings with every run and the start, and judge the answers, in one command."""
    answers = ["--prompts", out / "data" / "held-out.jsonl", "--n", str(_ANSWERS), "--max-new-tokens", str(_TOKENS)]
    judges = [word for spec in (out / "reward", start(), "rule:longest") for word in ("--judge", spec)]
    runs = [out / name for name in RUNS]
    if (out / "drawn").is_dir():  # reuse the same answers
        shutil.copytree(out / "drawn" / "answers", to / "answers")
    afzal("judge", *runs, "--against", start(), *answers, *judges, "--out", to, *more)


def vote(rows: Path, to: Path) -> None:
    """Votes of the simulated people on the answers that the judges saw."""
    items = [replace(item, votes=tuple(_vote(item, name) for name in PEOPLE)) for item in data.read(str(rows)).items]
    data.write(items, to, "afzal")


def _vote(item: Item, name: str) -> Comparison:
    texts = [str(response.turns) for response in item.responses]  # stories, not conversations
    gap = valence.summed("", texts[0]) - valence.summed("", texts[1])
    digest = hashlib.sha256(json.dumps([name, item.id]).encode()).digest()
    slip = int.from_bytes(digest[:8], "big") / 2**64 < SLIPS
    choice: Outcome = "tie" if abs(gap) < CLOSE else "first" if (gap > 0) ^ slip else "second"
    return Comparison(0, 1, choice, annotator=name)


if __name__ == "__main__":
    main()
