"""A small version of the DPO paper's controlled-sentiment experiment (Rafailov et al. 2023, section 6), in one command.

    python -m benchmarks.sentiment OUT            # 3 seeds
    python -m benchmarks.sentiment OUT --quick    # a quarter of the updates, 2 seeds, less than 3 minutes

A model of children's stories with 260 thousand weights is fine-tuned to answer an opening with its next sentence. Its
answers, ordered by the summed valence of their words, are the preferences. Then ``compare.yaml`` trains every method
on them and plots valence against KL. At the end, the page's path is printed. Running the command again resumes a
stopped run. Run it from the top folder of the checkout; it needs the folder ``shared/data`` next to the checkout, or
AFZAL_SHARED.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sentiment import data, table, valence

_SETTINGS = Path(__file__).with_name("compare.yaml")
_ANSWERS, _TOKENS = 4, 24
# Settings that --quick divides by four in every entry, with a minimum of 2.
_LENGTHS = ("max_steps", "iterations", "prompts_per_round")


def main(argv: Sequence[str] | None = None) -> Path:
    options = _options(argv)
    import torch

    from afzal.compare import compare

    torch.set_num_threads(1)  # operations this small are slower on several cores
    start = supervised(options.out)
    pairs = preferences(options.out, start)
    page = compare(comparison(options.out, start, pairs, quick=options.quick))
    print(f"figures: {table.write(page.parent)}")
    print(f"report: {page}")
    return page


def supervised(out: Path) -> Path:
    """The start: the story model fine-tuned on opening -> next sentence."""
    from afzal import config, recipes

    folder = out / "sft"
    if not (out / "held-out.jsonl").exists():
        data.write_openings(out)
    if (folder / "model.safetensors").exists():
        return folder
    settings = {
        "model": str(valence.shared() / "models" / "stories260k"),
        "data": str(out / "sft.jsonl"),
        "eval_data": str(out / "held-out.jsonl"),
        "out": str(folder),
        "batch_size": 32,
        "epochs": 3,
        "lr": 5e-4,
        "sample_prompts": 4,
        "sample_tokens": _TOKENS,
        "device": "cpu",
    }
    return recipes.train(config.make("sft", **settings), resume=(folder / "run.json").exists())


def preferences(out: Path, start: Path) -> Path:
    """Sample four answers of the start to each training opening, and write every pair with different valence."""
    from afzal import config
    from afzal.generate.run import generate

    answers, pairs = out / "answers.jsonl", out / "pairs.jsonl"
    if not answers.exists():
        drawn = {"model": str(start), "prompts": str(out / "sft.jsonl"), "n": _ANSWERS, "max_new_tokens": _TOKENS}
        settings = [config.Setting(k, v) for k, v in {**drawn, "batch_size": 256, "out": str(answers)}.items()]
        generate(config.build(config.GenerateConfig, settings))
    if not pairs.exists():
        print(f"{data.write_pairs(answers, pairs)} pairs ordered by summed valence")
    return pairs


def comparison(out: Path, start: Path, pairs: Path, *, quick: bool) -> Any:
    """The settings of ``compare.yaml`` for this folder."""
    from afzal import config

    settings = {s.key: s for s in config.read_file(_SETTINGS)}
    places = {"model": start, "data": pairs, "prompts": out / "held-out.jsonl", "out": out / "compare"}
    settings |= {k: config.Setting(k, str(v)) for k, v in places.items()}
    if quick:
        shorter = [_shorter(entry) for entry in settings["methods"].value]
        less = {"methods": shorter, "seeds": [0, 1], "snapshots": 2, "samples": 4, "max_prompts": 32}
        settings |= {k: config.Setting(k, v) for k, v in less.items()}
    return config.build(config.CompareConfig, list(settings.values()))


def _shorter(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: max(2, v // 4) if k in _LENGTHS else v for k, v in entry.items()}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the report")
    parser.add_argument("--quick", action="store_true", help="fewer updates, prompts and seeds")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
