"""One rollout: the policy answers prompts, the answers are rewarded, and every token gets an advantage.

Shapes: P prompts per iteration, N = P n answers, M tokens in all of them, L tokens in the longest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from afzal.config import METHODS, OnlineConfig
from afzal.errors import AfzalError, Terminated, signal_of
from afzal.generate import Sample, Sampling, sample
from afzal.model.logprobs import predicting
from afzal.model.statistics import score_with
from afzal.model.value import Critic
from afzal.objectives.statistics import kl_policy_ref
from afzal.records import Turns
from afzal.rewards.source import Rewarder
from afzal.stats.intervals import clustered, mean
from afzal.tokens import Branch, Speaker, Tree, update_order
from afzal.train import ranks
from afzal.train.feed import Layout
from afzal.train.rollouts import Rollout, SamplingStopped, rollout_tree
from afzal.train.shard import gathered
from afzal.train.signals import interruptible

T = TypeVar("T")

_START_TOLERANCE = {torch.float32: 1e-3}  # nats of a token's log-prob, if policy and reference must agree
_START_TOLERANCE_LOW = 0.15
_TABLES = ("old_logp", "ref_logp", "kl", "old_value")
_ROUNDING = 1e-6  # of a reward model's float32 scores: smaller differences count as equal


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """N answers to P prompts, grouped by prompt, and their numbers.

    Attributes:
        samples: the samples.
        scores: ``[N]`` float64 rewards, with the penalty for answers that do not end.
        mask: ``[N, L]`` real tokens.
        old_logp, ref_logp: ``[N, L]`` float64 nats at the rollout's temperature, 0 outside the mask.
        kl: ``[N, L]`` float64, KL(policy || reference) of each next token, nats.
        old_value: ``[N, L]`` float64; zeros without a value model.
        seconds: wall-clock time of each stage on this rank: ``sampling``, ``scoring`` and ``rewards``.
    """

    samples: Sequence[Sample]
    scores: Tensor
    mask: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    kl: Tensor
    old_value: Tensor
    seconds: Mapping[str, float]

    @property
    def log_ratio(self) -> Tensor:
        """``[N]`` log pi - log pi_ref of full answers, nats (k1)."""
        return (self.old_logp - self.ref_logp).sum(1)


@dataclass(frozen=True, slots=True)
class Writer:
    """Generates rollouts with the current model.

    Attributes:
        prompts: all prompts as trees without branches; ``turns`` are the same prompts as read.
        eos: ids that end an answer.
        starts_at_reference: whether the policy must equal its reference before the first update.
        scorers: sharded reward models of ``rewarder``, gathered only while answers are rewarded.
        may_stop: whether a stop request ends the answering.
    """

    config: OnlineConfig
    model: Any
    reference: Any
    critic: Critic | None
    layout: Layout
    speaker: Speaker
    rewarder: Rewarder
    prompts: Sequence[Tree]
    turns: Sequence[Turns]
    eos: Sequence[int]
    starts_at_reference: bool
    scorers: Sequence[Any] = ()
    may_stop: bool = True

    def write(self, iteration: int, kl_coef: float) -> Rollout:
        """Generate rollout number ``iteration``, a pure function of the number, the weights and the settings.

        Raises:
            AfzalError: a reward cannot be opened; or policy and reference differ before any update.
            SamplingStopped: a signal asks the run to stop; the answers so far are lost.
        """
        members = prompts_of(iteration, self.config.batch_size, len(self.prompts), self.config.seed)
        prompts, turns = [self.prompts[i] for i in members], [self.turns[i] for i in members]
        answers = self.answer(prompts, turns, n=self.config.n, seed=seed_of(self.config.seed, "rollout", iteration))
        if iteration == 0 and self.starts_at_reference:
            _check_start(answers, self.model.dtype)
        numbers = numbers_of(answers, self.config, kl_coef)
        trees = _trees(prompts, answers, numbers, self.config.n)
        record = {"kind": "rollout", "iteration": iteration, **figures(answers, numbers, kl_coef, self.config.n)}
        return Rollout(iteration, trees, members, kl_coef, float(answers.kl.sum(1).mean()), record)

    def answer(self, prompts: Sequence[Tree], turns: Sequence[Turns], *, n: int, seed: int) -> Answers:
        """``n`` answers to each prompt, rewarded, and scored by policy, reference and value model.

        With several ranks each answers a share of the prompts, with gathered layers, and then all exchange answers.
        Draws depend on the prompt's index and the sample's number, so the answers are those of a single rank. Ranks of
        a tensor-parallel group answer the same prompts in the same passes, and the first has the answers rewarded.
        """
        local = list(range(self.layout.rank, len(prompts), self.layout.world))
        local_prompts, seconds = [prompts[k] for k in local], dict[str, float]()

        def draw() -> tuple[list[Sample], dict[str, Tensor]]:
            with _timed(seconds, "sampling"):
                samples = self._samples(local_prompts, local, n, seed)
            with _timed(seconds, "scoring"):
                return samples, self._scored(samples, local_prompts, n)

        with gathered(*self._trunks()) if ranks.world() > 1 else nullcontext():
            samples, columns = self._unless_stopped(draw)
        local_turns = [turns[k] for k in local]
        with gathered(*self.scorers), _timed(seconds, "rewards"):
            columns["reward"] = self._unless_stopped(lambda: self._rewards(samples, local_prompts, local_turns))
        parts = ranks.gather_tensors(columns)
        places = [k for r in range(len(parts)) for k in range(r, len(prompts), len(parts))]
        all_columns = {name: torch.cat([part[name] for part in parts]) for name in columns}
        return self._answers(all_columns, np.argsort(places), n, seconds)

    def _unless_stopped(self, work: Callable[[], T]) -> T:
        """The result of work in which this rank does not wait for others.

        Raises:
            SamplingStopped: on all ranks, if one is asked to stop.
        """
        if not self.may_stop:
            return work()
        random, signal, results = torch.get_rng_state(), None, list[T]()
        try:
            # ranks of a tensor-parallel group sample together: they cannot leave one by one
            with interruptible() if ranks.tensor() == 1 else nullcontext():
                results.append(work())
        except (KeyboardInterrupt, Terminated) as stop:
            signal = signal_of(stop)
        if signal := ranks.first(signal):
            torch.set_rng_state(random)
            raise SamplingStopped(signal)
        return results[0]

    def _trunks(self) -> list[Any]:
        """The models that run forward passes."""
        of_reference = getattr(self.reference, "model", None)
        of_critic = None if self.critic is None else self.critic.trunk
        models = [m for m in (self.model, of_reference, of_critic) if m is not None]
        return list({id(m): m for m in models}.values())

    def _samples(self, prompts: Sequence[Tree], places: Sequence[int], n: int, seed: int) -> list[Sample]:
        """This rank's answers."""
        sampling = Sampling(self.config.sample_tokens, self.config.temperature)
        return sample(self.model, prompts, eos=self.eos, n=n, sampling=sampling, seed=seed, numbers=places)

    def _scored(self, samples: Sequence[Sample], prompts: Sequence[Tree], n: int) -> dict[str, Tensor]:
        """This rank's answers as flat columns: length and end per answer, everything else per token."""
        answers = [Branch(s.ids, np.ones(len(s.ids), dtype=bool)) for s in samples]
        trees = [rollout_tree(t, answers[k * n : (k + 1) * n]) for k, t in enumerate(prompts)]
        mask, tables = self._read(trees)
        flat = {name: table[mask] for name, table in zip(_TABLES, tables, strict=True)}
        return flat | {
            "length": torch.tensor([len(s.ids) for s in samples], dtype=torch.int64),
            "ended": torch.tensor([s.stop == "eos" for s in samples], dtype=torch.int64),
            "ids": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *(s.ids for s in samples)])),
            "logps": torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *(s.logps for s in samples)])),
        }

    def _rewards(self, samples: Sequence[Sample], prompts: Sequence[Tree], turns: Sequence[Turns]) -> Tensor:
        """Rewards ``[N]`` of this rank's answers; zeros on a rank that does not have them rewarded."""
        if not samples or not ranks.leads_tensor_group():
            return torch.zeros(len(samples), dtype=torch.float64)
        ids = [t.prompt.tolist() for t in prompts]
        texts = self.speaker.continuations([(ids[s.prompt_index], s.answer.tolist()) for s in samples])
        ended = [s.stop == "eos" for s in samples]
        columns = [prompts[s.prompt_index].columns for s in samples]
        rewards = self.rewarder([turns[s.prompt_index] for s in samples], texts, ended, columns)
        return torch.tensor(rewards, dtype=torch.float64)

    def _answers(
        self, columns: Mapping[str, Tensor], order: np.ndarray, n: int, seconds: Mapping[str, float]
    ) -> Answers:
        """All answers in prompt order, from columns in rank order."""
        rows = (order[:, None] * n + np.arange(n)).ravel().tolist()
        lengths = columns["length"].tolist()
        ids, logps = ([part.numpy() for part in columns[name].split(lengths)] for name in ("ids", "logps"))
        ended = columns["ended"].bool()[rows]
        samples = [
            Sample(k // n, ids[row], "eos" if end else "length", logps[row])
            for k, (row, end) in enumerate(zip(rows, ended.tolist(), strict=True))
        ]
        scores = columns["reward"][rows]
        if self.config.missing_eos_penalty is not None:
            scores = torch.where(ended, scores, -self.config.missing_eos_penalty)
        mask = torch.arange(max(lengths)) < columns["length"][rows][:, None]
        tables = []
        for name in _TABLES:
            parts = columns[name].split(lengths)
            tables.append(pad_sequence([parts[row] for row in rows], batch_first=True))
        return Answers(samples, scores, mask, *tables, seconds=seconds)

    def _read(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Mask ``[N, L]``; log-probs under policy and reference, KL and values of every token, ``[4, N, L]``."""
        first_row = {id(t): k * len(t.branches) for k, t in enumerate(trees)}
        lengths = torch.tensor([len(b.ids) for t in trees for b in t.branches], dtype=torch.int64)
        mask = torch.arange(max(lengths.tolist(), default=0)) < lengths[:, None]
        tables = torch.zeros(4, *mask.shape, dtype=torch.float64)
        with torch.no_grad():
            for batch in self.layout.batches(trees):
                rows = [first_row[id(t)] + k for t, k in batch.sources]
                flat = torch.zeros(len(rows), mask.shape[1], dtype=torch.bool)
                flat[:] = mask[rows]
                for table, values in zip(tables, self._columns(batch), strict=True):
                    part = torch.zeros(flat.shape, dtype=torch.float64)
                    part[flat] = values.double().cpu()
                    table[rows] = part
        return mask, tables

    def _columns(self, batch: Any) -> tuple[Tensor, ...]:
        policy, reference = score_with(
            self.model, self.reference, batch, [(kl_policy_ref, {})], self.config.temperature
        )
        assert reference is not None
        values = torch.zeros_like(policy.token_logps)
        if self.critic is not None:
            shared = self.critic.trunk is None
            values = self.critic.values(batch, predicting(self.model, batch) if shared else None)
        return policy.token_logps, reference.token_logps, policy.extras["kl_policy_ref"], values


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # else the next stage would be charged with this one's kernels
    seconds[stage] = time.perf_counter() - started


def prompts_of(iteration: int, size: int, n_prompts: int, seed: int) -> list[int]:
    """Indices of the prompts of an iteration: ``size`` successive ones of an endless list of passes over all prompts,
    each in a new order."""
    first = iteration * size
    rounds = range(first // n_prompts, (first + size - 1) // n_prompts + 1)
    order = [i for r in rounds for i in update_order(n_prompts, n_prompts, epoch=r, seed=seed)[0]]
    start = first - rounds[0] * n_prompts
    return order[start : start + size]


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A separate seed for each purpose and number, in [0, 2^56)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "big")


def numbers_of(answers: Answers, config: OnlineConfig, kl_coef: float) -> dict[str, Tensor]:
    """Per-token numbers for the loss, ``[N, L]`` float64 each: ``old_logp``, ``advantage`` and others it needs."""
    advantages = METHODS[config.method].advantages
    assert advantages is not None, f"{config.method} learns from rewards and has no advantages"
    return {"old_logp": answers.old_logp, **advantages(answers, config, kl_coef)}


def _trees(prompts: Sequence[Tree], answered: Answers, numbers: dict[str, Tensor], n: int) -> list[Tree]:
    lengths = answered.mask.sum(1).tolist()
    plain = {name: table.float().numpy() for name, table in numbers.items()}
    answers = [
        Branch(s.ids, np.ones(length, dtype=bool), {name: table[k, :length] for name, table in plain.items()})
        for k, (s, length) in enumerate(zip(answered.samples, lengths, strict=True))
    ]
    return [rollout_tree(t, answers[k * n : (k + 1) * n]) for k, t in enumerate(prompts)]


def figures(answers: Answers, numbers: dict[str, Tensor], kl_coef: float, n: int) -> dict[str, float]:
    """Metrics of a rollout, each a mean over all its answers (named as in TRL), and the seconds of its stages.

    ``objective/kl`` is the mean of log pi - log pi_ref; ``objective/kl_exact`` is the mean sum of exact next-token KLs
    (also unbiased, with lower variance); ``rollout/same_reward`` is the share of prompts whose answers all got the same
    reward.
    """
    groups = answers.scores.reshape(-1, n)
    metrics = {
        "objective/scores": float(answers.scores.mean()),
        "objective/kl": float(answers.log_ratio.mean()),
        "objective/kl_exact": float(answers.kl.sum(1).mean()),
        "objective/rlhf_reward": float((answers.scores - kl_coef * answers.log_ratio).mean()),
        "objective/entropy": float(-answers.old_logp.sum(1).mean()),
        "objective/kl_coef": kl_coef,
        "rollout/length": float(answers.mask.sum(1).double().mean()),
        "rollout/eos_rate": float(np.mean([s.stop == "eos" for s in answers.samples])),
        **{f"seconds/{stage}": round(spent, 3) for stage, spent in answers.seconds.items()},
    }
    if len(answers.scores) > 1:
        metrics["objective/scores_sd"] = float(answers.scores.std())
    if n > 1:
        metrics["rollout/same_reward"] = float(
            (groups.std(1) <= _ROUNDING * (1 + groups.abs().amax(1))).double().mean()
        )
    if "target" in numbers:
        metrics["value/explained_variance"] = explained_variance(numbers["target"], numbers["old_value"], answers.mask)
    return metrics


def explained_variance(target: Tensor, value: Tensor, mask: Tensor) -> float:
    """1 - Var(target - value) / Var(target) over real tokens: 1 for a perfect value model, 0 for a constant one."""
    residual, real = (target - value)[mask], target[mask]
    spread = float(real.var(correction=0))
    return 1 - float(residual.var(correction=0)) / spread if spread > 0 else 0.0


def _check_start(answers: Answers, dtype: torch.dtype) -> None:
    gap = float((answers.old_logp - answers.ref_logp).abs().max())
    if not gap <= _START_TOLERANCE.get(dtype, _START_TOLERANCE_LOW):
        raise AfzalError(
            f"policy and reference differ by {gap:.3g} nats at a token before any training",
            why="they must be the same model at the start",
            remedy="report this as a bug with --debug output",
        )


def held_out(writer: Writer, prompts: Sequence[Tree], turns: Sequence[Turns]) -> Callable[[float], dict[str, float]]:
    """A function from the KL penalty's strength to metrics of the policy's answers to held-out prompts.

    Prompts and seed are the same each time. ``objective`` is reward - kl_coef KL, which training maximises.
    """
    # evaluations are complete or absent, since they are not repeated when the run is resumed
    first, writer = slice(0, writer.config.eval_prompts), replace(writer, critic=None, may_stop=False)

    def evaluate_policy(kl_coef: float) -> dict[str, float]:
        answers = writer.answer(prompts[first], turns[first], n=1, seed=seed_of(writer.config.seed, "held-out", 0))
        kl = answers.kl.sum(1)
        lengths = answers.mask.sum(1).double()
        figures = {"n": float(len(kl)), "reward": float(answers.scores.mean()), "kl": float(kl.mean())}
        if len(kl) > 1:
            errors = [mean(clustered(range(len(kl)), values.tolist())).se for values in (answers.scores, kl)]
            figures |= {"reward_se": errors[0], "kl_se": errors[1]}
        ends = float(np.mean([s.stop == "eos" for s in answers.samples]))
        figures |= {"samples/length": float(lengths.mean()), "samples/eos_rate": ends}
        return figures | {"objective": figures["reward"] - kl_coef * figures["kl"]}

    return evaluate_policy
