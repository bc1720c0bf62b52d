"""Measurement of a comparison's policies: answers to the same prompts with the same random numbers, and their
rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal import data, runs
from afzal.compare import server_answers
from afzal.config import CompareConfig, entries
from afzal.config.serving import ServerConfig
from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_other_size
from afzal.folders.load import refuse_another_tokenizer
from afzal.generate import Prompt, Sampling, prompt_ids, sample
from afzal.generate.with_server import ServerQuery
from afzal.hashes import content_hash
from afzal.iterate.answers import sequence_kl
from afzal.model.adapters import is_adapted
from afzal.model.load import load_model, pick_device, vocabulary_of
from afzal.model.speakers import open_speaker
from afzal.prepare.columns import requested_columns, requests_of_rewards
from afzal.records import Item, Turns
from afzal.rewards.source import Rewarder
from afzal.runs.stage import key_of, read_stage, write_stage
from afzal.stats.policy_comparison import best_of, best_of_kl
from afzal.tokens import Speaker, Tree, any_chat, distinct_prompts
from afzal.train import checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Measured answers of one policy: X prompts, n answers each.

    Attributes:
        texts: ``[X][n]``.
        tokens: ``[X, n]`` int, tokens of each answer including EOS.
        unended: ``[X, n]`` bool, answers cut at the length limit.
        kl: ``[X, n]`` nats, whose mean estimates the KL to the start per answer.
        rewards: ``[X, n]`` by reward name.
        drawn_tokens: mean number of tokens drawn per answer; n times as many for best-of-n.
    """

    texts: list[list[str]]
    tokens: np.ndarray
    unended: np.ndarray
    kl: np.ndarray
    rewards: dict[str, np.ndarray]
    drawn_tokens: float


