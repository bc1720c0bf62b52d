"""The same updates by different means: each function gives a loop for :class:`benchmarks.dpo_step.stepper.Stepper`.

All start from the same policy and reference weights and take the same pairs in the same order, with AdamW (no decay)
at the same constant learning rate, gradients clipped at 1.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import flops

Row = tuple[list[int], list[int], list[int]]
Loop = Callable[[Callable[[], None], Callable[[float], None]], None]
BETA, LR = 0.1, 1e-6


@dataclass(frozen=True, slots=True)
class Work:
    """What every side is given. ``rows`` come in the order of training, ``pairs`` per update."""

    config: Any
    policy: dict[str, torch.Tensor]
    reference: dict[str, torch.Tensor]
    rows: Sequence[Row]
    pairs: int
    dtype: str
    device: torch.device
    cached: bool

    def model(self, weights: dict[str, torch.Tensor], attention: str = "sdpa") -> Any:
        """A model of its own with these weights, float32."""
        from transformers import AutoModelForCausalLM

        made = AutoModelForCausalLM.from_config(copy.deepcopy(self.config), attn_implementation=attention)
        made.load_state_dict(weights)
        return made.to(self.device).eval()


def make_work(config: Any, rows: Sequence[Row], *, pairs: int, dtype: str, device: torch.device, cached: bool) -> Work:
    """Random weights; the policy is the reference and a little noise, so that the losses say something."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    reference = {k: v.detach().clone() for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()}
    noise = torch.Generator().manual_seed(1)
    move = lambda v: v + 0.02 * v.std() * torch.randn(v.shape, generator=noise) if v.dim() > 1 else v  # noqa: E731
    policy = {k: move(v) for k, v in reference.items()}
    return Work(config, policy, reference, rows, pairs, dtype, device, cached)


