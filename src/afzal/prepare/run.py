"""Turn a data source into trees: read, clean, split, encode, select. No model is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from afzal import data, quality
from afzal.config import TrainConfig
from afzal.config.sections import DemonstrationSettings
from afzal.drops import Drop, counts, with_stage
from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_ids_without_rows
from afzal.folders.load import load_processor
from afzal.hashes import tokens_hash
from afzal.model.adapters import positions_taken
from afzal.model.load import load_tokenizer, remaining_context
from afzal.model.speakers import open_speaker, speaker_of
from afzal.prepare import demonstrations, passes
from afzal.prepare.columns import requested_columns, requests_of_run, with_columns
from afzal.prepare.recipe import Recipe, recipe_of
from afzal.prepare.tasks import epoch_of, require_tasks, task_facts, task_lines, tasks_of
from afzal.records import Item, Turns, pooled_axes, prompt_key
from afzal.tokens import Speaker, any_chat, distinct_prompts, mismatched, rendering
from afzal.tokens.assistant_turns import remark_texts
from afzal.tokens.tree import Tree


@dataclass(frozen=True, slots=True)
class Prepared:
    """Trees ready to train on, and an account of every row that was left out.

    ``dropped`` is the content of ``dropped.jsonl``, ``facts`` the data part of ``run.json``, ``audit`` that of
    ``data.json``. ``chat`` says whether some rows are conversations. For a policy that writes its own answers, trees
    are prompts without branches, and ``prompts`` are their texts. ``tasks`` are task names, indexed by the trees' task
    numbers.
    """

    speaker: Speaker
    train: list[Tree]
    evaluation: list[Tree]
    train_mismatched: list[Tree]
    evaluation_mismatched: list[Tree]
    dropped: list[Drop]
    facts: dict[str, Any]
    audit: dict[str, Any]
    notes: list[str]
    chat: bool
    recipe: Recipe
    max_tokens: int
    evaluation_items: Sequence[Item] = ()
    prompts: Sequence[Turns] = ()
    evaluation_prompts: Sequence[Turns] = ()
    tasks: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """The speaker's tokenizer."""
        return self.speaker.tokenizer

    @property
    def ends(self) -> list[int]:
        """Token ids that end an answer of the model."""
        return self.speaker.ends(chat=self.chat)

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response, including its end token; 0 if the data hold only prompts."""
        return max((len(b.ids) for t in (*self.train, *self.evaluation) for b in t.branches), default=0)


def prepare(config: TrainConfig, *, model: Any = None, tokenizer: Any = None) -> Prepared:
    """Read and encode the data of a run. Only the tokenizer is loaded, if it is not given.

    Raises:
        AfzalError: a source cannot be read, or nothing is left to train on (says why rows were lost).
    """
    recipe = recipe_of(config)
    speaker = _speaker(config, model, tokenizer)
    dropped: list[Drop] = []
    column_requests = requests_of_run(config)
    dataset, items = _load(config.data, config, dropped, data.merged_request(column_requests))
    held_out = _held_out(config, items, dropped, data.merged_request(column_requests))
    columns = requested_columns(column_requests, [item for part in held_out for item in part], config.data)
    chat = any_chat(items)
    notes = _use_template(speaker, config, chat)
    if config.demonstrated is not None:
        held_out = _with_samples(config.demonstrated, held_out, dropped, notes)
    audit = {"audit": asdict(quality.audit(dataset)), "notes": list(dataset.notes)}
    longest = speaker.limit_tokens(config.max_tokens)
    if longest < config.max_tokens:
        notes.append(f"max_tokens is {longest}, not {config.max_tokens}: the model has no more positions")
    notes += _warnings(*held_out)
    notes += _uneven(held_out, config)
    notes += [] if config.rollouts is not None else _without_effect(held_out[0], config.method, recipe)
    encoder = _Encoder(speaker, longest, recipe, dropped, columns)
    prompts: tuple[Sequence[Turns], Sequence[Turns]] = ((), ())
    if config.rollouts is not None:
        limit = config.rollouts.sample_tokens
        (train, train_prompts), (evaluation, evaluation_prompts) = (encoder.prompts(part, limit) for part in held_out)
        prompts = train_prompts, evaluation_prompts
    else:
        train, evaluation = (encoder.trees(items) for items in held_out)
    notes += remark_texts(encoder.remarks)
    all_items = [*held_out[0], *held_out[1]]
    if config.adaptation is not None:
        require_tasks(all_items, config.task)
    tasks = tasks_of(all_items, config.task)
    train, evaluation = tasks.on(train), tasks.on(evaluation)
    chosen = epoch_of(train, tasks, dataset.mixture, config.seed)
    by_task = task_facts(tasks, train, chosen, evaluation) if tasks.several else []
    if "task" in recipe.uses and not tasks.several:
        raise AfzalError(
            f"{config.method} weighs tasks or groups, and the rows name fewer than two",
            where=config.data,
            remedy="name the field that holds the task with task=, or train on a mixture of sources",
        )
    train = [train[k] for k in chosen]
    notes += _one_sided(train, recipe)
    if prompts[0]:
        prompts = [prompts[0][k] for k in chosen], prompts[1]
    notes += task_lines(by_task) if dataset.mixture is not None and by_task else []
    facts = {
        "source": dataset.source or config.data,
        "format": dataset.format,
        "rows": dataset.rows,
        "kept": dataset.kept,
        **counts(dropped),
        "train": len(train),
        "eval": len(evaluation),
        "fingerprint": dataset.fingerprint,
        **({"media": n_media} if (n_media := sum(bool(t.media) for t in (*train, *evaluation))) else {}),
        **({"tasks": by_task} if by_task else {}),
        **({"columns": data.columns_hash(t.columns for t in (*train, *evaluation))} if columns else {}),
    }
    _refuse_nothing(train, facts, dropped, config)
    if recipe.shows_pieces and not any(t.media for t in train):
        raise AfzalError(
            "objective mdpo compares images and sounds with pieces of them, and no row has any",
            where=config.data,
            remedy="objective=dpo",
        )
    mismatch = recipe.needs_mismatched
    # held-out rows may be few: their partners come from all rows
    partners = _partners([*evaluation, *train], config.seed, longest) if mismatch else []
    split = len(evaluation) if mismatch else 0
    trees = (train, evaluation, partners[split:], partners[:split])
    facts["tokens"] = tokens_hash(trees)
    fields = {"recipe": recipe, "max_tokens": longest, "chat": chat, "evaluation_items": held_out[1]}
    fields |= {"prompts": prompts[0], "evaluation_prompts": prompts[1]}
    fields["tasks"] = tasks.names
    return Prepared(speaker, *trees, dropped=dropped, facts=facts, audit=audit, notes=notes, **fields)


def _speaker(config: TrainConfig, model: Any, tokenizer: Any) -> Speaker:
    """The speaker of the model to train; the run's virtual tokens shorten its context."""
    stated: Any = {"chat_template": config.chat_template, "eos_token": config.eos_token}
    if model is None:
        speaker = open_speaker(config.model, tokenizer=tokenizer, **stated)
    else:
        if tokenizer is None:
            tokenizer = load_processor(config.model) or load_tokenizer(config.model)
        rows = model.get_input_embeddings().num_embeddings
        refuse_ids_without_rows(getattr(tokenizer, "tokenizer", tokenizer), rows, "the given model")
        speaker = speaker_of(model, tokenizer, **stated)
    added = 0
    if config.policy is not None:
        adapter = config.policy.adapter_from
        added = positions_taken(adapter) if adapter is not None else config.policy.virtual_tokens or 0
    return replace(speaker, context=remaining_context(speaker.context, added))