@dataclass(frozen=True, slots=True, eq=False)
class MeasurementSetup:
    """Everything that all policies of a comparison share.

    Attributes:
        inputs: the prompts as models read them: token ids, and trees for those with images or sounds.
    """

    start: Any
    speaker: Speaker
    prompts: Sequence[Turns]
    inputs: Sequence[Prompt]
    eos: Sequence[int]
    sampling: Sampling
    device: torch.device
    config: CompareConfig
    key: str
    columns: Sequence[Mapping[str, Any]]
    generator: ServerConfig | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A policy along a run: a checkpoint, or (without one) the run's finished model. ``step`` counts updates, or the
    rounds of an iteration."""

    run: Path
    step: int
    checkpoint: Path | None
    key: str


def set_up(config: CompareConfig) -> MeasurementSetup:
    """Load the start model and the prompts, and fix how answers are drawn.

    Answers end by the start model's rule, regardless of the methods' model folders.

    Raises:
        AfzalError: the model or the prompts cannot be read, or there are fewer than two prompts.
    """
    device = pick_device(config.device)
    speaker = open_speaker(config.model, eos_token=config.eos_token)
    start = load_model(config.model, device=device).requires_grad_(False)
    items, trees, columns = read_prompts(config, speaker)
    eos = speaker.ends(chat=any_chat(items))
    sampling = Sampling(config.sample_tokens, config.temperature)
    key_parts = [
        content_hash(config.model),
        [prompt_ids(t) for t in trees],
        eos,
        config.sample_tokens,
        config.temperature,
        config.samples,
    ]
    key_parts += [data.columns_hash(columns)] if any(columns) else []
    key_parts += [[t.prompt_key for t in trees]] if any(t.media for t in trees) else []
    generator = server_answers.generator_of(config)
    key_parts += [generator.model_dump(include={"kind", "url", "model", "reload"})] if generator is not None else []
    prompts = [item.prompt for item in items]
    return MeasurementSetup(
        start, speaker, prompts, trees, eos, sampling, device, config, key_of(*key_parts), columns, generator
    )


def read_prompts(config: CompareConfig, speaker: Speaker) -> tuple[list[Item], list[Tree], list[dict[str, Any]]]:
    """The items of the held-out prompts, their trees, and the columns of their rows that rewards ask for.

    Raises:
        AfzalError: they cannot be read, there are fewer than two, one of them leaves no room for an answer, or
            a reward asks for a column that no row has.
    """
    best_of = [e.settings["reward"] for e in entries(config) if e.kind == "best_of" and "reward" in e.settings]
    requests = requests_of_rewards(*config.rewards.values(), *best_of, *config.judges.values())
    items = data.read(config.prompts, request=data.merged_request(requests)).items
    names = requested_columns(requests, items, config.prompts)
    prompt_items = distinct_prompts(items, names)[: config.max_prompts]
    if len(prompt_items) < 2:
        raise AfzalError(
            f"{len(prompt_items)} prompts are too few to compare on", where=config.prompts, remedy="at least 2"
        )
    limit = speaker.limit_tokens(config.max_tokens) - config.sample_tokens
    if limit < 1:
        raise AfzalError("sample_tokens leaves no room for a prompt", remedy="lower sample_tokens, or raise max_tokens")
    trees = speaker.prompt_trees(prompt_items)
    long = [k for k, tree in enumerate(trees) if len(tree.prompt) > limit]
    if long:
        raise AfzalError(
            f"{len(long)} of {len(trees)} prompts have more than {limit} tokens, which leave no room for an answer",
            where=config.prompts,
            why=f"the first of them is prompt {long[0]}, with {len(trees[long[0]].prompt)} tokens",
            remedy="leave them out, lower sample_tokens, or raise max_tokens up to the model's context",
        )
    return prompt_items, trees, data.column_values(prompt_items, names)


def open_finished(run: Path) -> runs.Run:
    """Open a finished run.

    Raises:
        AfzalError: the run is not finished.
    """
    finished_run = runs.open_run(run)
    if finished_run.status() != "finished":
        raise AfzalError(f"the run {run} is {finished_run.status()}", remedy=f"afzal train {run} --resume")
    return finished_run


def snapshots(run: Path, max_snapshots: int) -> list[Snapshot]:
    """At most ``max_snapshots`` policies along a run, evenly spaced, in order of step; the last is its finished model.

    Raises:
        AfzalError: the run did not finish.
    """
    if not (run / "run.json").exists():  # a model folder that is not a run
        return [Snapshot(run, 1, None, content_hash(str(run)))]
    facts = open_finished(run).facts()
    if (run / "rounds.json").exists():
        trained_rounds = [r["number"] for r in runs.read_json(run / "rounds.json")["rounds"] if r["steps"]]
        folders = {k: run / "rounds" / f"{k:03d}" / "run" for k in trained_rounds}
        return _evenly_spaced(
            [Snapshot(path, k, None, content_hash(str(path))) for k, path in folders.items()], max_snapshots
        )
    end = int(facts.get("kept_step", facts.get("step", 0)))
    weights = content_hash(str(run))
    on_the_way = [
        Snapshot(run, step, path, f"{weights} {checkpoint.fingerprint(path, 'model')}")
        for step, path in checkpoint.listed(run / "checkpoints")
        if step < end
    ]
    return _evenly_spaced([*on_the_way, Snapshot(run, end, None, weights)], max_snapshots)


def _evenly_spaced(snaps: Sequence[Snapshot], most: int) -> list[Snapshot]:
    places = np.linspace(0, len(snaps), min(most, len(snaps)) + 1)[1:].round().astype(int) - 1
    return [snaps[k] for k in places]


def measure_snapshots(
    setup: MeasurementSetup,
    snaps: Sequence[Snapshot],
    rewarders: Mapping[str, Rewarder],
    keys: Mapping[str, str],
    seed: int,
    name: str,
) -> Iterator[tuple[Snapshot, Answers]]:
    """Yield the answers of each snapshot, drawn and scored now or read from an earlier call's file.

    Args:
        keys: for each reward, the hash of its source.
        seed: of the draws; with the same seed every policy answers a prompt with the same random numbers.
        name: stem of the files.
    """
    model = None
    for snap in snaps:
        path = Path(setup.config.out) / "measured" / f"{name}-step-{snap.step:08d}.json"
        key = key_of(setup.key, snap.key, dict(sorted(keys.items())), seed)
        answers = _read(path, key)
        if answers is None:
            model = _load_snapshot(model, snap, setup)
            with _source(setup, model, snap, path, key) as source:
                answers = _measure(setup, model, rewarders, seed, source)
            _write(path, key, answers, source)
        yield snap, answers


def start_answers(
    setup: MeasurementSetup, rewarders: Mapping[str, Rewarder], keys: Mapping[str, str], seed: int
) -> Answers:
    """The answers of the start model itself, whose KL is 0."""
    path = Path(setup.config.out) / "measured" / f"start-{seed}.json"
    key = key_of(setup.key, dict(sorted(keys.items())), seed)
    answers = _read(path, key)
    if answers is None:
        source = _start_source(setup, path, key)
        answers = _measure(setup, setup.start, rewarders, seed, source)
        _write(path, key, answers, source)
    return answers


def best_of_answers(
    setup: MeasurementSetup,
    numbers: Sequence[int],
    ranking: Rewarder,
    ranking_key: str,
    rewarders: Mapping[str, Rewarder],
    keys: Mapping[str, str],
    seed: int,
    name: str,
) -> list[tuple[int, Answers]]:
    """For each n, the best of n answers of the start by ``ranking``; their KL is the upper bound.

    Smaller n use the first candidates of larger n.
    """
    places = {n: Path(setup.config.out) / "measured" / f"{name}-best-of-{n:05d}.json" for n in numbers}
    hashes = {n: key_of(setup.key, ranking_key, dict(sorted(keys.items())), seed, n) for n in numbers}
    known = {n: a for n in numbers if (a := _read(places[n], hashes[n])) is not None}
    missing = [n for n in numbers if n not in known]
    if missing:
        answers, most = setup.config.samples, max(missing)
        source = _start_source(setup, places[most], hashes[most])
        drawn = _draw(setup, setup.start, most * answers, seed, source)
        scores = np.asarray(ranking(*_rewarder_arguments(setup, drawn.texts, drawn.unended))).reshape(
            len(setup.prompts), -1
        )
        for n in missing:
            known[n] = _select_answers(setup, drawn, best_of(scores, n, answers), n, rewarders)
        for n in missing:
            _write(places[n], hashes[n], known[n], source)
    return [(n, known[n]) for n in numbers]


def _select_answers(
    setup: MeasurementSetup, candidates: Answers, take: np.ndarray, n: int, rewarders: Mapping[str, Rewarder]
) -> Answers:
    texts = [[row[k] for k in places] for row, places in zip(candidates.texts, take.tolist(), strict=True)]
    tokens, unended = (np.take_along_axis(a, take, 1) for a in (candidates.tokens, candidates.unended))
    drawn_tokens = candidates.tokens[:, : n * take.shape[1]].sum() / take.size
    kl = np.full(take.shape, best_of_kl(n))
    return Answers(texts, tokens, unended, kl, _rewards(setup, texts, unended, rewarders), float(drawn_tokens))


def _start_source(setup: MeasurementSetup, path: Path, key: str) -> server_answers.Source | None:
    """The server source of the start's answers; None without a generator."""
    folder = server_answers.server_path(setup.config.model)
    return server_answers.Source(setup.generator, folder, _replies(path, key)) if setup.generator is not None else None


