"""The demonstration on a language with a known gold reward: data, SFT, DPO and the exact gain; then on real data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from afzal import config, recipes, report, runs
from afzal.errors import AfzalError
from afzal.lab import exact, language
from afzal.lab.exact import Exact, Frontier
from afzal.lab.measure import log_policy
from afzal.report import sections
from afzal.stats.intervals import half_width
from afzal.terminal.console import VisibleConsole

PICTURE = "frontier.svg"
_SEED = 0
_N_HELD_OUT = 512
_SMALL_MODEL_BYTES = 400_000_000  # 100 million float32 weights


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the demonstration: rows, updates, and the values of beta; the last beta is that of the main run."""

    demonstrations: int
    sft_steps: int
    pairs: int
    dpo_steps: int
    betas: tuple[float, ...]


PROPER = Plan(demonstrations=20_000, sft_steps=600, pairs=8_000, dpo_steps=300, betas=(1.0, 0.3, 0.1))
QUICK = Plan(demonstrations=8_000, sft_steps=250, pairs=4_000, dpo_steps=120, betas=(0.1,))


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The held-out prompts ``[X, 3]``, the reference's log-probs ``[X, Y]`` and the gold rewards."""

    prompts: np.ndarray
    log_ref: np.ndarray
    rewards: np.ndarray
    frontier: Frontier


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A trained policy: its folder, its log-probs on the held-out prompts, and the exact figures."""

    label: str
    run: Path
    log_pi: np.ndarray
    figures: Exact


def run(out: Path, quick: bool = False, model: str | None = None, data: str | None = None) -> Path:
    """Generate data, train SFT and DPO on it with the ordinary recipes, and report the exact gain.

    Args:
        out: folder for the data, the runs and their pages; if it is in use, the next free ``out-2``, ``out-3`` ...
        quick: use fewer rows and updates and one value of beta: less than one minute instead of less than three.
        model, data: a model and a preference file for a second run afterwards; both or neither.

    Returns:
        The folder of the main DPO run, whose ``report.html`` shows the frontier, as does ``frontier.svg`` in ``out``.
    """
    if (model is None) != (data is None):
        raise AfzalError("a model and data go together", remedy="give both --model and --data, or neither")
    out, plan, console = _unused(Path(out)), QUICK if quick else PROPER, VisibleConsole(emoji=False)
    with _one_thread():
        reference = _supervised(out, plan)
        world, outcomes = _preferences(out, plan, reference)
    main = outcomes[-1]
    chart = _chart(world, outcomes)
    sections.write(main.run, _sections(world, outcomes, chart))
    report.build(main.run)
    runs.atomic_write(out / PICTURE, report.standalone(chart.draw("expected reward against KL, exact")))
    console.print(_table(world, outcomes))
    console.print(_verdict(world, main), highlight=False)
    console.print(f"report: {main.run / 'report.html'}", highlight=False, soft_wrap=True)
    if model is not None and data is not None:
        _real(out, quick, model, data, console)
    return main.run


def _unused(out: Path) -> Path:
    """``out`` itself, or the first free ``out-2``, ``out-3`` ... next to it; nothing is overwritten."""
    candidate, n = out, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        n += 1
        candidate = out.with_name(f"{out.name}-{n}")
    return candidate


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: so small a model is slower if its operations are spread over cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _supervised(out: Path, plan: Plan) -> Path:
    """The SFT run: the policy whose answers get preferences, and the reference of DPO."""
    rng = np.random.default_rng(_SEED)
    train, held_out = language.prompts()
    rows = language.sft_items(train, plan.demonstrations, rng)
    language.write_demonstrations(rows, out / "data" / "demonstrations.jsonl")
    rows = language.sft_items(held_out, _N_HELD_OUT, rng)
    language.write_demonstrations(rows, out / "data" / "demonstrations-held-out.jsonl")
    start = language.save_model(out / "start", seed=_SEED)
    return recipes.train(
        config.make(
            "sft",
            model=str(start),
            data=str(out / "data" / "demonstrations.jsonl"),
            eval_data=str(out / "data" / "demonstrations-held-out.jsonl"),
            out=str(out / "sft"),
            batch_size=128,
            lr=3e-3,
            warmup=50,
            **_steps(plan.sft_steps, 128, plan.demonstrations),
        )
    )


def _preferences(out: Path, plan: Plan, reference: Path) -> tuple[World, list[Outcome]]:
    """One DPO run per beta, on the same noisy pairs sampled from the reference."""
    train, held_out = language.prompts()
    log_ref, rewards = log_policy(reference, held_out), language.reward(held_out)
    world = World(held_out, log_ref, rewards, exact.frontier(log_ref, rewards))
    rng = np.random.default_rng(_SEED + 1)
    _write_pairs(train, log_policy(reference, train), plan.pairs, out / "data" / "pairs.jsonl", rng)
    _write_pairs(held_out, log_ref, _N_HELD_OUT, out / "data" / "pairs-held-out.jsonl", rng)
    outcomes = [Outcome("SFT", reference, log_ref, exact.evaluate(log_ref, log_ref, rewards))]
    for beta in plan.betas:
        run_folder = recipes.train(
            config.make(
                "dpo",
                model=str(reference),
                data=str(out / "data" / "pairs.jsonl"),
                eval_data=str(out / "data" / "pairs-held-out.jsonl"),
                out=str(out / ("dpo" if beta == plan.betas[-1] else f"dpo-beta-{beta:g}")),
                beta=beta,
                batch_size=64,
                lr=5e-4,
                lr_schedule="constant",
                warmup=30,
                **_steps(plan.dpo_steps, 64, plan.pairs),
            )
        )
        log_pi = log_policy(run_folder, held_out)
        outcomes.append(Outcome(f"DPO, beta {beta:g}", run_folder, log_pi, exact.evaluate(log_pi, log_ref, rewards)))
    return world, outcomes


def _steps(steps: int, batch_size: int, rows: int) -> dict[str, Any]:
    """Settings that all runs of the language share, and those that make a run ``steps`` long."""
    length = {"epochs": steps * batch_size / rows, "max_steps": steps, "eval_every_steps": max(1, steps // 5)}
    return {**language.SETTINGS, **length, "device": "cpu", "sample_prompts": language.N_HELD_OUT}


def _write_pairs(prompts: np.ndarray, log_ref: np.ndarray, n: int, path: Path, rng: np.random.Generator) -> None:
    pairs = language.sample_pairs(np.exp(log_ref), n, rng)
    prompt_index, first, second = pairs
    rewards = language.reward(prompts)
    votes = language.noisy(rewards[prompt_index, first] - rewards[prompt_index, second], rng)
    language.write_pairs(language.pair_items(prompts, pairs, votes), path)


_COLUMNS = ("policy", "reward", "KL, nats", "best at KL", "gain won", "beats SFT")


def _rows(world: World, outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """The measurements as text, so that both tables agree: one row per policy, and one for the best possible policy."""
    rows = []
    for o in outcomes:
        f, left_start = o.figures, o.figures.kl > 0
        shares = (f"{f.share:.0%}" if left_start else "", f"{f.win_rate:.1%}" if left_start else "")
        rows.append((o.label, f"{f.reward:.3f}", f"{f.kl:.3f}", f"{f.optimal:.3f}", *shares))
    best_reward, distance = world.frontier.reward[-1], world.frontier.kl[-1]
    return [*rows, ("only best responses", f"{best_reward:.3f}", f"{distance:.3f}", f"{best_reward:.3f}", "100%", "")]


def _table(world: World, outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title=f"Exact: all {len(language.RESPONSES)} responses to each of {len(world.prompts)} held-out prompts"
    )
    for k, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in _rows(world, outcomes):
        table.add_row(*row)
    return table


def _verdict(world: World, main: Outcome) -> str:
    start, after = world.frontier.reward[0], main.figures
    return (
        f"{main.label}: expected reward {start:.2f} -> {after.reward:.2f} at a KL of {after.kl:.2f} nats.\n"
        f"No policy can have more than {after.optimal:.2f} there: {after.share:.0%} of the possible gain is won."
    )


def _chart(world: World, outcomes: Sequence[Outcome]) -> sections.FrontierChart:
    """A chart of the policies by KL and expected reward, below the curve of the best possible reward."""
    spots = [sections.PolicyPoint(o.label, o.figures.kl, o.figures.reward) for o in outcomes]
    spots += [_best_of(world, n) for n in (4, 16)]
    curve = tuple(zip(world.frontier.kl.tolist(), world.frontier.reward.tolist(), strict=True))
    return sections.FrontierChart(tuple(spots), curve, optimum_label="optimum")


def _sections(world: World, outcomes: Sequence[Outcome], chart: sections.FrontierChart) -> list[sections.Section]:
    main = outcomes[-1]
    text = "\n\n".join(filter(None, (_verdict(world, main), _estimate(main), _ABOUT)))
    table = sections.Table(_COLUMNS, tuple(_rows(world, outcomes)))
    gain = sections.Section("What was gained, exactly", text, chart, table)
    return [gain, _likeliest_section(world, main)]


def _estimate(main: Outcome) -> str:
    """A sentence that compares the run's own estimate of the KL with the exact value."""
    last = runs.open_run(main.run).last("eval")
    if "kl_se" not in last:
        return ""
    sampled = f"{last['kl']:.2f} ± {half_width(last['kl_se']):.2f}"
    return f"From one sample per held-out prompt the run put its KL at {sampled} (95%); it is {main.figures.kl:.2f}."