def afzal(work: Work) -> Loop:
    """The loop behind ``afzal train dpo``, with its own packing and attention."""
    from afzal import objectives
    from afzal.model.probe import choose_sharing
    from afzal.model.reference import Frozen, cached
    from afzal.records import Preference
    from afzal.tokens import tree
    from afzal.train.feed import Feed, Layout
    from afzal.train.loop import Hooks, Method, Settings, State, fit
    from afzal.train.optim import make_optimizer
    from afzal.train.precision import Weights

    class InOrder(Feed):
        def members(self, step: int) -> list[int]:
            return list(range(step * self.batch_size, (step + 1) * self.batch_size))

    model, reference = work.model(work.policy), work.model(work.reference).requires_grad_(False)
    for m in (model, reference):
        choose_sharing(m)
    weights = Weights(model, work.dtype)
    if work.dtype == "bf16":
        reference.to(torch.bfloat16)
    trees = [tree(str(i), p, [c, r], pairs=[Preference(0, 1, 1.0)]) for i, (p, c, r) in enumerate(work.rows)]
    layout = Layout("shared", 8192, work.device)
    source = Frozen(reference)
    if work.cached:
        with tempfile.TemporaryDirectory() as folder:
            source = cached(
                source, trees, Path(folder), key="0" * 24, sharing="shared", budget=8192, device=work.device
            )
        del reference
    optimizer = make_optimizer(weights.masters.values())
    settings = Settings(steps=len(work.rows) // work.pairs, lr=lambda _: LR)

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        def log(record: dict[str, Any]) -> None:
            ended(record["loss"])
            if record["step"] < settings.steps:
                began()

        began()
        method = Method.of(objectives.get("dpo"), {"beta": BETA}, source)
        feed = InOrder(trees, (), work.pairs, 0, layout)
        fit(model, method, feed, optimizer, settings, hooks=Hooks(log=log), state=State(), weights=weights)

    loop.executed = lambda: executed(work, layout, trees)  # type: ignore[attr-defined]
    return loop


def executed(work: Work, layout: Any, trees: Sequence[Any]) -> float:
    """Floating-point operations that the layout asks for, over the least that the lengths need: padding and the masked
    half of a branch's own square are what there can be too much of."""
    config, width = work.config, work.config.num_attention_heads * flops.head_width(work.config)
    counts = np.array([[len(p), len(c), len(r)] for p, c, r in work.rows])
    made = computed = 0
    for start in range(0, len(trees), work.pairs):
        for batch in layout.batches(trees[start : start + work.pairs]):
            assert batch.layout is not None
            made += batch.ids.numel()
            computed += batch.layout.plan(width).attended
    more = flops.per_product(config) * (computed - flops.looked_at(counts))
    more += 2 * flops.body_weights(config) * (made - int(counts.sum()))
    return 1 + more / (flops.minimum(counts, config, reference_online=False) / 3)


def plain(work: Work) -> Loop:
    """What a person writes by hand with `transformers`: padded rows, two forward passes, logits of every position."""
    model, reference = work.model(work.policy), work.model(work.reference).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def logps(m: Any, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        logits = m(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        found = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return (found * scored[:, 1:]).sum(-1)

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        for start in range(0, len(work.rows), work.pairs):
            rows = work.rows[start : start + work.pairs]
            began()
            ids, mask, scored = _padded(rows, work.device)
            with torch.autocast(work.device.type, torch.bfloat16, enabled=work.dtype == "bf16"):
                with torch.no_grad():
                    ref = logps(reference, ids, mask, scored)
                rho = logps(model, ids, mask, scored) - ref
            h = rho[: len(rows)] - rho[len(rows) :]
            loss = -torch.nn.functional.logsigmoid(BETA * h).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ended(float(loss))

    return loop


def unavailable(side: str) -> str:
    """Why a side cannot run in this environment, in one line; "" when it can."""
    if not side.startswith("trl"):
        return ""
    try:
        from trl import DPOConfig, DPOTrainer  # noqa: F401
    except Exception as error:  # beside another transformers, its import can end in any error
        return reason(error)
    return ""


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def trl(work: Work, **options: Any) -> Loop:
    """TRL's DPOTrainer and its own loop, unchanged but for the order of the rows; ``options`` go to its DPOConfig."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        seen = torch.zeros(())

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            self.seen = (found[0] if isinstance(found, tuple) else found).detach()
            return found

    class Pause(TrainerCallback):
        began: Callable[[], None]
        ended: Callable[[float], None]

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if work.device.type == "cuda":
                torch.cuda.synchronize()
            self.ended(float(trainer.seen))

    folder = tempfile.mkdtemp()
    on_cpu = work.device.type == "cpu"
    steps = len(work.rows) // work.pairs
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": work.pairs,
        "max_steps": steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "beta": BETA,
        "use_cpu": on_cpu,
        "bf16": work.dtype == "bf16",
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }
    pause = Pause()
    trainer = InOrder(
        work.model(work.policy),
        ref_model=work.model(work.reference),
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list([_as_text(row) for row in work.rows]),
        processing_class=_tokenizer(work.config.vocab_size),
        callbacks=[pause],
    )

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        pause.began, pause.ended = began, ended
        trainer.train()

    return loop


def trl_best(work: Work) -> Loop:
    """TRL as fast as its options make it: nothing recomputed, reference log-probs computed beforehand."""
    return trl(work, gradient_checkpointing=False, precompute_ref_log_probs=work.cached)


def _padded(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chosen rows above rejected rows, padded on the right: ids, mask, and where the response is."""
    whole = [(p, c) for p, c, _ in rows] + [(p, r) for p, _, r in rows]
    width = max(len(p) + len(a) for p, a in whole)
    ids, mask, scored = np.zeros((3, len(whole), width), dtype=np.int64)
    for k, (p, a) in enumerate(whole):
        end = len(p) + len(a)
        ids[k, :end], mask[k, :end], scored[k, len(p) : end] = p + a, 1, 1
    return tuple(torch.from_numpy(x).to(device) for x in (ids, mask, scored))  # type: ignore[return-value]


def _as_text(row: Row) -> dict[str, str]:
    """Text that the tokenizer below reads back as these very ids; TRL adds the EOS itself."""
    prompt, chosen, rejected = ("".join(f" {i}" for i in ids) for ids in (row[0], row[1][:-1], row[2][:-1]))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _tokenizer(vocabulary: int) -> Any:
    """Word by word: the word ``17`` is token 17; 0 pads and 1 ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>")
