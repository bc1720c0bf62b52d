"""Sample from the policy on held-out prompts during training, and measure how far it has moved on these samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from afzal import runs
from afzal.config import TrainConfig
from afzal.generate import Sample, Sampling, sample
from afzal.model.statistics import LiveReference
from afzal.prepare import Prepared
from afzal.recipes.divergence import kl_along
from afzal.recipes.previews import keep_previews
from afzal.recipes.prompt_columns import prompt_columns
from afzal.stats.intervals import clustered, mean, over_seeds
from afzal.tokens import Speaker, Tree
from afzal.train import ranks
from afzal.train.feed import Layout


@dataclass(frozen=True, slots=True)
class Watch:
    """Samples answers to some held-out prompts at every evaluation, with the same prompts and seed each time.

    ``start`` is the policy before training, if the distance to it is measured. ``prompt_columns`` are those of
    each row.
    """

    model: Any
    speaker: Speaker
    start: LiveReference | None
    layout: Layout
    prompts: Sequence[Tree]
    prompt_ids: Sequence[str]
    eos: Sequence[int]
    sampling: Sampling
    seed: int
    path: Path
    previews: Mapping[str, Mapping[str, str]]
    prompt_columns: Sequence[Mapping[str, Any]]

    @classmethod
    def make(
        cls,
        config: TrainConfig,
        model: Any,
        prepared: Prepared,
        start: LiveReference | None,
        layout: Layout,
        path: Path,
    ) -> Watch:
        """A watch over the first ``config.sample_prompts`` held-out prompts by item id; writes below ``path``."""
        by_prompt = {t.prompt_key: t for t in prepared.evaluation}
        policy = config.policy
        n_prompts = policy.sample_prompts if policy is not None else 0
        chosen = sorted(by_prompt.values(), key=lambda t: t.item_id)[:n_prompts]
        sampling = Sampling()
        if policy is not None and chosen:
            room = (prepared.speaker.context or prepared.max_tokens) - max(len(t.prompt) for t in chosen)
            limit = policy.sample_tokens or max(1, min(prepared.longest_response, room))
            sampling = Sampling(max_new_tokens=limit, temperature=policy.sample_temperature)
        previews = keep_previews([m.media for t in chosen for m in t.media], path) if ranks.leads() else {}
        return cls(
            model,
            prepared.speaker,
            start,
            layout,
            [replace(t, branches=()) for t in chosen],
            [t.item_id for t in chosen],
            prepared.ends,
            sampling,
            config.seed,
            path / "samples.jsonl",
            previews,
            prompt_columns(chosen, prepared.evaluation_items, prepared.speaker, previews, path),
        )

    def measure(self, step: int) -> dict[str, float]:
        """Sample; measure lengths, the share of answers that end in EOS, and the KL to the start in nats per answer.

        Samples are written to ``samples.jsonl``: as ``before`` at step 0, else replacing the last ``after``.
        """
        if not self.prompts:
            return {}
        samples = sample(self.model, self.prompts, eos=self.eos, sampling=self.sampling, seed=self.seed)
        stage = "before" if step == 0 else "after"
        self._keep(stage, [self._record(s, stage, step) for s in samples])
        lengths = [len(s.ids) for s in samples]
        figures = {
            "samples/length": float(np.mean(lengths)),
            "samples/eos_rate": float(np.mean([s.stop == "eos" for s in samples])),
        }
        return figures | self._kl(samples)

    def _keep(self, stage: str, records: list[dict[str, Any]]) -> None:
        """Replace the samples of this stage, which a resumed run may have written before."""
        if not ranks.leads():
            return
        others = [r for r in runs.read_jsonl(self.path) if r["stage"] != stage] if self.path.exists() else []
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*others, *runs.redact_texts(records)])
        runs.atomic_write(self.path, lines)

    def _kl(self, samples: Sequence[Sample]) -> dict[str, float]:
        """KL(policy || start) of full answers at temperature 1, independent of the temperature of the shown samples.

        A mean over prompts, with its standard error and 95% interval (Student's t) over prompts. If ``kl_cut``, the
        share of answers that reached the limit, is not 0, those answers contribute the KL of their first tokens only.
        """
        if self.start is None:
            return {}
        if self.sampling.temperature != 1.0:
            plain = Sampling(max_new_tokens=self.sampling.max_new_tokens)
            samples = sample(self.model, self.prompts, eos=self.eos, sampling=plain, seed=self.seed)
        values = kl_along(self.model, self.start, samples, self.prompts, self.layout)
        figure = over_seeds(values)
        if not math.isfinite(figure.value):
            return {}
        figures = {
            "kl": figure.value,
            "kl_cut": float(np.mean([s.stop != "eos" for s in samples])),
            "kl_tokens": float(np.mean([len(s.ids) for s in samples])),
        }
        if figure.low is None or figure.high is None:
            return figures
        error = mean(clustered(range(len(values)), values)).se  # one answer per prompt
        return figures | {"kl_se": error, "kl_low": max(0.0, figure.low), "kl_high": figure.high}

    def _record(self, s: Sample, stage: str, step: int) -> dict[str, Any]:
        tree = self.prompts[s.prompt_index]
        prompt = tree.prompt.tolist()
        media = [dict(self.previews[m.media.sha256]) for m in tree.media if m.media.sha256 in self.previews]
        return {
            "stage": stage,
            "step": step,
            **self.prompt_columns[s.prompt_index],
            "completion": self.speaker.continuation(prompt, s.answer.tolist()),
            "tokens": len(s.ids),
            "stop": s.stop,
            "prompt_id": self.prompt_ids[s.prompt_index],
            "rendered": self.speaker.tokenizer.decode(prompt, skip_special_tokens=True),
            **({"media": media} if media else {}),
        }