@contextmanager
def _source(
    setup: MeasurementSetup, model: Any, snap: Snapshot, path: Path, key: str
) -> Iterator[server_answers.Source | None]:
    """The server source of a snapshot's answers, or None without a generator; its folder exists within the block.

    Args:
        path, key: file and key of the measurement.
    """
    if setup.generator is None:
        yield None
    elif snap.checkpoint is None:
        yield server_answers.Source(setup.generator, server_answers.server_path(snap.run), _replies(path, key))
    else:
        with server_answers.temporary_model_folder(model, setup.speaker, path.with_suffix("")) as folder:
            yield server_answers.Source(setup.generator, folder, _replies(path, key))


def _replies(path: Path, key: str) -> Path:
    """The file of replies, for exactly the weights that the key identifies."""
    return path.with_name(f"{path.stem}-{key[:16]}.replies.sqlite")


def _measure(
    setup: MeasurementSetup,
    model: Any,
    rewarders: Mapping[str, Rewarder],
    seed: int,
    source: server_answers.Source | None,
) -> Answers:
    answers = _draw(setup, model, setup.config.samples, seed, source)
    return replace(answers, rewards=_rewards(setup, answers.texts, answers.unended, rewarders))


def _draw(
    setup: MeasurementSetup, model: Any, n: int, seed: int, source: server_answers.Source | None = None
) -> Answers:
    """``n`` answers to each prompt with their KL to the start, without rewards."""
    ids = [prompt_ids(p) for p in setup.inputs]
    if source is None:
        options = {"n": n, "sampling": setup.sampling, "seed": seed, "rows_per_batch": setup.config.rows_per_batch}
        samples = sample(model, setup.inputs, eos=setup.eos, **options)
        flat = setup.speaker.continuations([(ids[s.prompt_index], s.answer.tolist()) for s in samples])
    else:
        samples, flat = server_answers.request_answers(
            source, ServerQuery(setup.prompts, n, setup.sampling, seed, setup.speaker, ids)
        )
    shape = (len(setup.prompts), n)
    texts = [flat[k * n : (k + 1) * n] for k in range(len(setup.prompts))]
    tokens = np.array([len(s.ids) for s in samples]).reshape(shape)
    unended = np.array([s.stop == "length" for s in samples]).reshape(shape)
    kl = np.zeros(shape)
    if model is not setup.start:
        temperature, budget = setup.sampling.temperature, setup.config.tokens_per_forward
        kl += np.reshape(sequence_kl(model, setup.start, samples, setup.inputs, budget, temperature), shape)
    return Answers(texts, tokens, unended, kl, {}, float(tokens.mean()))


