"""Iterative preference optimisation: rounds of generating, scoring, rejecting, pairing and training, in one folder.

Stages communicate through files, so a run stopped anywhere resumes and ends with the same bytes as an uninterrupted
one. A round's results are read from its files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from afzal import runs, trackers
from afzal.config import PEOPLE, IterateConfig
from afzal.config.serving import ServerConfig
from afzal.errors import AfzalError
from afzal.generate.with_server import policy_server_settings
from afzal.hashes import tokens_hash
from afzal.iterate import round_figures
from afzal.iterate.parting import detect_parting
from afzal.iterate.people import LabelsNeeded
from afzal.iterate.prompts import Questions, read_questions, round_groups
from afzal.iterate.round_figures import Round
from afzal.iterate.stages import Job, measure, refuse_generator, resume_command, round_of, run_round, training
from afzal.iterate.summary import finish, utc_now
from afzal.judging.rewards import reward_or_judge
from afzal.model.load import pick_device
from afzal.model.speakers import open_speaker
from afzal.prepare import Recipe, recipe_of
from afzal.recipes import parallel
from afzal.recipes.input_hashes import input_hashes, refuse_changes
from afzal.recipes.runtime import fixed_date
from afzal.recipes.train import Stopped, end_of
from afzal.rewards.source import Rewarder
from afzal.runs import torchrun
from afzal.servers.cache import REPLIES
from afzal.tokens import Speaker
from afzal.tokens.tree import tree
from afzal.train import ranks
from afzal.train.callbacks import Callbacks


def iterate(
    config: IterateConfig, *, resume: bool = False, command: str = "", callbacks: Callbacks | None = None
) -> Path:
    """Run the rounds that ``config`` describes and return the folder; its report names the best policy.

    If people are to label answers, the run stops with the status ``waiting`` and continues with ``resume``. Under
    ``torchrun`` all ranks call this. Rank 0 runs the rounds and writes the folder; the others join it for drawing
    answers, scoring by a model, and training.

    Args:
        resume: continue the run in ``config.out`` where it stopped.
        command: the command line, for the record.
        callbacks: called during a round's training; a request to stop ends the rounds.

    Raises:
        AfzalError: a fault of the input or the set-up; ``Stopped`` when a signal ended a round's training.
    """
    parallel.refuse(training(config, 1, config.model, config.prompts, config.out), None)
    trackers.refuse_unready(config.report_to or ())
    device = pick_device(ranks.own_device(config.device))
    with ranks.joined(device, config.tensor_parallel):
        resume = any(ranks.gather(resume or parallel.is_restart(config.out)))
        with fixed_date(Path(config.out) / "run.json", resume) as date:
            return _iterate(config, resume, command, date, callbacks or Callbacks())


def _iterate(config: IterateConfig, resume: bool, command: str, date: str, callbacks: Callbacks) -> Path:
    recipe = recipe_of(training(config, 1, config.model, config.prompts, config.out))
    _refuse_reference(config, recipe)
    speaker, questions, generator = _open_inputs(config)
    reward, watch, cost = (_open_reward(spec, config) for spec in (config.reward, config.watch_reward, config.cost))
    ranks.same("prompts", questions.fingerprint)
    ranks.same("setting", config.model_dump(mode="json"))
    ranks.led(lambda: _claim_run(config, questions, resume))
    run = runs.Run(Path(config.out), writes=ranks.leads())
    job = Job(config, run, questions, speaker, recipe, reward, watch, cost, generator, callbacks)
    if not ranks.leads():
        job.coordinator.serve(job)
        return run.path
    launch_facts = {"command": command, "launch": torchrun.run_id()}
    with run:
        try:
            run.update(template_date=date, **{name: fact for name, fact in launch_facts.items() if fact})
            _all_rounds(job)
        except Stopped as stop:
            run.update(status="stopped", stop_reason=stop.signal, finished=utc_now())
            raise Stopped(stop.signal, run.path, stop.step, remedy=f"continue with: {resume_command(run)}") from None
        except BaseException as error:
            with suppress(AfzalError):  # on a full disk even this can fail; report the first error
                run.update(**end_of(ranks.cause(error)), finished=utc_now())
            raise
        job.coordinator.stop()
    return run.path


def check(config: IterateConfig) -> None:
    """Check that the generator, if one is set, can answer the rounds' prompts; measures and writes nothing.

    Raises:
        AfzalError: it cannot, or the prompts or the tokenizer cannot be read.
    """
    if config.generator is not None:
        _open_inputs(config)


def _open_inputs(config: IterateConfig) -> tuple[Speaker, Questions, ServerConfig | None]:
    """The tokenizer, the prompts, and the server that answers them, if there is one."""
    generator = _generator(config)
    speaker = open_speaker(config.model, chat_template=config.chat_template, eos_token=config.eos_token)
    questions = read_questions(config, speaker)
    if generator is not None:
        refuse_generator(generator, config, questions, speaker)
    return speaker, questions, generator


def _all_rounds(job: Job) -> None:
    for note in (*job.questions.notes, *_notes(job.config, job.recipe)):
        _say(f"note: {note}")
    first = measure(job, 0)
    rounds = [Round(0, measured=round_figures.figures(first, first))]
    _say(round_figures.line(rounds[0]))
    while True:
        number = len(rounds)
        if reason := job.callbacks.requested() or _stop_reason(job, rounds):
            break
        try:
            rounds.append(_check_parting(job, rounds, run_round(job, number, first)))
        except LabelsNeeded as needed:
            finish(job, rounds, "waiting", "labels")
            _say(str(needed))
            return
        _say(round_figures.line(rounds[-1]))
        if rounds[-1].parted:
            _say(f"warning: {rounds[-1].parted}")
        job.run.update(step=sum(r.steps for r in rounds))
    last = max((r.number for r in rounds if r.steps), default=0)
    if not rounds[last].measured:
        rounds[last] = _check_parting(job, rounds[:last], round_of(job, last, measure(job, last), first))
        _say(round_figures.line(rounds[last]))
    for line in finish(job, rounds, "finished", reason):
        _say(line)


def _check_parting(job: Job, before: Sequence[Round], last: Round) -> Round:
    """The round, with a warning (``parted``) if the reward rises while the watched one falls."""
    known = [r.number for r in (*before, last) if r.measured]
    if job.watch is None or not last.measured:
        return last
    return replace(last, parted=detect_parting({k: measure(job, k) for k in known}))


def _stop_reason(job: Job, rounds: Sequence[Round]) -> str:
    """The reason why there is no further round; empty if there is one."""
    config, number = job.config, len(rounds)
    if number > 1 and not rounds[-1].pairs:
        return "no_pairs"
    if rounds[-1].parted and config.on_parting == "stop":
        return "parted"
    limits = {"patience": config.patience, "min_gain": config.min_gain}
    if reason := round_figures.stop_reason(rounds, kl_budget=config.kl_budget, **limits):
        return reason
    if number > config.rounds:
        return "finished"
    remaining = round_groups(job.questions.groups, number, job.questions.per_round, reuse=config.reuse_prompts)
    return "" if remaining else "no_prompts"


def _notes(config: IterateConfig, recipe: Recipe) -> list[str]:
    """Notes for the user before the first round."""
    if config.reference != "previous" or config.rounds == 1:
        return []
    beta = next((term.parameters["beta"] for term in recipe.terms if "beta" in term.parameters), None)
    if beta is None:
        return ["the reference moves with the policy, so the policy can move further from the first one in every round"]
    return [
        f"the reference moves with the policy: over {config.rounds} rounds, beta {beta:g} holds the policy to the "
        f"first one only as much as {beta / config.rounds:.3g} would; beta {beta * config.rounds:g} ({config.rounds} x "
        f"{beta:g}) would act as {beta:g} does with a fixed reference"
    ]


def _refuse_reference(config: IterateConfig, recipe: Recipe) -> None:
    if config.reference == "previous" and not recipe.needs_reference:
        raise AfzalError(f"reference has no effect: {config.objective} has no reference", remedy="leave it out")


def _claim_run(config: IterateConfig, questions: Questions, resume: bool) -> None:
    """Create or resume the run's folder, and keep it claimed."""
    plain = config.model_dump(mode="json")
    facts = {"source": config.prompts, "fingerprint": questions.fingerprint}
    facts |= {"train": len(questions.groups), "eval": len(questions.held_out)}
    facts["tokens"] = _token_hash(questions)
    facts |= {"columns": questions.columns} if questions.columns else {}
    facts |= {"media": n_media} if (n_media := _prompts_with_media(questions)) else {}
    files = input_hashes(config)
    if not resume:
        run = runs.create(config.out, plain)
        facts_at_start = {"method": "iterate", "config": plain, "seed": config.seed, "data": facts, "files": files}
        run.update(**facts_at_start, model={"path": config.model}, reference=f"{config.reference} policy")
        return
    run = runs.resume(config.out)
    try:
        method = run.facts().get("method")
        other_changes = [] if method in (None, "iterate") else [f"this is a run of {method}, not of iterate"]
        hashes = {
            "fingerprint": ("prompts: the content of the file", questions.fingerprint),
            "tokens": ("tokens: what the prompts become (tokenizer, chat template, versions)", facts["tokens"]),
            "columns": ("columns: the row fields that functions read", questions.columns),
        }
        refuse_changes(run, plain, files, hashes, other_changes)
        run.update(status="running", method="iterate", config=plain, data=facts, files=files)
    except BaseException:
        run.release()
        raise