def _use_template(speaker: Speaker, config: TrainConfig, chat: bool) -> list[str]:
    """If there are conversations, set the tokenizer's chat template, so that it is saved with it; return notes about
    it.

    Raises:
        AfzalError: a template is set, but no row is a conversation.
    """
    if not chat:
        if config.chat_template is not None:
            raise AfzalError(
                "chat_template has no effect: no row is a conversation", where=config.data, remedy="leave it out"
            )
        return []
    speaker.tokenizer.chat_template = speaker.files.chat_template = speaker.template
    notes = [speaker.notice] if speaker.notice else []
    if "strftime_now" in speaker.template:
        notes.append(f"the chat template writes the date: {rendering.date():%Y-%m-%d} throughout this run")
    return notes


@dataclass(frozen=True, slots=True)
class _Encoder:
    speaker: Speaker
    max_tokens: int
    recipe: Recipe
    dropped: list[Drop]
    columns: Sequence[str] = ()
    remarks: Counter[str] = field(default_factory=Counter)

    def trees(self, items: Sequence[Item]) -> list[Tree]:
        """The trees of these items for this method; drops are added to ``dropped``."""
        encoded = self.speaker.encode(items, max_tokens=self.max_tokens)
        encoded_items = [items[k] for k in encoded.indices]
        trees, select_drops = self.recipe.select(
            with_columns(encoded.trees, encoded_items, self.columns), encoded_items
        )
        self.dropped.extend(with_stage("encode", (*encoded.drops, *encoded.cuts)))
        self.remarks.update(encoded.remarks)
        self.dropped.extend(with_stage("select", select_drops))
        return trees

    def prompts(self, items: Sequence[Item], answer_tokens: int) -> tuple[list[Tree], list[Turns]]:
        """The distinct prompts of these items, as trees without branches and as turns; those that leave no room for an
        answer are added to ``dropped``."""
        distinct = distinct_prompts(items, self.columns)
        prompt_trees = with_columns(self.speaker.prompt_trees(distinct, remarks=self.remarks), distinct, self.columns)
        most_tokens = self.max_tokens - answer_tokens
        trees, texts = [], []
        for item, tree in zip(distinct, prompt_trees, strict=True):
            if len(tree.prompt) > most_tokens:
                detail = f"{len(tree.prompt)} tokens; at most {most_tokens} leave room for an answer of {answer_tokens}"
                self.dropped.append(Drop(item.where, item.id, "prompt_too_long", detail, stage="encode"))
                continue
            trees.append(tree)
            texts.append(item.prompt)
        return trees, texts


