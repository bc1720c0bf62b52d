"""Preference pairs from principles: answer, critique and revision, or two answers and a label.

Bai et al. 2022, arXiv 2212.08073. Every stage is a file in the folder, so that a stopped program repeats at most one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal import config as settings
from afzal import data, runs
from afzal.config.revise import PrincipleConfig, PrinciplesConfig, ReviseConfig
from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.judge.prompting import PromptBuilder, PromptSettings
from afzal.judge.replies import Reading
from afzal.judging.judges import resolve_judge
from afzal.principles.figures import report_body
from afzal.principles.labels import Labelling, label_rows
from afzal.principles.matching import score_gaps, sources_of
from afzal.principles.word_lists import choose_candidate, critique_by_words, find_violations, principle_at_step
from afzal.principles.writer import TextRequest, Write, model_input, writer
from afzal.records import Comparison, Item, Message, Response, Turns, turns_to_row
from afzal.report import write_board
from afzal.runs import lock
from afzal.runs.stage import Row, key_of, read_stage, run_stage, write_stage
from afzal.servers.cache import REPLIES, Reply
from afzal.tokens import distinct_prompts

PAIRS, REPORT = "pairs.jsonl", "revise"
_FREE_SETTINGS = {"out", "timeout", "attempts", "concurrency", "batch_size", "key_env"}


@dataclass(frozen=True, slots=True)
class PromptTask:
    """One prompt of a run. ``twin`` marks a harmless look-alike, which is only measured and enters no pair."""

    id: str
    item: Item
    twin: bool = False


def revise(config: ReviseConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Make the pairs and the report, and return the report as plain values.

    Writes ``pairs.jsonl`` (Afzal rows; only if there are pairs), ``revise.json``, ``.html``, ``.md``, ``.csv`` and the
    stages to ``config.out``.

    Raises:
        AfzalError: prompts, principles or model cannot be read, the folder holds a run with other settings or is being
            written by another process, or a server does not answer; finished work is kept.
    """
    with runs.sole_folder(config.out):
        return _revise(config, say)


def _revise(config: ReviseConfig, say: Callable[[str], None]) -> dict[str, Any]:
    principles = read_principles(config.principles)
    prompts = _prompts(config)
    out = Path(config.out)
    _claim(config, out)
    write, reads_chat = writer(config, out / REPLIES)
    say(f"{sum(not a.twin for a in prompts)} prompts, {sum(a.twin for a in prompts)} twins")
    answers = run_stage(out / "answers.jsonl", lambda: _answers(config, prompts, write))
    if config.mode == "label":
        labelling = Labelling(config, principles, out, say)
        steps = [run_stage(out / "labels.jsonl", lambda: label_rows(labelling, [a.item for a in prompts], answers))]
        items = [
            item
            for a, row, label in zip(prompts, answers, steps[0], strict=True)
            for item in _labelled_pair(a, row, label)
        ]
    else:
        steps = _all_revisions(config, principles, prompts, answers, write, reads_chat, say)
        items = [_pair(config, a, k, answers[k], steps) for k, a in enumerate(prompts) if not a.twin]
        items = [item for item in items if item is not None]
    if items:
        data.write(items, out / PAIRS, "afzal")
    body = report_body(config, principles, answers, steps, len(items))
    write_board(out, body, REPORT)
    return body


def read_principles(path: str) -> PrinciplesConfig:
    """Read a file of principles and test its templates on plain texts.

    Raises:
        AfzalError: the file does not hold principles, or a template does not render.
    """
    principles = settings.build(PrinciplesConfig, settings.read_file(path))
    names = ("prompt", "answer", "principle", "critique", "request")
    variables = {
        "critique_prompt": tuple(n for n in names if n != "critique"),
        "revision_prompt": names,
        "label_prompt": ("prompt", "first", "second", "principle"),
    }
    for key, values in variables.items():
        try:
            _prompt_builder("", getattr(principles, key)).messages(**dict.fromkeys(values, "text"))
        except AfzalError as error:
            why = error.what.partition(": ")[2]
            raise AfzalError(
                f"{key} does not render: {why}", where=path, remedy=f"it is a Jinja template with {', '.join(values)}"
            ) from None
    return principles


def _prompt_builder(system: str, prompt: str) -> PromptBuilder:
    return PromptBuilder(PromptSettings(system, prompt, _unread))


def _unread(reply: Reply) -> Reading:
    raise NotImplementedError("a revision holds no verdict")


def _prompts(config: ReviseConfig) -> list[PromptTask]:
    """The distinct prompts of the file in order, each followed by its twin if it has one."""
    rows = list(data.read(config.prompts).items)
    has_pairs = config.mode == "label" and all(len(item.responses) == 2 for item in rows)
    prompts = []
    for k, item in enumerate(rows if has_pairs else distinct_prompts(rows)):
        prompts.append(PromptTask(f"{k}", item))
        twin = item.extra.get("twin")
        if twin is not None and config.mode == "revision":
            prompts.append(PromptTask(f"{k}/twin", Item(f"{item.id}/twin", _twin(twin, item), ()), twin=True))
    if not prompts:
        raise AfzalError("there are no prompts", where=config.prompts, remedy="afzal check shows what the file holds")
    return prompts


