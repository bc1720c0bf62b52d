"""Set up a run from settings and prepared data: model, objectives, reference and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afzal import runs
from afzal.config import LOW_RANK, ModelSettings, TrainConfig
from afzal.errors import AfzalError
from afzal.model import rotary
from afzal.model.adapters import Adapter, add_adapter, is_adapted, is_factor, start_norms, virtual_kind
from afzal.model.load import compile_layers, width_of
from afzal.model.media import freeze_towers, towers
from afzal.model.number_format import NARROWEST, WORTHWHILE, bf16_speedup, survives_rounding
from afzal.model.probe import choose_sharing, kernel_notes, router_note
from afzal.model.reference import Frozen, Reference
from afzal.model.reward import is_reward_model
from afzal.model.sanity import refuse_silent
from afzal.model.value import Critic
from afzal.prepare import Prepared
from afzal.recipes import memory, meta_learning, online, parallel, reward, warm_start
from afzal.recipes.constraints import constraint_of
from afzal.recipes.media import ablation_note
from afzal.recipes.outputs import cast_as_saved
from afzal.recipes.references import LEAVE, longest_row, reference_of, start_of, sync_steps
from afzal.tokens import Tree
from afzal.tokens.batch import Sharing
from afzal.train import ranks
from afzal.train.dtensor import group_by_mesh
from afzal.train.episodes import Episodes
from afzal.train.feed import Feed, Layout, Updates
from afzal.train.loop import Settings, warmup_steps
from afzal.train.method import Method, raw_parameter
from afzal.train.optim import make_optimizer, trainable
from afzal.train.precision import Dtype, Weights
from afzal.train.rollouts import Rollouts
from afzal.train.shard import Sharded
from afzal.train.tensor import refuse_uncut
from afzal.train.update import Accumulate, accumulate

_EVALUATIONS_PER_RUN = 10
_PROBED = 2  # trees with images or sounds to try sharing on
_RSLORA_ALPHA = 8.0  # PEFT's default; constant, since the scale alpha / sqrt(rank) suits every rank


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a run holds in memory.

    ``evaluate_policy`` is for a policy that samples its own answers; others are evaluated on the held-out trees.
    ``start`` is the policy before training, as a reference that can be run: the KL is measured to it, and it replaces
    a moving reference on held-out data; None if neither is needed. ``save_dtype`` is the number format of the saved
    weights.
    """

    model: Any
    weights: Weights | Sharded
    prepared: Prepared
    method: Method
    feed: Feed | Rollouts | Episodes
    optimizer: torch.optim.Optimizer
    settings: Settings
    reference: Reference | None = None
    start: Any = None
    reference_moves: bool = False
    notes: tuple[str, ...] = ()
    starts_elsewhere: str = ""  # description of a new adapter that is not the identity
    gradient: Accumulate = accumulate
    evaluate_policy: Callable[[], dict[str, float]] | None = None
    architecture: str = ""
    save_dtype: torch.dtype = torch.float32
    number_format: Dtype = "fp32"

    def unsharded_model(self, folder: Path) -> Any:
        """The unsharded model, for saving; None on a rank that does not save.

        Args:
            folder: on a disk with room for it, where its shards are gathered.
        """
        if not isinstance(self.weights, Sharded):
            return self.model
        # adapters are merged in float32
        merged = is_adapted(self.model) and is_reward_model(self.model)
        return self.weights.unsharded_model(
            folder, partial(cast_as_saved, dtype=torch.float32 if merged else self.save_dtype)
        )


