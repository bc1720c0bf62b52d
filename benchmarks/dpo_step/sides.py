"""The sides: each function returns a loop of the same updates for :class:`benchmarks.dpo_step.stepper.Stepper`.

All sides start from the same policy and reference weights and use the same pairs in the same order, with AdamW (no
decay) at the same constant learning rate and gradients clipped at 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import flops
from benchmarks.dpo_step.models import add_noise, build

Row = tuple[list[int], list[int], list[int]]
Loop = Callable[[Callable[[], None], Callable[[float], None]], None]
BETA, LR = 0.1, 1e-6


@dataclass(frozen=True, slots=True)
class Work:
    """The input of every side. ``rows`` are in training order, ``pairs`` per update.

    Attributes:
        cached: the reference's log-probs are computed beforehand.
        rank: rank of LoRA adapters on every linear layer, 0 if all weights train.
        optimizer: optimizer of Afzal's sides; the others use AdamW.
        peer_pairs: pairs per forward pass of the peers, a divisor of ``pairs``; 0 means the full update. Afzal splits
            its updates itself.
    """

    config: Any
    rows: Sequence[Row]
    pairs: int
    dtype: str
    device: torch.device
    cached: bool = False
    rank: int = 0
    optimizer: str = "adamw"
    peer_pairs: int = 0

    @property
    def at_once(self) -> int:
        """Pairs per forward pass of the peers."""
        return min(self.peer_pairs or self.pairs, self.pairs)

    @property
    def in_bf16(self) -> bool:
        return self.dtype == "bf16"

    def model(self) -> Any:
        """A new model with the reference's weights: float32, or the computing format of a frozen base."""
        return build(self.config, self.device, torch.bfloat16 if self.rank and self.in_bf16 else torch.float32)


def loop_of(side: str, work: Work) -> Loop:
    """The loop of a side, ready to run, with its models, adapters and cached references."""
    make = {"afzal": afzal, "afzal-cached": afzal, "plain": plain, "trl": trl, "trl-best": trl_best}
    make |= {"trl-bf16": trl_bf16}
    return make[side](work)


def is_cached(side: str) -> bool:
    """Whether a side caches its reference and groups its rows by length."""
    return side in ("afzal-cached", "trl-best")


def afzal(work: Work) -> Loop:
    """The setup and loop of ``afzal train dpo``."""
    from afzal import runs
    from afzal.config.methods.dpo import DPOConfig
    from afzal.prepare import Prepared, recipe_of
    from afzal.recipes.parallel import StartingModel
    from afzal.recipes.setup import set_up
    from afzal.records import Preference
    from afzal.tokens import Speaker, tree
    from afzal.train.loop import Hooks, State, fit

    trees = [tree(str(i), p, [c, r], pairs=[Preference(0, 1, 1.0)]) for i, (p, c, r) in enumerate(work.rows)]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            model="random weights",
            data="random tokens",
            out=f"{folder}/run",
            eval_fraction=0.0,
            batch_size=work.pairs,
            epochs=1,
            lr=LR,
            lr_schedule="constant",
            warmup=0,
            weight_decay=0.0,
            beta=BETA,
            dtype="bf16" if work.in_bf16 else "fp32",
            reference="cached" if work.cached else "adapter_off" if work.rank else "frozen",
            lora_rank=work.rank or None,
            optimizer=work.optimizer,
        )
        prepared = Prepared(
            Speaker(None), _as_shuffled(trees, config), [], [], [], [], {}, {}, [], False, recipe_of(config), 1 << 20
        )
        with runs.create(config.out, {}) as run:
            setup = set_up(config, prepared, StartingModel(work.model()), work.device, run)
    add_noise(setup.weights.masters.items())
    setup.weights.publish()
    steps = len(trees) // work.pairs

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        def log(record: dict[str, Any]) -> None:
            if "loss" not in record:
                return
            flops.wait(work.device)
            ended(record["loss"])
            if record["step"] < steps:
                began()

        began()
        parts = (setup.model, setup.method, setup.feed, setup.optimizer, setup.settings)
        fit(*parts, hooks=Hooks(log=log), state=State(), weights=setup.weights)

    loop.executed = lambda *rows: executed(work, setup.feed.layout, trees, *rows)  # type: ignore[attr-defined]
    loop.notes = setup.notes  # type: ignore[attr-defined]
    return loop


def _as_shuffled(trees: Sequence[Any], config: Any) -> list[Any]:
    """The trees in an order that the run's shuffling turns back into the given one."""
    from afzal.tokens.pack import update_order

    ordered: list[Any] = [None] * len(trees)
    order = [i for members in update_order(len(trees), config.batch_size, epoch=0, seed=config.seed) for i in members]
    for place, tree in zip(order, trees, strict=True):
        ordered[place] = tree
    return ordered


def executed(work: Work, layout: Any, trees: Sequence[Any], first: int = 0, last: int | None = None) -> float:
    """Floating-point operations of the layout divided by the least that the lengths need, for rows ``first:last``.

    The excess comes from padding and from the masked half of each branch's attention square."""
    config, width = work.config, work.config.num_attention_heads * flops.head_width(work.config)
    rows, trees = work.rows[first:last], trees[first:last]
    counts = np.array([[len(p), len(c), len(r)] for p, c, r in rows])
    made = computed = last = 0
    for start in range(0, len(trees), work.pairs):
        for batch in layout.batches(trees[start : start + work.pairs]):
            assert batch.layout is not None
            made += batch.ids.numel()
            dtype = torch.bfloat16 if work.in_bf16 else torch.float32
            computed += batch.layout.plan(width, dtype=dtype).attended
            last += (batch.layout_of_predictions or batch.layout).plan(width, dtype=dtype).attended
    blocks = config.num_hidden_layers
    excess = (blocks - 1) * (computed - flops.attended_pairs(counts)) + last - flops.predicting(counts)[1]
    more = flops.per_product(config) / blocks * excess
    more += 2 * flops.body_weights(config) * (made - int(counts.sum()))
    return 1 + more / (flops.minimum(counts, config, reference_online=False) / 3)