def _twin(value: Any, item: Item) -> Turns:
    if not isinstance(value, str) or not value.strip():
        raise AfzalError("a twin must be a prompt as text", where=item.where, remedy='as "twin": "a harmless prompt"')
    return (Message("user", value),) if item.is_chat else value


def _claim(config: ReviseConfig, out: Path) -> None:
    """Claim the folder for these settings.

    Raises:
        AfzalError: it holds a run with other settings, or other files.
    """
    settings = config.model_dump(mode="json", exclude=_FREE_SETTINGS)
    sources = [config.prompts, config.principles, *([config.model] if config.url is None else [])]
    sources += sources_of(config.match)
    judge = [resolve_judge(config.judge).fingerprint] if config.judge is not None else []
    key, path = key_of(settings, [content_hash(s) for s in sources], judge), out / "revise-settings.json"
    if read_stage(path, key) is not None:
        return
    if any(path.name != lock.NAME for path in out.iterdir()):
        raise AfzalError(
            "the folder holds a run with other settings, prompts, principles or model"
            if path.exists()
            else "the folder is not empty",
            where=str(out),
            remedy="another --out, or the same command as before to resume",
        )
    write_stage(path, key, {"settings": settings})


def _answers(config: ReviseConfig, prompts: Sequence[PromptTask], write: Write) -> list[Row]:
    """One answer to each prompt, two in mode label; answers that a row already holds are used."""
    n = 2 if config.mode == "label" else 1
    missing = [(a, k) for a in prompts for k in range(n) if len(a.item.responses) != n or config.mode != "label"]
    replies = iter(write([TextRequest(a.item.prompt, f"{a.id} answer {k}") for a, k in missing]))
    rows = []
    for a in prompts:
        texts, ends = [], []
        for k in range(n):
            if config.mode == "label" and len(a.item.responses) == n:
                texts.append(full_text(a.item.responses[k].turns))
                ends.append("given")
                continue
            reply = next(replies)
            texts.append(reply.text)
            ends.append(reply.finish)
        rows.append({"id": a.id, "twin": a.twin, "prompt": turns_to_row(a.item.prompt), "answers": texts, "ends": ends})
    return rows


def _all_revisions(
    config: ReviseConfig,
    principles: PrinciplesConfig,
    prompts: Sequence[PromptTask],
    answers: Sequence[Row],
    write: Write,
    reads_chat: Callable[[], bool],
    say: Callable[[str], None],
) -> list[list[Row]]:
    """The revisions of every round, with one row per prompt."""
    out, steps = Path(config.out), []
    current = [row["answers"][0] for row in answers]
    for step in range(config.rounds):
        chosen_principles = [principle_at_step(principles.principles, config.seed, a.id, step) for a in prompts]
        first = [row["answers"][0] for row in answers]
        tasks = [
            _RevisionTask(a, p, text, step, origin)
            for a, p, text, origin in zip(prompts, chosen_principles, current, first, strict=True)
        ]
        critiques = run_stage(
            out / f"critiques-{step + 1}.jsonl", lambda tasks=tasks: _critiques(principles, tasks, write, reads_chat)
        )
        rows = run_stage(
            out / f"revisions-{step + 1}.jsonl",
            lambda tasks=tasks, critiques=critiques: _revisions(
                config, principles, tasks, critiques, write, reads_chat
            ),
        )
        steps.append([{**row, **critique} for row, critique in zip(rows, critiques, strict=True)])
        current = [row["revision"] if not row["why"] else text for row, text in zip(rows, current, strict=True)]
        say(f"round {step + 1}: {sum(not row['why'] for row in rows)} of {len(rows)} answers were revised")
    return steps


@dataclass(frozen=True, slots=True)
class _RevisionTask:
    """The current answer, the principle applied to it in a step, and the first answer."""

    prompt_task: PromptTask
    principle: PrincipleConfig
    answer: str
    step: int
    first: str

    def request(
        self, template: str, system: str, default: str, wording: str, **fields: str
    ) -> tuple[Mapping[str, str], ...]:
        """The messages of a critique or a revision."""
        values = {
            "prompt": full_text(self.prompt_task.item.prompt),
            "answer": self.answer,
            "principle": self.principle.text,
        }
        return _prompt_builder(system, template).messages(**values, request=wording or default, **fields)


def _critiques(
    principles: PrinciplesConfig, tasks: Sequence[_RevisionTask], write: Write, reads_chat: Callable[[], bool]
) -> list[Row]:
    if not principles.critique_prompt:
        return [
            {
                "id": t.prompt_task.id,
                "principle": t.principle.id,
                "critique_asked": "",
                "critique": critique_by_words(t.principle, t.answer),
            }
            for t in tasks
        ]
    messages = []
    for t in tasks:
        default = f"Principle: {t.principle.text}\nSay where the answer does not follow the principle."
        messages.append(t.request(principles.critique_prompt, principles.system, default, t.principle.critique))
    replies = write(
        [
            TextRequest(model_input(m, chat=reads_chat()), f"{t.prompt_task.id} critique {t.step}")
            for t, m in zip(tasks, messages, strict=True)
        ]
    )
    return [
        {
            "id": t.prompt_task.id,
            "principle": t.principle.id,
            "critique_asked": m[-1]["content"],
            "critique": r.text.strip(),
        }
        for t, m, r in zip(tasks, messages, replies, strict=True)
    ]