_ABOUT = (
    "In this language every response to a prompt can be listed, so these are sums, not estimates: the expected gold "
    "reward, the KL to the SFT policy, and the curve of the best reward that any policy can have at each KL, "
    "pi_ref exp(r / beta) / Z. Training never saw these prompts, nor the reward: only noisy votes on pairs.\n\n"
    "Best of n draws n responses of the SFT policy and keeps the one with the highest gold reward, which only a "
    "world that knows its reward can do. Four tokens are the longest response, and the limit ends it; the rows "
    "counted as cut are these, and nothing was lost with them.\n\n"
    "Chosen responses may become less likely too, and the page then says so: the votes compare ordinary responses, "
    "while the probability goes to the best ones, as the list below shows."
)


def _best_of(world: World, n: int) -> sections.PolicyPoint:
    policy = exact.best_of(world.log_ref, world.rewards, n)
    position = exact.kl(policy, world.log_ref), exact.expected(policy, world.rewards)
    return sections.PolicyPoint(f"best of {n}", *position, colour=sections.svg.OTHER)


def _likeliest_section(world: World, main: Outcome) -> sections.Section:
    """The likeliest responses to one held-out prompt, before and after training."""
    after, before, rewards = np.exp(main.log_pi[0]), np.exp(world.log_ref[0]), world.rewards[0]
    rows = tuple(
        (language.response_text(language.RESPONSES[y]), float(rewards[y]), f"{before[y]:.2%}", f"{after[y]:.2%}")
        for y in np.argsort(-after, kind="stable")[:10]
    )
    prompt = language.prompt_text(world.prompts[0])
    text = (
        f"The ten likeliest responses of {main.label} to {prompt} together have {sum(np.sort(after)[-10:]):.0%} of the "
        f"probability, and had {before[np.argsort(-after)[:10]].sum():.1%} before. The best reward of any response is "
        f"{rewards.max():.2f}."
    )
    columns = ("response", "gold reward", "SFT", main.label)
    return sections.Section(f"One held-out prompt, {prompt}", text, None, sections.Table(columns, rows))


