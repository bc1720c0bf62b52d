"""Optuna's decisions: the next arm (TPE), and whether an arm is worth further seeds (median pruning).

Optuna is an extra. Each decision is a function of earlier measurements and a seed, recomputed each time, so that a
resumed sweep takes the same course as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afzal.config import Axis
from afzal.errors import AfzalError
from afzal.sweep.space import Values, typed

_STARTUP = 4  # random arms before TPE proposes, and before anything is pruned


def optuna_module() -> Any:
    """Import optuna with its log messages silenced.

    Raises:
        AfzalError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise AfzalError("search: tpe and prune need optuna", remedy="pip install 'afzal[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def propose(axes: Sequence[Axis], seed: int, scored: Sequence[tuple[Values, float]]) -> Values:
    """The next arm by the tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24).

    Args:
        scored: the previous arms with their scores (larger is better); arms without a score are left out.
    """
    optuna = optuna_module()
    spaces = {axis.key: _distribution(optuna, axis) for axis in axes}
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
    )
    for values, score in scored:
        params = {axis.key: _to_optuna(axis, values[axis.key]) for axis in axes}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=score))
    proposed = study.ask(spaces).params
    return {axis.key: _from_optuna(axis, proposed[axis.key]) for axis in axes}


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.scale == "list":  # values can have any type; their indices are numbers
        return optuna.distributions.CategoricalDistribution(list(range(len(axis.values))))
    low, high = axis.values
    kind = optuna.distributions.IntDistribution if axis.integer else optuna.distributions.FloatDistribution
    return kind(low, high, log=axis.scale == "log")


def _to_optuna(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if axis.scale == "list" else value


def _from_optuna(axis: Axis, value: Any) -> Any:
    return axis.values[value] if axis.scale == "list" else typed(axis, value)


def is_hopeless(scores: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether an arm is below the finished ones' median at the same number of seeds; never for the first four arms.

    Args:
        scores: the arm's, after its first seed, after its first two, ...; larger is better.
        others: the same for each arm with all its seeds.
    """
    optuna = optuna_module()
    study = optuna.create_study(direction="maximize")
    create = optuna.trial.create_trial
    for finished_scores in others:
        study.add_trial(create(value=finished_scores[-1], intermediate_values=dict(enumerate(finished_scores))))
    running = create(state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(enumerate(scores)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=0)
    return bool(pruner.prune(study, running))
