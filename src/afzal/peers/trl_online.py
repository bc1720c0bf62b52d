"""Translate TRL's GRPO and RLOO: sampling, rewards and updates."""

from __future__ import annotations

from . import common
from .translation import Translation, texts


def rollouts(t: Translation, method: str, processes: int) -> None:
    """Translate the rollout settings of a ``trl grpo`` or ``trl rloo`` configuration."""
    t.settings["method"] = method
    n = t.integer("num_generations", 8 if method == "grpo" else 2)
    if n < 1:
        raise t.wrong("num_generations", "a whole number of at least 1")
    t.put("n", n, "num_generations")
    per_device, steps = t.integer("per_device_train_batch_size", 8), t.integer("gradient_accumulation_steps", 1)
    steps_per_generation = t.integer("steps_per_generation", steps)
    n_answers = t.integer("generation_batch_size", per_device * steps_per_generation * processes)
    keys = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "generation_batch_size",
    )
    why = f"prompts per iteration: TRL counts answers, {n_answers} here, {n} of them per prompt"
    prompts = max(1, n_answers // n)
    t.put("batch_size", prompts, *keys, changed=True, why=why)
    minibatches = min(prompts, max(1, n_answers // max(1, per_device * steps * processes)))
    epochs = t.integer("num_iterations", 1)
    t.put("ppo_epochs", epochs, "num_iterations")
    if minibatches > 1:
        t.put("minibatches", minibatches, "steps_per_generation")
    t.put("sample_tokens", t.integer("max_completion_length", 512), "max_completion_length")
    t.put("temperature", t.number("temperature", 1.0), "temperature")
    t.put("kl_coef", t.number("beta", 0.0 if method == "grpo" else 0.05), "beta")
    if epochs * minibatches > 1:
        t.put("clip", t.number("epsilon", 0.2), "epsilon")
        if t.has("epsilon_high"):
            t.put("clip_high", t.number("epsilon_high"), "epsilon_high")
    t.idle_all({"an iteration makes one update, so nothing is clipped": "epsilon epsilon_high"})
    _rewards(t)
    if method == "grpo":
        scale = t.text("scale_rewards", "group").lower()
        t.put("group_std", scale not in ("none", "false"), "scale_rewards", changed=scale == "batch")
        if texts(t.value("loss_type", "dapo")) != ["grpo"]:
            t.lose("loss_type", "a mean over the tokens of an answer, then over answers, which is TRL's loss_type grpo")
    t.idle("loss_type", "as here")
    t.put("max_tokens", common.NO_LIMIT, "max_length", why="prompts are not cut")
    without_counterpart = (
        "top_p top_k min_p repetition_penalty generation_kwargs delta importance_sampling_level top_entropy_quantile "
    )
    t.lose_all(
        {
            "answers are sampled from the full distribution and learned from as in the paper": without_counterpart
            + "mask_truncated_completions entropy_coef use_adaptive_entropy off_policy_mask_threshold "
            "reward_clip_range normalize_advantages multi_objective_aggregation",
        }
    )
    t.idle_all({"off": "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target use_bias_correction_kl"})


def _rewards(t: Translation) -> None:
    model, functions = t.value("reward_model_name_or_path"), texts(t.value("reward_funcs"))
    if model is not None:
        t.put("reward", str(model), "reward_model_name_or_path")
    elif functions:
        module, _, name = functions[0].rpartition(".")
        t.put("reward", f"{module}:{name}" if module else name, "reward_funcs", changed=True, why=_FUNCTION)
    if len(functions) + (model is not None) > 1:
        t.lose("reward_funcs", "only one reward is supported: write a function that adds them up")
    t.lose("reward_weights", "only one reward is supported: write a function that adds them up", ([1.0],))


_FUNCTION = "a function of a prompt and an answer that returns a number (docs/rewards.md); TRL's takes lists"