def _partners(trees: list[Tree], seed: int, max_tokens: int) -> list[Tree]:
    return mismatched(trees, seed, max_tokens=max_tokens) if trees else []


def _load(
    source: str, config: TrainConfig, dropped: list[Drop], request: data.ColumnRequest
) -> tuple[data.Dataset, Sequence[Item]]:
    """Read a source; return it and its cleaned items on the chosen axis. Drops are added to ``dropped``."""
    on_error = "drop" if config.skip_bad else "raise"
    columns, format = config.columns or None, config.data_format
    dataset = data.read(source, columns=columns, format=format, on_error=on_error, request=request)
    items, drops = passes.apply_passes(dataset.items, passes.of_source(config, source, request.columns(dataset.items)))
    dropped += [*with_stage("read", dataset.drops), *drops]
    return dataset, items


def _held_out(
    config: TrainConfig, items: Sequence[Item], dropped: list[Drop], request: data.ColumnRequest
) -> tuple[Sequence[Item], Sequence[Item]]:
    if config.eval_data is not None:
        return items, _load(config.eval_data, config, dropped, request)[1]
    if config.eval_fraction == 0:
        return items, []
    return data.split(items, config.eval_fraction, config.seed)


def _with_samples(
    settings: DemonstrationSettings,
    parts: tuple[Sequence[Item], Sequence[Item]],
    dropped: list[Drop],
    notes: list[str],
) -> tuple[Sequence[Item], Sequence[Item]]:
    """Both parts with the samples of their prompts; drops are added to ``dropped``."""
    samples = demonstrations.read_samples(settings.samples)
    results = []
    for part in parts:
        combined, drops = passes.apply_passes(part, passes.of_part(samples))
        dropped += drops
        results.append(combined)
    if unused := demonstrations.count_unanswered([item for part in parts for item in part], samples):
        notes.append(f"samples whose prompts have no demonstration, and which therefore teach nothing: {unused}")
    if note := demonstrations.length_note([item for part in results for item in part]):
        notes.append(note)
    return results[0], results[1]


