"""Translate TRL's DPO losses (``loss_type``, ``loss_weights`` and their arguments) into a method or objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.errors import AfzalError

from .translation import Translation, texts

# TRL's loss -> Afzal's objective, the arguments it takes, and how it differs
LOSSES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "sigmoid": ("dpo", ("beta",), ""),
    "hinge": ("hinge", ("beta",), ""),
    "ipo": ("ipo_mean", ("beta",), "TRL's ipo is a mean over tokens, which is ipo_mean here; ipo is the paper's sum"),
    "exo_pair": ("exo_pair", ("beta", "label_smoothing"), ""),
    "nca_pair": ("nca_pair", ("beta",), ""),
    "robust": ("robust", ("beta", "label_smoothing"), ""),
    "bco_pair": (
        "bco_pair",
        ("beta",),
        "rewards are shifted by their running midpoint, as in the paper; TRL's are not",
    ),
    "sppo_hard": ("sppo_hard", ("beta",), ""),
    "aot": ("aot", ("beta", "label_smoothing"), ""),
    "aot_pair": ("aot", ("beta", "label_smoothing"), ""),
    "aot_unpaired": ("aot_unpaired", ("beta", "label_smoothing"), ""),
    "apo_zero": ("apo_zero", ("beta",), ""),
    "apo_down": ("apo_down", ("beta",), ""),
    "discopop": ("discopop", ("beta", "tau"), ""),
    "sft": ("sft", (), ""),
    "sigmoid_norm": ("ln_dpo", ("beta",), ""),
}
_DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "jensen_shannon", "alpha_divergence": "alpha"}


def dpo_losses(
    t: Translation,
    losses: Sequence[str],
    weights: Sequence[float],
    values: Mapping[str, float],
    keys: Mapping[str, Sequence[str]],
    variant: tuple[str, Mapping[str, Any]] | None = None,
) -> None:
    """Set the method, or the objective with its arguments, for a list of losses.

    Args:
        values: ``beta``, ``label_smoothing`` and ``tau`` as given, or TRL's defaults.
        keys: the other trainer's keys for ``loss_type`` and for each of the values.
        variant: an objective to use instead of plain DPO, and its further arguments.

    Raises:
        AfzalError: an unknown loss.
    """
    if unknown := [loss for loss in losses if loss not in LOSSES]:
        remedy = "choose an objective from afzal objectives"
        raise AfzalError(f"loss_type {unknown[0]!r} has no counterpart", remedy=remedy)
    entries = [LOSSES[loss] for loss in losses]
    names = [name for name, _, _ in entries]
    accepted = {argument for _, arguments, _ in entries for argument in arguments}
    why = "; ".join(text for *_, text in entries if text)
    variant_args: Mapping[str, Any] = {}
    if variant is not None:
        names, variant_args = [variant[0]], variant[1]
    if names == ["dpo"]:
        t.put("method", "dpo", *keys["loss_type"])
        t.put("beta", values["beta"], *keys["beta"])
    else:
        t.put("method", "prefer", *keys["loss_type"])
        weighted = (
            [n if w == 1 else f"{w:g}*{n}" for n, w in zip(names, weights, strict=True)] if variant is None else names
        )
        t.put("objective", "+".join(weighted), *keys["loss_type"], why=why, changed=bool(why))
        args = {**{k: v for k, v in values.items() if k in accepted}, **variant_args}
        if args:
            t.put("objective_arg", args, *(key for k in args for key in keys.get(k, ())))
    if values["label_smoothing"] and "label_smoothing" not in accepted:
        for key in keys["label_smoothing"]:
            t.lose(key, "TRL 1.16 ignores it with this loss; cdpo and robust use it")


def trl_dpo(t: Translation) -> None:
    """Translate the losses of a ``trl dpo`` configuration."""
    losses = texts(t.value("loss_type", "sigmoid"))
    weights = [float(w) for w in t.value("loss_weights", [1.0] * len(losses))]
    values = {
        "beta": t.number("beta", 0.1),
        "label_smoothing": t.number("label_smoothing"),
        "tau": t.number("discopop_tau", 0.05),
    }
    variant = _variant(t) if losses == ["sigmoid"] else None
    keys = {"loss_type": ("loss_type", "loss_weights"), "label_smoothing": ("label_smoothing",), "beta": ("beta",)}
    dpo_losses(t, losses, weights, values, {**keys, "tau": ("discopop_tau",)}, variant)
    t.idle_all(
        {"off, or belongs to an unused loss": "label_smoothing discopop_tau loss_weights f_alpha_divergence_coef"}
    )
    t.idle("f_divergence_type", "reverse KL, as here") if _divergence(t) == "reverse_kl" else t.lose(
        "f_divergence_type", "other divergences are supported for the sigmoid loss only (f_dpo)"
    )
    t.lose("ld_alpha", "for the sigmoid loss only (ld_dpo)")
    t.lose("use_weighting", "for the sigmoid loss only (wpo)")
    t.lose("rpo_alpha", "TRL 1.16 has no such key; prefer with objective rpo, or dpo+A*sft, is that loss")


def _divergence(t: Translation) -> str:
    return t.text("f_divergence_type", "reverse_kl").lower().rpartition(".")[2]


def _variant(t: Translation) -> tuple[str, Mapping[str, Any]] | None:
    """The variant of DPO: another divergence, discounted tails (LD-DPO) or weighted pairs (WPO); None for plain DPO."""
    kind = _divergence(t)
    if kind in _DIVERGENCES:
        args: dict[str, Any] = {"divergence": _DIVERGENCES[kind]}
        t.put("objective", "f_dpo", "f_divergence_type")
        if kind == "alpha_divergence":
            args["alpha"] = t.number("f_alpha_divergence_coef", 0.5)
            t.put("objective_arg", args, "f_alpha_divergence_coef")
        return "f_dpo", args
    if t.has("ld_alpha"):
        t.put("objective", "ld_dpo", "ld_alpha")
        return "ld_dpo", {"alpha": t.number("ld_alpha")}
    if t.switch("use_weighting"):
        t.put(
            "objective", "wpo", "use_weighting", changed=True, why="a pair's weight is at most 1 here, as in the paper"
        )
        return "wpo", {}
    return None


def cpo(t: Translation) -> None:
    """Translate the losses of TRL's CPO: CPO, SimPO and AlphaPO, with their likelihood term.

    Raises:
        AfzalError: an unknown loss.
    """
    t.settings["method"] = "prefer"
    loss = (texts(t.value("loss_type", "sigmoid")) or ["sigmoid"])[0]
    beta, alpha = t.number("beta", 0.1), t.number("cpo_alpha", 1.0)
    gamma, bend = t.number("simpo_gamma", 0.5), t.number("alpha")
    if loss in ("simpo", "alphapo"):
        name = "alphapo" if bend else "simpo"
        args = {"beta": beta, "gamma": gamma, **({"alpha": bend} if bend else {})}
        t.put("objective", f"{name}+{alpha:g}*sft" if alpha else name, "loss_type", "cpo_alpha", "alpha")
        t.put("objective_arg", args, "beta", "simpo_gamma", "alpha")
    elif loss == "sigmoid":
        why = "TRL's likelihood term is a mean over tokens, which is sft here; objective cpo is the paper's sum"
        t.put("objective", f"cpo+{alpha:g}*sft" if alpha else "cpo", "loss_type", "cpo_alpha", changed=True, why=why)
        t.put("objective_arg", {"beta": beta, "cpo.alpha" if alpha else "alpha": 0.0}, "beta")
    else:
        raise AfzalError(f"loss_type {loss!r} of CPO has no counterpart", remedy="objective cpo, simpo or alphapo")
    t.lose("label_smoothing", "for cdpo and robust only")
    t.idle_all({"for simpo only": "simpo_gamma alpha"})


def orpo(t: Translation) -> None:
    """Translate the loss of TRL's ORPO."""
    t.settings["method"] = "prefer"
    t.settings["objective"] = "orpo"
    why = "lam here; TRL's likelihood term also learns the prompt, and is a mean over the tokens of a batch"
    t.put("objective_arg", {"lam": t.number("beta", 0.1)}, "beta", changed=True, why=why)