def _rewards(
    setup: MeasurementSetup, texts: list[list[str]], unended: np.ndarray, rewarders: Mapping[str, Rewarder]
) -> dict[str, np.ndarray]:
    arguments = _rewarder_arguments(setup, texts, unended)
    return {name: np.asarray(give(*arguments)).reshape(len(texts), -1) for name, give in rewarders.items()}


def _rewarder_arguments(
    setup: MeasurementSetup, texts: list[list[str]], unended: np.ndarray
) -> tuple[list[Turns], list[str], list[bool], list[Mapping[str, Any]]]:
    """The arguments for a rewarder about these answers."""
    prompts = [p for p, row in zip(setup.prompts, texts, strict=True) for _ in row]
    columns = [c for c, row in zip(setup.columns, texts, strict=True) for _ in row]
    return prompts, [text for row in texts for text in row], (~unended).ravel().tolist(), columns


def _load_snapshot(model: Any, snap: Snapshot, setup: MeasurementSetup) -> Any:
    """The model of a snapshot: loaded if it is the finished one, else the run's model with the checkpoint's weights."""
    if model is None or snap.checkpoint is None:
        what = f"the run {snap.run}"
        refuse_another_tokenizer(setup.speaker.tokenizer, str(snap.run), what)
        model = load_model(str(snap.run), device=setup.device)
        refuse_other_size(vocabulary_of(setup.start), vocabulary_of(model), what)
    if snap.checkpoint is not None:
        _copy_weights(model, snap.checkpoint)
    return model.requires_grad_(False)


def _copy_weights(model: Any, path: Path) -> None:
    """Copy a checkpoint's weights into the model; the checkpoint must hold all trained weights."""
    tensors = checkpoint.load(path)[0]["model"]
    parameters = dict(model.named_parameters())
    misfits = [n for n, t in tensors.items() if n not in parameters or parameters[n].shape != t.shape]
    lacking = [n for n in parameters if n not in tensors] if not is_adapted(model) else []
    if misfits or lacking or not tensors:
        raise AfzalError(
            f"the checkpoint {path} does not fit the model of its run",
            why=f"{(misfits + lacking)[0]} differs" if misfits or lacking else "it holds no weights",
            remedy="delete the run to train it again",
        )
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _read(path: Path, key: str) -> Answers | None:
    body = read_stage(path, key)
    if body is None:
        return None
    rewards = {name: np.asarray(values) for name, values in body["rewards"].items()}
    arrays = (np.asarray(body[name]) for name in ("tokens", "unended", "kl"))
    return Answers(body["texts"], *arrays, rewards=rewards, drawn_tokens=body["drawn"])


def _write(path: Path, key: str, answers: Answers, source: server_answers.Source | None) -> None:
    arrays = {name: getattr(answers, name).tolist() for name in ("tokens", "unended", "kl")}
    rewards = {name: values.tolist() for name, values in answers.rewards.items()}
    write_stage(path, key, {"drawn": answers.drawn_tokens, **arrays, "rewards": rewards, "texts": answers.texts})
    if source is not None:
        server_answers.delete_replies(source)