def set_up(
    config: TrainConfig, prepared: Prepared, starting: parallel.StartingModel, device: torch.device, run: runs.Run
) -> Setup:
    """Adapters, reference, objectives, constraints and optimiser around the model, on ``device``.

    Raises:
        AfzalError: the model cannot do what the settings ask for.
    """
    _settle_towers(config, starting.model)
    model = _adapted(config, starting)
    if prepared.facts.get("media") and virtual_kind(model):
        raise AfzalError("prompts with images or sounds cannot follow virtual tokens", remedy="adapter=lora")
    if ranks.tensor() > 1:
        refuse_uncut(model, ranks.tensor())
    architecture = type(model).__name__  # before sharding, which changes its class
    number_format, why_bf16 = _number_format(config, model, device, run)
    # under quantize the adapter is in float32 already, and the base model in the compute dtype
    dtype = "fp32" if _is_quantized(config) else number_format
    parallel.refuse_rounded(model, dtype)
    pieces = starting.unread and parallel.read_in_pieces(
        model, starting.unread, dtype, device, warm_start.describe_start(config)
    )
    longest = longest_row(config, prepared)
    probed = [t for t in prepared.train if t.media and t.branches][:_PROBED]
    sharing, why_unshared = _sharing(config, model, longest, probed, pieces)
    if pieces is not None:
        parallel.release(model)
    elif why_bf16 and (gap := survives_rounding(model, sharing)):
        number_format = dtype = "fp32"
        why_bf16 = f"computes in fp32, since in bf16 {gap}"
    layout = parallel.layout(model, sharing, config.pass_tokens, device)
    critic = online.critic_of(config, prepared, pieces or model, layout, partial(_fresh_adapter, config))
    if critic is not None and critic.trunk is not None and critic.weights is None:
        critic = replace(critic, weights=_weights(config, critic.trunk, dtype))
    weights = pieces or _weights(config, model, dtype, offload=memory.offloads(config, "optimizer", device))
    if config.compile:
        compile_layers(model)
    notes = list(kernel_notes(model)) if sharing == "shared" else []
    needed = prepared.recipe.needs_reference or config.rollouts is not None
    if not needed and config.offload == "reference":
        raise AfzalError("offload=reference has no effect: the objective has no reference", remedy=LEAVE)
    referenced = config.referenced if needed else None
    reference = None if referenced is None else reference_of(referenced, weights, prepared, layout, run)
    notes += [why_bf16] if why_bf16 else []
    notes += [f"prompts are not shared: {why_unshared}"] if why_unshared else []
    notes += [note] if (note := router_note(model.config)) else []
    notes += [ablation_note(model, probed, layout)] if probed else []
    notes += [f"every rank has loaded the full model: {starting.why_unsharded}"] if starting.why_unsharded else []
    start = start_of(config, weights, prepared, reference, device)
    notes += memory.fit(config, prepared, memory.LoadedModels(weights, reference, critic, start), layout)
    if is_adapted(model) and not config.has_new_adapter and config.lr == type(config).model_fields["lr"].default:
        notes.append(f"lr {config.lr:g} is the default for all weights; adapters take a larger one")
    weights, critic = parallel.sharded(weights, critic, device, *{id(r): r for r in (reference, start)}.values())
    method, feed, gradient, evaluate_policy = _learning(config, prepared, model, weights, layout, reference, critic)
    optimizer = _optimizer(config, weights, method)
    settings = _settings(config, feed, bool(prepared.evaluation))
    return Setup(
        model,
        weights,
        prepared,
        method,
        feed,
        optimizer,
        settings,
        reference,
        start,
        reference_moves=bool(sync_steps(config)),
        notes=tuple(notes),
        starts_elsewhere=warm_start.not_the_identity(config, model),
        gradient=gradient,
        evaluate_policy=evaluate_policy,
        architecture=architecture,
        number_format=number_format,
    )


def _learning(
    config: TrainConfig,
    prepared: Prepared,
    model: Any,
    weights: Weights | Sharded,
    layout: Layout,
    reference: Reference | None,
    critic: Critic | None,
) -> tuple[Method, Feed | Rollouts | Episodes, Accumulate, Callable[[], dict[str, float]] | None]:
    """The method, its feed, the function that computes an update's gradient, and :attr:`Setup.evaluate_policy`."""
    if config.rollouts is not None:
        assert reference is not None
        method = Method(prepared.recipe.terms, critic=critic, temperature=config.rollouts.temperature)
        feed, evaluate_policy = online.rollouts(config.rollouts, prepared, model, reference, critic, layout)
        return method, feed, accumulate, evaluate_policy
    method = _method(config, model, prepared, layout, reference)
    if config.adaptation is not None:
        return method, *meta_learning.tasks(config, config.adaptation, prepared, model, method, weights, layout)
    weigh = reward.bootstrap(config)
    feed = Feed(prepared.train, prepared.train_mismatched, config.batch_size, config.seed, layout, weigh)
    return method, feed, warm_start.gradient_near_start(config, weights, len(prepared.train)), None


