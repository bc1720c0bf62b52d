"""The same updates by ``afzal.fit`` and by TRL's trainers, in a process of their own.

Both have AdamW without decay at a constant learning rate, gradients clipped at 1, rows in the same order, an update in
as few passes as the side wants, nothing held out, nothing sampled beside the training.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.methods_step import pacing
from benchmarks.methods_step.work import (
    ANSWERS,
    BETA,
    GAMMA,
    KL,
    LAM,
    LR,
    SIMPO_BETA,
    Work,
    evens,
    examples,
    items_of,
)

Ended = Callable[[float], None]


def main() -> None:
    """``python -m benchmarks.methods_step.sides WORK METHOD SIDE``, which :class:`pacing.Side` starts."""
    pace = pacing.of_this_process()
    file, method, side = sys.argv[1:]
    work = Work(**json.loads(Path(file).read_text()))
    run = afzal if side == "afzal" else trl
    run(method, work, pace.ended, best=side == "trl-best")


def afzal(method: str, work: Work, ended: Ended, *, best: bool = False) -> None:
    """``afzal.fit`` as it is; it has no settings that would make it faster (``best``)."""
    from afzal import fit
    from afzal.tokens import update_order

    rows, per_update = examples(method, work), items_of(method, work)
    given: list[Any] = [None] * len(rows)
    order = [i for members in update_order(len(rows), per_update, epoch=0, seed=0) for i in members]
    for place, row in zip(order, rows, strict=True):
        given[place] = row  # where the run's own shuffling brings it back from
    name, own = _own(method, work)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            name,
            data=given,
            out=f"{folder}/run",
            on_step=lambda progress: ended(progress.metrics["loss"]),
            eval_fraction=0.0,
            batch_size=per_update,
            max_steps=work.updates,
            lr=LR,
            lr_schedule="constant",
            warmup=0,
            dtype=work.dtype,
            device="cpu",
            **own,
        )


def _own(method: str, work: Work) -> tuple[str, dict[str, Any]]:
    """What ``afzal train`` calls a method, and the settings that only it has."""
    policy, reference = f"{work.folder}/policy", f"{work.folder}/reference"
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
    }[method]


def trl(method: str, work: Work, ended: Ended, *, best: bool) -> None:
    """TRL's trainer of the method and its own loop; ``best`` recomputes nothing, and SFT has no padding."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    trainer_of, config_of, own = _trainer(method, work)
    losses: list[Any] = []

    class Observed(trainer_of):  # type: ignore[misc, valid-type]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    class Pause(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended(float(sum(losses) / len(losses)))
            losses.clear()

    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": work.items,
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
    )
    trainer.train()


def _trainer(method: str, work: Work) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's classes for a method, and the settings that only it has."""
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
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig, {"loss_type": "simpo", "beta": SIMPO_BETA, "simpo_gamma": GAMMA, "cpo_alpha": 0.0}


def _load(folder: str, *, scores: bool = False) -> Any:
    """A model in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32)


if __name__ == "__main__":
    main()
