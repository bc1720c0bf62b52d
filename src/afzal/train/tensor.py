"""Tensor parallelism: matrices cut by columns or rows over the ranks that compute the same items together.

The model's own plan in `transformers` says how each matrix is cut; PyTorch's styles carry it out. A matrix cut by
columns gives every rank some of the features (complete attention heads). The next one is cut by rows and sums over
them. Modules that the plan does not name, such as most norms, are replicated on every rank of the group.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import nn

from afzal.errors import AfzalError
from afzal.model.adapters import is_adapted
from afzal.model.load import vocabulary_of
from afzal.model.media import towers
from afzal.train.tensor_adapters import Cut, cut_factors, cut_prefix

_TABLE = "embedding_rowwise"
_OVER_HEADS = "replicated_with_grad_allreduce"  # a norm over the features of each head; a rank has some of the heads

_CUTS: dict[str, Cut] = {
    "colwise": "columns",
    "colwise_gather_output": "gathered columns",
    "colwise_rep": "gathered columns",
    "rowwise": "rows",
    "rowwise_rep": "rows",
    "rowwise_split_input": "split rows",
}
_COLUMNS = {style for style, cut in _CUTS.items() if cut.endswith("columns")}


def refuse_uncut(model: Any, members: int) -> None:
    """Make sure that the model can be cut over this many ranks.

    Raises:
        AfzalError: its family has no plan, or an unsupported one; or its heads or features do not divide.
    """
    name = type(_base(model)).__name__
    plan = _plan(model, members)
    if not plan:
        raise _refusal(members, f"{name} has no plan for it in transformers", "leave it out")
    if towers(model):
        raise _refusal(members, f"{name} reads images or sounds, and its plan is for text only", "leave it out")
    layers = {path: _inner(model, path) for path, style in plan.items() if style in _CUTS}
    unsupported = [path for path, layer in layers.items() if type(layer) is not nn.Linear]
    unsupported += [path for path, style in plan.items() if style not in (*_CUTS, _OVER_HEADS, _TABLE)]
    for path in unsupported:
        style = plan[path]
        raise _refusal(members, f"the plan of {name} cuts {path} as {style}, which is not supported", "leave it out")
    text = _base(model).config.get_text_config()
    sizes = {key: getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads")}
    for path, layer in layers.items():
        sizes[f"the features of {path},"] = layer.out_features if plan[path] in _COLUMNS else layer.in_features
    for what, size in sizes.items():
        if isinstance(size, int) and size % members:
            raise _refusal(members, f"{what} {size} does not divide by it", "a divisor of it")


def into_slices(model: Any, mesh: Any) -> None:
    """Cut the model by its plan over the ranks of a one-axis mesh; weights may be on the meta device.

    Raises:
        AfzalError: as :func:`refuse_uncut`; also for a reference or value model, which may be of another family.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    refuse_uncut(model, mesh.size())
    makers = {
        "colwise": ColwiseParallel,
        "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
        "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
        "rowwise": RowwiseParallel,
        "rowwise_rep": RowwiseParallel,
        "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
        _TABLE: lambda: RowwiseParallel(input_layouts=Replicate()),
        # each rank has different heads, like different tokens of a sequence: gradients of the norm are summed
        _OVER_HEADS: lambda: SequenceParallel(sequence_dim=2, use_local_output=True),
    }
    # about logits gathered on every rank, which nothing here writes to
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    base = _base(model)
    tied, trains = _is_tied(base), {name: p.requires_grad for name, p in base.named_parameters(remove_duplicate=False)}
    plan = _plan(model, mesh.size())
    for path, style in plan.items():
        for part, of_part in _parts(base.get_submodule(path), path, style):
            parallelize_module(base, mesh, {part: makers[of_part]()}, src_data_rank=None)
        if style in _CUTS:
            cut_factors(base.get_submodule(path), _CUTS[style], mesh)
    # heads are cut if attention's inputs are; phi3 gathers them, and every rank computes all heads
    if any(style == "colwise" and re.search(r"\battention\.|attn\.", path) for path, style in plan.items()):
        cut_prefix(model, mesh)
    if (head := base.get_output_embeddings()) is not None:
        head.register_forward_hook(_waited)
    if tied:
        base.get_output_embeddings().weight = base.get_input_embeddings().weight
    for name, p in base.named_parameters():  # the style of a norm makes a frozen weight trainable
        p.requires_grad_(trains[name])


def _waited(_head: nn.Module, _inputs: Any, logits: Any) -> None:
    """Wait for gathered logits: a pass for hidden states alone does not read them, and an unawaited exchange keeps its
    memory to the end of the process."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    if isinstance(logits, AsyncCollectiveTensor):
        logits.trigger_wait()


def _plan(model: Any, members: int) -> dict[str, str]:
    """The style of every module that a model's plan names.

    The vocabulary is not cut if it does not divide, or if the plan would cut only one of two tied uses.
    """
    base = _base(model)
    rules = getattr(base, "_tp_plan", None) or {}
    all_styles = {path: rules.get(re.sub(r"\.\d+(?=\.|$)", ".*", path)) for path, _ in base.named_modules()}
    styles = {path: style for path, style in all_styles.items() if style is not None}
    ends = [path for path, module in base.named_modules() if any(module is end for end in _vocabulary(base))]
    uncut = vocabulary_of(base) % members or (_is_tied(base) and not set(ends) <= styles.keys())
    return {path: style for path, style in styles.items() if not (uncut and path in ends)}


def _vocabulary(base: Any) -> list[Any]:
    """The modules whose weights have one row per token."""
    return [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]


def _is_tied(base: Any) -> bool:
    return len({id(end.weight) for end in _vocabulary(base)}) < len(_vocabulary(base))


def _parts(module: nn.Module, path: str, style: str) -> list[tuple[str, str]]:
    """A layer and its style; with a low-rank adapter, the layer and the factor on the cut side, with their styles.

    The other factor is replicated on every rank.
    """
    if not hasattr(module, "base_layer"):
        return [(path, style)]
    factor = "lora_B" if style in _COLUMNS else "lora_A"
    names: Any = getattr(module, factor, ())
    return [(f"{path}.base_layer", style), *((f"{path}.{factor}.{name}", style) for name in names)]


def _inner(model: Any, path: str) -> Any:
    module = _base(model).get_submodule(path)
    return getattr(module, "base_layer", module)


def _base(model: Any) -> Any:
    return model.get_base_model() if is_adapted(model) else model


def _refusal(members: int, why: str, remedy: str) -> AfzalError:
    return AfzalError(f"tensor_parallel={members} is not possible with this model", why=why, remedy=remedy)