def _settle_towers(config: TrainConfig, model: Any) -> None:
    """Freeze the encoders of images and sounds, unless they should train."""
    trains = config.policy is not None and config.policy.train_towers
    if trains and not towers(model):
        raise AfzalError("train_towers has no effect: the model reads text only", remedy="leave it out")
    if not trains:
        freeze_towers(model)


def _adapted(config: TrainConfig, starting: parallel.StartingModel) -> Any:
    """The model with the requested adapter, if any, fresh or from a folder."""
    kind, model = config.adapter_kind, starting.model
    if kind is not None and is_adapted(model):
        setting = "adapter" if config.adapter else "lora_rank"
        raise AfzalError(
            f"{config.model} is an adapter already",
            remedy=f"leave {setting} out to train it on, or merge it into its base model first: afzal export",
        )
    folder = warm_start.folder_of(config)
    fresh = partial(_fresh_adapter, config, unread=starting.unread is not None)
    model = fresh(model) if folder is None else warm_start.with_adapter_from(model, folder)
    if folder is not None and starting.unread is None:
        refuse_silent(model, warm_start.describe_start(config))
    if config.adaptation is not None and not is_adapted(model):
        raise AfzalError(f"{config.method} learns an adapter, and there is none", remedy="adapter=lora")
    if _is_quantized(config):
        if not is_adapted(model):
            raise AfzalError("quantize needs an adapter: 4-bit weights do not train", remedy="adapter=lora")
        if not getattr(model, "is_loaded_in_4bit", False):
            raise AfzalError("quantize has no effect on a model that is in memory", remedy="leave it out")
    return model


def _weights(config: TrainConfig, model: Any, dtype: Dtype, *, offload: bool = False) -> Weights:
    """The optimiser's weights of an unsharded model, which computes in ``dtype`` from now on."""
    weights = Weights(model, dtype, offload=offload)
    if config.adapter_kind == "dora":
        start_norms(model)
        weights.adopt()
    return weights


def _fresh_adapter(config: TrainConfig, model: Any, *, unread: bool = False) -> Any:
    kind = config.adapter_kind
    if kind is None:
        return model
    settings = _adapter_settings(config, kind)
    spared = () if config.policy is not None and config.policy.train_towers else tuple(towers(model))
    return add_adapter(model, replace(settings, excluded=spared), unread=unread)


def _adapter_settings(config: TrainConfig, kind: Any) -> Adapter:
    if kind in LOW_RANK:
        rank = config.lora_rank or Adapter.rank
        default = _RSLORA_ALPHA if kind == "rslora" else 2.0 * rank
        alpha = config.lora_alpha if config.lora_alpha is not None else default
        return Adapter(kind, rank, alpha, config.lora_targets or "all-linear")
    tokens = config.policy.virtual_tokens if config.policy is not None else None
    return Adapter(kind) if tokens is None else Adapter(kind, virtual_tokens=tokens)


def _is_quantized(config: TrainConfig) -> bool:
    return config.policy is not None and config.policy.quantize is not None


def _method(config: TrainConfig, model: Any, prepared: Prepared, layout: Layout, reference: Reference | None) -> Method:
    terms = prepared.recipe.terms
    names = (config.chosen.learn or ()) if config.chosen is not None else ()
    learned = {
        f"{term.name}.{name}": raw_parameter(term, name)
        for term in terms
        for name in names
        if name in term.objective.learnable
    }
    constrained = config.constrained
    constraints = () if constrained is None else constraint_of(constrained, prepared, layout)
    return Method(terms, reference, learned, constraints)


def _optimizer(config: TrainConfig, weights: Weights | Sharded, method: Method) -> torch.optim.Optimizer:
    """The optimiser of the model's weights, and, at separate rates, of learned scalars and the value model's
    weights."""
    groups: list[dict[str, Any]] = [{"params": members} for members in group_by_mesh(weights.masters.values())]
    if method.learned:
        assert config.chosen is not None
        scale = config.chosen.learned_lr / config.lr if config.lr else 0.0
        groups.append({"params": list(method.learned.values()), "lr_scale": scale, "weight_decay": 0.0})
    if method.critic is not None:
        assert config.critic is not None
        value_lr = config.critic.value_lr
        scale = value_lr / config.lr if value_lr is not None and config.lr else 2.0
        groups += [
            {"params": members, "lr_scale": scale} for members in group_by_mesh(method.critic.parameters.values())
        ]
    return make_optimizer(
        groups,
        config.optimizer,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )


