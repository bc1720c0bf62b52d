"""The sides' processes: the same updates by Afzal, by TRL's trainers and by a plain loop.

All use AdamW without decay at a constant learning rate, gradients clipped at 1 and rows in the same order. Each side
chooses the passes of an update. Nothing is held out, and nothing is sampled except for training.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.methods_step import given, pacing, plain
from benchmarks.methods_step.work import (
    ANSWERS,
    BETA,
    GAMMA,
    KL,
    LAM,
    LR,
    PPO,
    SIMPO_BETA,
    Work,
    evens,
    examples,
    given_answers,
    highs,
    items_of,
)

Ended = Callable[[float], None]
Hears = Callable[[Mapping[str, float]], None]
AT_ONCE = 8  # rows per forward pass of TRL, its default
MAX_TOKENS = 2048  # of prompt and answer for TRL's online DPO, whose default truncates longer prompts


def main() -> None:
    """Entry point ``python -m benchmarks.methods_step.sides WORK METHOD SIDE``, started by :class:`pacing.Side`."""
    pace = pacing.of_this_process()
    file, method, side = sys.argv[1:]
    work = Work(**json.loads(Path(file).read_text()))
    if side == "plain":
        plain.ppo(work, lambda passes: pace.ended(fmean(policy + PPO["vf_coef"] * value for policy, value in passes)))
    elif side != "afzal":
        trl(method, work, pace.ended, best=side == "trl-best")
    elif method == "online-dpo":
        rounds(work, pace.ended)
    else:
        afzal(method, work, every(PPO["ppo_epochs"] if method == "ppo" else 1, pace.ended))


def every(passes: int, ended: Ended) -> Hears:
    """A listener for each pass's metrics, which calls ``ended`` with the mean loss after an update's last pass."""
    losses: list[float] = []

    def heard(metrics: Mapping[str, float]) -> None:
        losses.append(metrics["loss"])
        if len(losses) == passes:
            mean = fmean(losses)
            losses.clear()
            ended(mean)

    return heard


def afzal(method: str, work: Work, hears: Hears) -> None:
    """``afzal.fit`` as it is; no settings make it faster."""
    from afzal import fit
    from afzal.recipes import rollout
    from afzal.tokens import update_order

    if method == "ppo":
        given.to_afzal(rollout, given_answers(method, work))
    rows, per_update = examples(method, work), items_of(method, work)
    shuffled: list[Any] = [None] * len(rows)
    order = [i for members in update_order(len(rows), per_update, epoch=0, seed=0) for i in members]
    for place, row in zip(order, rows, strict=True):
        shuffled[place] = row  # the run's shuffling undoes this order
    name, own = _own(method, work)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            name,
            data=shuffled,
            out=f"{folder}/run",
            on_step=lambda progress: hears(progress.metrics),
            eval_fraction=0.0,
            batch_size=per_update,
            max_steps=work.updates * own.get("ppo_epochs", 1),
            lr=LR,
            lr_schedule="constant",
            warmup=0,
            dtype=work.dtype,
            device="cpu",
            **own,
        )


def rounds(work: Work, ended: Ended) -> None:
    """``afzal.api.iterate`` with one update per round; the time between two updates is a complete round."""
    from afzal import api
    from afzal.iterate import answers

    given.to_afzal(answers, given_answers("online-dpo", work))
    per_round = items_of("online-dpo", work)
    with tempfile.TemporaryDirectory() as folder:
        apart = Path(folder, "apart.jsonl")
        apart.write_text(
            json.dumps({"prompt": " 2 3"}) + "\n"
        )  # rounds measure held-out prompts before the first round
        api.iterate(
            preset="online",
            model=f"{work.folder}/policy",
            prompts=examples("online-dpo", work),
            reward="benchmarks.methods_step.work:high",
            out=f"{folder}/rounds",
            on_step=lambda progress: ended(progress.metrics["loss"]),
            rounds=work.updates,
            prompts_per_round=per_round,
            batch_size=per_round,
            measure_every=work.updates,
            held_out_prompts=str(apart),
            held_out_samples=1,
            require_eos=False,
            objective_arg={"beta": BETA},
            max_new_tokens=work.tokens,
            lr=LR,
            dtype=work.dtype,
            device="cpu",
        )


def _own(method: str, work: Work) -> tuple[str, dict[str, Any]]:
    """The name of a method in ``afzal train``, and its specific settings."""
    policy, reference = f"{work.folder}/policy", f"{work.folder}/reference"
    clipped = {"reference": reference, "n": 1, "gamma": 1.0, **PPO}
    online = {"model": policy, "reward": "benchmarks.methods_step.work:even", "n": ANSWERS, "kl_coef": KL}
    online |= {"sample_tokens": work.tokens, "sample_prompts": 0}
    offline = {"model": policy, "sample_prompts": 0}
    prefer = offline | {"objective": method}
    return {
        "sft": ("sft", offline),
        "reward": ("reward", {"model": f"{work.folder}/reward", "centering": 0.0}),
        "kto": ("kto", offline | {"reference": reference, "beta": BETA}),
        "orpo": ("prefer", prefer | {"objective_arg": {"lam": LAM}}),
        "simpo": ("prefer", prefer | {"objective_arg": {"beta": SIMPO_BETA, "gamma": GAMMA}}),
        "rloo": ("rloo", online),
        "grpo": ("grpo", online),
        "ppo": ("ppo", online | clipped),
    }[method]


def trl(method: str, work: Work, ended: Ended, *, best: bool) -> None:
    """TRL's trainer of the method and its loop; with ``best``, nothing is recomputed, and SFT has no padding."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    trainer_of, config_of, own = _trainer(method, work)
    losses: list[Any] = []

    class Observed(trainer_of):  # type: ignore[misc, valid-type]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            losses.append((result[0] if isinstance(result, tuple) else result).detach())
            return result

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().training_step(*args, **kwargs)
            if not losses:  # online DPO computes its loss here
                losses.append(result)
            return result

    class Pause(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            passes_in_mean = 1 if method == "sft" else len(losses)  # SFT divides by the tokens of the whole update
            ended(float(sum(losses) / passes_in_mean))
            losses.clear()

    settings = {
        "output_dir": tempfile.mkdtemp(),
        **passes(items_of(method, work) if method == "online-dpo" else work.items),
        "max_steps": work.updates,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "use_cpu": True,
        "bf16": work.dtype == "bf16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }
    if best:
        settings |= {"gradient_checkpointing": False} | (
            {"padding_free": True, "max_length": None} if method == "sft" else {}
        )
    folder = f"{work.folder}/{'reward' if method == 'reward' else 'policy'}"
    trainer = Observed(
        model=_load(folder, scores=method == "reward"),
        args=config_of(**settings | own),
        train_dataset=Dataset.from_list(examples(method, work)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Pause()],
        **({"ref_model": _load(f"{work.folder}/reference")} if method == "kto" else {}),
        **({"reward_funcs": evens} if method in ("rloo", "grpo") else {}),
        **({"reward_funcs": highs} if method == "online-dpo" else {}),
    )
    trainer.train()


def passes(items: int) -> dict[str, int]:
    """TRL's batch settings for an update: passes of 8 items, its default, if ``items`` is a multiple of 8."""
    at_once = AT_ONCE if items % AT_ONCE == 0 else items
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": items // at_once}


def _trainer(method: str, work: Work) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's classes for a method, and its specific settings."""
    import trl

    online = {"num_generations": ANSWERS, "max_completion_length": work.tokens, "beta": KL, "temperature": 1.0}
    online |= {"shuffle_dataset": False}
    if method == "sft":
        return trl.SFTTrainer, trl.SFTConfig, {"shuffle_dataset": False}
    if method == "reward":
        return trl.RewardTrainer, trl.RewardConfig, {}
    if method == "kto":
        return trl.KTOTrainer, trl.KTOConfig, {"beta": BETA}
    if method == "rloo":
        return trl.RLOOTrainer, trl.RLOOConfig, online
    if method == "grpo":
        return trl.GRPOTrainer, trl.GRPOConfig, online
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, {"beta": LAM}
    if method == "online-dpo":
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        written = {"max_new_tokens": work.tokens, "temperature": 1.0, "beta": BETA, "max_length": MAX_TOKENS}
        return given.to_trl(OnlineDPOTrainer, given_answers(method, work)), OnlineDPOConfig, written
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig, {"loss_type": "simpo", "beta": SIMPO_BETA, "simpo_gamma": GAMMA, "cpo_alpha": 0.0}


def _load(folder: str, *, scores: bool = False) -> Any:
    """Load a model in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)


if __name__ == "__main__":
    main()