def _warnings(train: Sequence[Item], evaluation: Sequence[Item]) -> list[str]:
    """Warnings about training on these items."""
    warnings = []
    leaked = {prompt_key(item) for item in train} & {prompt_key(item) for item in evaluation}
    if leaked:
        warnings.append(f"{len(leaked)} held-out prompts are also trained on, so held-out figures will be too good")
    if axes := pooled_axes(train):
        warnings.append(f"opinions on {axes} are pooled; choose one with axis=")
    return warnings


def _one_sided(train: Sequence[Tree], recipe: Recipe) -> list[str]:
    """A note if an objective on labelled answers gets only good or only bad ones."""
    kinds = {label for t in train for label in t.labels if label is not None}
    names = [term.name for term in recipe.terms if term.objective.unit == "response"]
    if not names or len(kinds) != 1:
        return []
    fact = f"all {len(train)} answers to train on are labelled {'good' if True in kinds else 'bad'}, and {names[0]}"
    remedy = "add bad ones, or train sft" if True in kinds else "add good ones; without them it only unlearns"
    return [f"{fact} needs both kinds: {remedy}"]


def _uneven(parts: tuple[Sequence[Item], Sequence[Item]], config: TrainConfig) -> list[str]:
    """A note if far more items are held out than requested, because items that share a prompt stay together."""
    n_held_out, total = len(parts[1]), len(parts[0]) + len(parts[1])
    if config.eval_data is not None or n_held_out <= 1 or n_held_out <= 2 * config.eval_fraction * total:
        return []
    fraction = f"{config.eval_fraction:.0%}"
    return [f"{n_held_out} of {total} items are held out, not {fraction}: items that share a prompt are never split"]


def _without_effect(items: Sequence[Item], method: str, recipe: Recipe) -> list[str]:
    """A note about votes' values that no loss of this method uses."""
    votes = [v for item in items for v in item.votes]
    unused = []
    if "margin" not in recipe.uses and (n := sum(bool(getattr(v, "strength", None)) for v in votes)):
        unused.append(f"margins (strengths) of {n} opinion{'s' * (n != 1)}")
    if "weight" not in recipe.uses and len({v.weight for v in votes}) > 1:
        unused.append("weights of opinions")
    unsure = any(0 < p < 1 and p != 0.5 for v in votes if (p := getattr(v, "probability", None)) is not None)
    if "p" not in recipe.uses and unsure:
        unused.append("probabilities of opinions, except for which answer is likelier")
    name = method if method != "prefer" else ", ".join(term.name for term in recipe.terms)
    return [f"no effect on {name}: {'; '.join(unused)}"] if unused else []


_FITS = {  # by drop reason: what such rows can be used for
    "no_pair": "answers without comparisons can train sft, answers labelled good or bad kto; ",
    "no_label": "answers without opinions can train sft; ",
    "no_sample": "sample these prompts: afzal generate --model REFERENCE --prompts DATA --n 8 --out FILE; ",
    "no_responses": "prompts without answers can train ppo, rloo, grpo and reinforce; ",
}


def _refuse_nothing(train: Sequence[Tree], facts: dict[str, Any], dropped: Sequence[Drop], config: TrainConfig) -> None:
    if train:
        return
    examples = {drop.reason: f" ({drop.where}: {drop.detail})" for drop in reversed(dropped) if drop.detail}
    lost = ", ".join(f"{n} {reason}{examples.get(reason, '')}" for reason, n in facts["dropped"].items())
    lost = lost or "no row was read"
    raise AfzalError(
        f"nothing is left to train {config.method} on",
        where=config.data,
        why=f"{facts['rows']} rows read as {facts['format']}; lost: {lost}",
        remedy=_FITS.get(next(iter(facts["dropped"]), ""), "")
        + "see how each row is encoded with: afzal check FILE --model MODEL --show 3",
    )