def _real(out: Path, quick: bool, model: str, data: str, console: Console) -> None:
    """Run DPO on real preferences; nothing is exact there, so the held-out metrics are shown."""
    settings: dict[str, Any] = {"max_steps": 20} if quick else {"epochs": 3}
    if _is_small(model):
        settings |= {"lr": 1e-4, "batch_size": 16}
    run_folder = recipes.train(config.make("dpo", model=model, data=data, out=str(out / "real"), **settings))
    records = runs.open_run(run_folder).metrics("eval")
    if records:
        console.print(_real_table(Path(data).name, records[0], records[-1]))
    console.print(f"report: {run_folder / 'report.html'}", highlight=False, soft_wrap=True)


def _is_small(model: str) -> bool:
    """Whether a model is so small that the learning rates of large models would not move it."""
    files = list(Path(model).glob("*.safetensors"))
    return bool(files) and sum(f.stat().st_size for f in files) < _SMALL_MODEL_BYTES


def _real_table(name: str, first: Mapping[str, Any], last: Mapping[str, Any]) -> Table:
    table = Table(title=f"{name}: {int(first.get('n', 0))} held-out items")
    for k, column in enumerate(("step", "loss", "reward accuracy (95% interval)", "margin", "KL, nats")):
        table.add_column(column, justify="right" if k else "left")
    for r in (first, last):
        accuracy = _interval(r, "rewards/accuracies")
        cells = [f"{r[k]:.3f}" if k in r else "" for k in ("loss", "rewards/margins", "kl")]
        table.add_row(str(r["step"]), cells[0], accuracy, cells[1], cells[2])
    return table


def _interval(record: Mapping[str, Any], name: str) -> str:
    values = [record.get(key) for key in (name, f"{name}_low", f"{name}_high")]
    if None in values:
        return ""
    return "{:.3f} ({:.3f} to {:.3f})".format(*values)