def steps_of(config: TrainConfig, feed: Updates) -> int:
    """Number of updates of the run: from epochs or iterations, or ``max_steps`` if that is less."""
    steps = max(1, round(config.epochs * feed.updates_per_epoch))
    rollouts = config.rollouts
    if rollouts is not None and rollouts.iterations is not None:
        steps = rollouts.iterations * rollouts.ppo_epochs * rollouts.minibatches
    return min(steps, config.max_steps) if config.max_steps else steps


def _settings(config: TrainConfig, feed: Updates, evaluates: bool) -> Settings:
    steps = steps_of(config, feed)
    return Settings(
        steps=steps,
        lr=config.lr,
        warmup_steps=warmup_steps(config.warmup, steps),
        schedule=config.lr_schedule,
        max_grad_norm=config.max_grad_norm,
        eval_every_steps=(config.eval_every_steps or max(1, -(-steps // _EVALUATIONS_PER_RUN))) if evaluates else 0,
        save_every_steps=config.save_every_steps or 0,
        log_every_steps=config.log_every_steps,
        patience=config.early_stop_patience or 0,
    )


def _sharing(
    config: TrainConfig, model: Any, longest: int, probed: Sequence[Tree], pieces: Sharded | None
) -> tuple[Sharing, str]:
    """The layout of prompts, and why they are not shared if the settings do not say so."""
    if ranks.world() > 1 and (reason := rotary.why_not_share(model, longest)):
        raise AfzalError(
            f"this model cannot be trained over {ranks.world()} ranks",
            why=f"{reason}: ranks would need unequal numbers of passes",
            remedy=f"max_tokens={rotary.constant_up_to(model.config)} or less, or run it without torchrun",
        )
    if config.sharing == "unshared":
        return "unshared", ""
    sharing, reason = choose_sharing(model, longest, probed, dtype=parallel.trial_format(pieces))
    if sharing == "unshared" and config.sharing == "shared":
        raise AfzalError("sharing=shared is not possible with this model", why=reason, remedy="sharing=auto")
    return sharing, reason


def dtype_of(config: ModelSettings, device: torch.device, width: int = 0) -> Dtype:
    """The number format, with ``auto`` resolved: bf16 on a GPU that supports it, and on a CPU that computes a model of
    ``width`` features faster so; else fp32."""
    if config.dtype != "auto":
        return config.dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    faster = device.type == "cpu" and width >= NARROWEST and ranks.agreed(bf16_speedup()) >= WORTHWHILE
    return "bf16" if faster else "fp32"


def _number_format(config: TrainConfig, model: Any, device: torch.device, run: runs.Run) -> tuple[Dtype, str]:
    """The number format, and a note if a trial on this CPU has chosen bf16. A resumed run on a CPU keeps its own."""
    if config.dtype != "auto" or device.type != "cpu" or _is_quantized(config):
        return dtype_of(config, device), ""
    earlier = run.facts().get("runtime", {}).get("dtype")
    if earlier in ("fp32", "bf16"):
        return earlier, ""
    if ranks.world() > 1 and any(map(is_factor, trainable(model))):  # these would be rounded when gathered
        return "fp32", ""
    width = width_of(model.config)
    if dtype_of(config, device, width) == "fp32":
        return "fp32", ""
    speedup = f"{bf16_speedup():.1f} times as fast as those of fp32 on this processor"
    return "bf16", f"computes in bf16, whose products are {speedup} (dtype=fp32 turns this off)"


def reference_weights(setup: Setup) -> dict[str, torch.Tensor]:
    """The weights of a moving reference, by name; empty for a fixed one."""
    reference = setup.reference
    if not setup.reference_moves or not isinstance(reference, Frozen):
        return {}
    return {name: p.detach() for name, p in reference.model.named_parameters()}