def _prompts_with_media(questions: Questions) -> int:
    groups = [*questions.groups, questions.held_out]
    return sum(q.tree is not None for group in groups for q in group)


def _token_hash(questions: Questions) -> str:
    """The hash of all prompts' tokens, in the order in which rounds use them."""
    groups = [*questions.groups, questions.held_out]
    return tokens_hash([[tree(q.demonstration, q.ids, ()) for q in group] for group in groups])


def _open_reward(spec: str | None, config: IterateConfig) -> Rewarder | None:
    if spec is None or spec == PEOPLE:
        return None
    scorers = parallel.Scorers()
    rewarder = reward_or_judge(
        spec,
        device=pick_device(ranks.own_device(config.device)),
        max_tokens=config.max_tokens,
        tokens_per_forward=config.pass_tokens,
        eos_token=config.eos_token,
        replies=Path(config.out) / REPLIES,
        loaders=scorers.loaders,
    )
    scorers.release()
    return scorers.together(rewarder)


def _generator(config: IterateConfig) -> ServerConfig | None:
    """The server that generates the rounds' answers.

    Raises:
        AfzalError: it would answer with the first round's weights in later rounds, or for another folder.
    """
    if config.generator is None:
        return None
    return policy_server_settings(
        config.generator,
        f"the answers of all {config.rounds} rounds" if config.rounds > 1 else "",
        why="each round trains a new policy, and learns from its answers",
        alternative="rounds=1",
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