def plain(work: Work) -> Loop:
    """A hand-written loop over `transformers`: padded rows, two forward passes, logits of every position."""
    model = work.model()
    if work.rank:
        from peft import get_peft_model

        model = get_peft_model(model, _lora(work.rank))
    reference = None if work.rank else work.model().requires_grad_(False)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    add_noise(trained.items())
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0, fused=True)

    def logps(m: Any, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        logits = m(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        token_logps = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return (token_logps * scored[:, 1:]).sum(-1)

    def under_reference(*rows: torch.Tensor) -> torch.Tensor:
        if reference is not None:
            return logps(reference, *rows)
        with model.disable_adapter():
            return logps(model, *rows)

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        for start in range(0, len(work.rows), work.pairs):
            rows = work.rows[start : start + work.pairs]
            began()
            losses = []
            for k in range(0, len(rows), work.at_once):
                padded = _padded(rows[k : k + work.at_once], work.device)
                with torch.autocast(work.device.type, torch.bfloat16, enabled=work.in_bf16):
                    with torch.no_grad():
                        ref = under_reference(*padded)
                    rho = logps(model, *padded) - ref
                h = rho[: len(rho) // 2] - rho[len(rho) // 2 :]
                loss = -torch.nn.functional.logsigmoid(BETA * h).sum() / len(rows)
                loss.backward()
                losses.append(loss.detach())
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            flops.wait(work.device)
            ended(float(torch.stack(losses).sum()))

    return loop


def _lora(rank: int) -> Any:
    """The adapter that Afzal creates from ``lora_rank`` alone."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def unavailable(side: str) -> str:
    """Why a side cannot run in this environment, in one line; "" if it can."""
    if not side.startswith("trl"):
        return ""
    try:
        from trl import DPOConfig, DPOTrainer  # noqa: F401
    except Exception as error:  # with another transformers version, the import can raise anything
        return reason(error)
    return ""


def reason(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def trl(work: Work, weights: torch.dtype | None = None, **options: Any) -> Loop:
    """TRL's DPOTrainer and its loop, unchanged except for the order of the rows; ``options`` go to its DPOConfig.

    ``weights`` is the number format of all weights, if not float32 under autocast.
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        seen: list[torch.Tensor] = []  # noqa: RUF012 - of the passes of one update

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            self.seen.append((result[0] if isinstance(result, tuple) else result).detach())
            return result

    class Pause(TrainerCallback):
        began: Callable[[], None]
        ended: Callable[[float], None]

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            flops.wait(work.device)
            self.ended(float(torch.stack(trainer.seen).mean()))
            trainer.seen.clear()

    folder = tempfile.mkdtemp()
    on_cpu = work.device.type == "cpu"
    steps = len(work.rows) // work.pairs
    settings = {
        "output_dir": folder,
        "per_device_train_batch_size": work.at_once,
        "gradient_accumulation_steps": work.pairs // work.at_once,
        "max_steps": steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "beta": BETA,
        "use_cpu": on_cpu,
        "bf16": work.in_bf16,
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }
    pause = Pause()
    make = (lambda: work.model().to(weights)) if weights else work.model
    trainer = InOrder(
        make(),
        # an adapter switched off is its own reference, and a cached one comes from the policy before it has moved
        ref_model=None if work.rank or work.cached else make(),
        peft_config=_lora(work.rank) if work.rank else None,
        args=DPOConfig(**settings | options),
        train_dataset=Dataset.from_list([_as_text(row) for row in work.rows]),
        processing_class=_tokenizer(work.config.vocab_size),
        callbacks=[pause],
    )
    add_noise((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)

    def loop(began: Callable[[], None], ended: Callable[[float], None]) -> None:
        pause.began, pause.ended = began, ended
        trainer.train()

    return loop


def trl_best(work: Work) -> Loop:
    """TRL as fast as its options make it: nothing recomputed, reference log-probs computed beforehand."""
    return trl(work, gradient_checkpointing=False, precompute_ref_log_probs=work.cached)


def trl_bf16(work: Work) -> Loop:
    """TRL by default on bf16 weights, as in most published models: half the memory for weights and optimiser, but
    updates smaller than bf16's resolution are lost. Not the same computation."""
    return trl(work, torch.bfloat16)


def _padded(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chosen rows above rejected rows, padded on the right: ids, mask, and response mask."""
    sequences = [(p, c) for p, c, _ in rows] + [(p, r) for p, _, r in rows]
    width = max(len(p) + len(a) for p, a in sequences)
    ids, mask, scored = np.zeros((3, len(sequences), width), dtype=np.int64)
    for k, (p, a) in enumerate(sequences):
        end = len(p) + len(a)
        ids[k, :end], mask[k, :end], scored[k, len(p) : end] = p + a, 1, 1
    return tuple(torch.from_numpy(x).to(device) for x in (ids, mask, scored))  # type: ignore[return-value]


def _as_text(row: Row) -> dict[str, str]:
    """Text that the tokenizer below encodes to exactly these ids; TRL adds the EOS itself."""
    prompt, chosen, rejected = ("".join(f" {i}" for i in ids) for ids in (row[0], row[1][:-1], row[2][:-1]))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _tokenizer(vocabulary: int) -> Any:
    """A word-level tokenizer: the word ``17`` is token 17; 0 is padding and 1 is EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>")
