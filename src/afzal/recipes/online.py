"""Online methods, which learn from rewards of the policy's own answers: value model, rollouts, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afzal.config import OnlineConfig, TrainConfig
from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_other_size
from afzal.folders.load import refuse_another_tokenizer
from afzal.health.rollouts import signs
from afzal.judging.rewards import reward_or_judge
from afzal.model.adapters import virtual_kind
from afzal.model.load import refuse_fewer_positions, vocabulary_of
from afzal.model.probe import choose_sharing
from afzal.model.reference import Reference
from afzal.model.reward import blank_reward_model, load_reward_model, refuse_language_model
from afzal.model.value import Critic, freeze_unused_head, own_critic, reward_critic, shared_critic
from afzal.prepare import Prepared
from afzal.recipes import parallel
from afzal.recipes.rollout import Writer, held_out
from afzal.servers.cache import REPLIES
from afzal.text import plural
from afzal.train import ranks
from afzal.train.feed import Layout
from afzal.train.rollouts import Controller, Rollouts
from afzal.train.shard import Sharded

_MANY_CUT = 0.1  # share of a rollout's answers


def critic_of(
    config: TrainConfig,
    prepared: Prepared,
    policy: Any,
    layout: Layout,
    adapt: Callable[[Any], Any],
) -> Critic | None:
    """The value model that PPO trains alongside the policy, in the policy's layout, and sharded if the policy is.

    Args:
        policy: the model, or the object that holds its shards.
        adapt: adds the adapter of the settings to another model.

    Raises:
        AfzalError: the reward model to start from cannot be read, or cannot share prompts although the policy does; or
            these methods do not train adapters of this kind.
    """
    pieces = policy if isinstance(policy, Sharded) else None
    model = policy if pieces is None else pieces.model
    if config.rollouts is not None and (kind := virtual_kind(model)):
        raise AfzalError(
            f"adapter {kind} is not offered with {config.method}",
            why="a policy with a fresh one already differs from its reference before any reward is seen",
            remedy="adapter=lora",
        )
    settings = config.critic
    if settings is None:
        return None
    if settings.value == "shared":
        return shared_critic(model)
    if config.policy is not None and config.policy.quantize is not None:
        raise AfzalError("a 4-bit model is not copied for a value model", remedy="value=shared")
    if settings.value_model is None:
        if pieces is None:
            return own_critic(model)
        copy = pieces.trainable_copy(freeze_unused_head)
        return replace(own_critic(model, copy.model), weights=copy)
    what, folder = f"the value model {settings.value_model}", settings.value_model
    refuse_another_tokenizer(prepared.tokenizer, folder, what)
    refuse_language_model(folder, "value_model")
    starting = (
        parallel.StartingModel(None) if pieces is None else parallel.open_blank(partial(blank_reward_model, folder))
    )
    if ranks.world() > 1 and starting.unread is None:
        parallel.report_unsharded(folder, starting.why_unsharded or "the trained model is not sharded either")
    trunk = load_reward_model(folder, device=layout.device) if starting.model is None else starting.model
    refuse_other_size(vocabulary_of(model), vocabulary_of(trunk), what)
    refuse_fewer_positions(trunk, prepared.max_tokens, what)
    critic, weights = reward_critic(trunk, model, adapt), None
    if pieces is not None and starting.unread is not None:
        weights = parallel.read_in_pieces(critic.trunk, starting.unread, pieces.dtype, layout.device, folder)
        critic = replace(critic, weights=weights)
    low = parallel.trial_format(weights)
    if layout.sharing == "shared" and choose_sharing(critic.trunk, config.max_tokens, dtype=low)[0] != "shared":
        raise AfzalError(f"value_model {folder} cannot share prompts between answers", remedy="sharing=unshared")
    parallel.release(critic.trunk)
    return critic


def rollouts(
    config: OnlineConfig, prepared: Prepared, model: Any, reference: Reference, critic: Critic | None, layout: Layout
) -> tuple[Rollouts, Callable[[], dict[str, float]]]:
    """The loop's feed, and a function that evaluates the policy on the held-out prompts.

    Raises:
        AfzalError: the reward cannot be opened, or nothing ends an answer.
    """
    scorers = parallel.Scorers()
    rewarder = reward_or_judge(
        config.reward,
        device=layout.device,
        max_tokens=prepared.max_tokens,
        tokens_per_forward=layout.tokens_per_forward,
        eos_token=config.eos_token,
        replies=Path(config.out) / REPLIES,
        loaders=scorers.loaders,
    )
    scorers.release()
    writer = Writer(
        config=config,
        model=model,
        reference=reference,
        critic=critic,
        layout=layout,
        speaker=prepared.speaker,
        rewarder=rewarder,
        prompts=prepared.train,
        turns=prepared.prompts,
        eos=prepared.ends,
        starts_at_reference=reference.is_start,
        scorers=scorers.sharded,
    )
    feed = _feed(config, prepared, writer.write, layout)
    evaluate_policy = held_out(writer, prepared.evaluation, prepared.evaluation_prompts)
    return feed, lambda: evaluate_policy(config.kl_coef if feed.current is None else feed.current.kl_coef)


def planned(config: OnlineConfig, prepared: Prepared) -> Rollouts:
    """A feed that samples nothing, to count updates."""

    def write(iteration: int, kl_coef: float) -> Any:
        raise AssertionError("a plan writes nothing")

    return _feed(config, prepared, write, Layout("shared", config.pass_tokens))


def _feed(config: OnlineConfig, prepared: Prepared, write: Callable[[int, float], Any], layout: Layout) -> Rollouts:
    controller = Controller(config.kl_coef)
    if config.penalty is not None:
        controller = Controller(config.kl_coef, config.penalty.kl_target, config.penalty.kl_horizon)
    return Rollouts(
        write,
        prepared.train,
        layout,
        controller,
        epochs=config.ppo_epochs,
        minibatches=config.minibatches,
        prompts_per_iteration=config.batch_size,
        seed=config.seed,
    )


def plan_line(config: OnlineConfig, steps: int) -> str:
    """A one-line summary of the run."""
    updates_per_iteration = config.ppo_epochs * config.minibatches
    answers = config.batch_size * config.n
    updates, iterations = (
        plural(updates_per_iteration, "update"),
        plural(-(-steps // updates_per_iteration), "iteration"),
    )
    pull = "in the loss" if config.penalty is None else "in the reward"
    return (
        f"{iterations} of {answers} answers to {config.batch_size} prompts, {updates} each; "
        f"reward: {config.reward}, KL x {config.kl_coef:g} {pull}"
    )


class Alarms:
    """Receives every record of a run and warns once about each sign of trouble that rollouts show.

    Args:
        before: records of the run's rollouts in earlier processes.
        config: of the run, which says whether truncated answers are penalised.
    """

    def __init__(
        self, say: Callable[[str], None], before: Sequence[Mapping[str, Any]] = (), config: TrainConfig | None = None
    ) -> None:
        self.say, self.records = say, list(before)
        rollouts = config.rollouts if config is not None else None
        self.unpunished = rollouts is not None and rollouts.missing_eos_penalty is None
        self.raised = {name for n in range(1, len(self.records) + 1) for name in self._signs(self.records[:n])}

    def _signs(self, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        cut = 1 - records[-1].get("rollout/eos_rate", 1.0)
        if not self.unpunished or cut <= _MANY_CUT:
            return signs(records)
        words = (
            f"{cut:.0%} of the answers are cut at sample_tokens, and only their reward tells the policy to end: "
            "raise sample_tokens, or set missing_eos_penalty"
        )
        return {"cut": words, **signs(records)}

    def receive(self, record: Mapping[str, Any]) -> None:
        """Take a metric record, and warn about each sign that appears for the first time."""
        if record.get("kind") != "rollout":
            return
        self.records.append(record)
        for name, words in self._signs(self.records).items():
            if name not in self.raised:
                self.raised.add(name)
                self.say(f"warning: {words}")