def _revisions(
    config: ReviseConfig,
    principles: PrinciplesConfig,
    tasks: Sequence[_RevisionTask],
    critiques: Sequence[Row],
    write: Write,
    reads_chat: Callable[[], bool],
) -> list[Row]:
    messages = []
    for t, critique in zip(tasks, critiques, strict=True):
        default = f"Principle: {t.principle.text}\nRewrite the answer so that it follows the principle."
        values = {"critique": critique["critique"]}
        messages.append(
            t.request(principles.revision_prompt, principles.system, default, t.principle.revision, **values)
        )
    criticised = [k for k, critique in enumerate(critiques) if critique["critique"]]
    requests = [
        TextRequest(
            model_input(messages[k], chat=reads_chat()), f"{tasks[k].prompt_task.id} revision {tasks[k].step} {c}"
        )
        for k in criticised
        for c in range(config.candidates)
    ]
    replies = write(requests)
    candidates = {k: replies[n * config.candidates : (n + 1) * config.candidates] for n, k in enumerate(criticised)}
    texts = {k: [reply.text for reply in replies] for k, replies in candidates.items()}
    gaps = score_gaps(config, [(tasks[k].prompt_task.item.prompt, tasks[k].first, texts[k]) for k in criticised])
    gap_of = dict(zip(criticised, gaps, strict=True))
    rows = []
    for k, t in enumerate(tasks):
        best, why, gap = "", _skip_reason(principles), None
        if k in texts:
            best, why, gap = choose_candidate(
                t.answer, texts[k], t.principle, principles.principles, gap_of[k], config.match_within
            )
        breaks = {
            "broken_before": find_violations(t.principle, t.answer),
            "broken_after": find_violations(t.principle, best),
        }
        ends = [reply.finish for reply in candidates.get(k, ())]
        if why == "empty" and ends and set(ends) == {"no room"}:
            why = "no room in the model's context"
        question = messages[k][-1]["content"] if k in texts else ""
        row = {"id": t.prompt_task.id, "principle": t.principle.id, "revision_asked": question, "answer": t.answer}
        row |= {"revision": best, "why": why, "ends": ends, **breaks}
        rows.append(row if config.match is None else row | {"score_gap": gap})
    return rows


def _skip_reason(principles: PrinciplesConfig) -> str:
    return "no critique" if principles.critique_prompt else "follows the principle"


def _pair(
    config: ReviseConfig, prompt: PromptTask, place: int, answer: Row, steps: Sequence[Sequence[Row]]
) -> Item | None:
    """The pair of one prompt: its last revision preferred to its first answer; None if nothing was revised."""
    revised = [step[place] for step in steps if not step[place]["why"]]
    first = answer["answers"][0]
    if not revised or revised[-1]["revision"].strip() == first.strip() or not first.strip():
        return None
    last = revised[-1]
    keys = ("principle", "critique", "critique_asked", "revision_asked", "revision")
    extra = {
        "principle": last["principle"],
        "critique": last["critique"],
        "model": config.model,
        "prompts": {"critique": last["critique_asked"], "revision": last["revision_asked"]},
        "steps": [{key: row[key] for key in keys} for row in revised],
    }
    texts = (
        Response(_turns(prompt.item, last["revision"]), "revision"),
        Response(_turns(prompt.item, first), "answer"),
    )
    vote = Comparison(0, 1, "first", annotator="principles", axis=last["principle"])
    return Item(
        prompt.item.id, prompt.item.prompt, texts, (vote,), group=prompt.item.group, extra=_other_fields(prompt) | extra
    )


def _labelled_pair(prompt: PromptTask, answer: Row, label: Row) -> list[Item]:
    """The pair of one prompt with its label; empty if the judge gave no verdict or the answers are the same."""
    if label["p"] is None:
        return []
    p, (first, second) = label["p"], answer["answers"]
    extra = {key: label[key] for key in ("principle", "judge", "model", "prompts", "p_shown_first", "p_shown_second")}
    texts = (Response(_turns(prompt.item, first)), Response(_turns(prompt.item, second)))
    outcome = "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    vote = Comparison(0, 1, outcome, probability=p, annotator=label["judge"], axis=label["principle"])
    return [
        Item(
            prompt.item.id,
            prompt.item.prompt,
            texts,
            (vote,),
            group=prompt.item.group,
            extra=_other_fields(prompt) | extra,
        )
    ]


def _other_fields(prompt: PromptTask) -> dict[str, Any]:
    """The other fields of a prompt's row."""
    return dict(prompt.item.extra)


def _turns(item: Item, text: str) -> Turns:
    return (Message("assistant", text),) if item.is_chat else text
