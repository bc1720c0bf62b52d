"""TRL configured like its peers: rows in the given order, plain gradients, float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def trl_arguments(out: Path, batch_size: int, lr: float, **more: Any) -> Any:
    """TRL's settings for one epoch."""
    import trl

    return trl.DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.1,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        max_length=None,
        save_strategy="no",
        report_to=[],
        **more,
    )


def in_order() -> Any:
    """TRL's trainer with rows in the given order."""
    import trl
    from torch.utils.data import SequentialSampler

    class InOrder(trl.DPOTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return InOrder
