"""A hand-written PPO loop with PyTorch and `transformers`: padded rows, and logits of every position.

An iteration: ``generate`` with its cache on left-padded prompts; rewards of texts minus a KL penalty per token;
generalised advantages; four passes of clipped updates of policy and value model. Shapes: N answers of up to L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.methods_step.given import padded
from benchmarks.methods_step.work import KL, LR, PPO, Work, even, examples, given_answers, items_of

EOS = 1


class Value(nn.Module):
    """Value model: a copy of the policy's trunk with a float32 head, initialised to zero."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(policy.model)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: dict[str, Tensor], length: int) -> Tensor:
        """Values ``[N, L]`` just before each of the last ``length`` tokens."""
        states = self.trunk(**inputs, use_cache=False).last_hidden_state[:, -length - 1 : -1]
        with torch.autocast("cpu", enabled=False):
            return self.head(states.float())[..., 0]


def ppo(work: Work, ended: Callable[[list[tuple[float, float]]], None]) -> None:
    """Run PPO; after each iteration, ``ended`` gets the policy and value losses of its passes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    in_bf16 = work.dtype == "bf16"
    load = AutoModelForCausalLM.from_pretrained
    tokenizer = AutoTokenizer.from_pretrained(f"{work.folder}/policy", padding_side="left")
    policy = load(f"{work.folder}/policy", dtype=torch.float32)
    reference = load(f"{work.folder}/reference", dtype=torch.bfloat16 if in_bf16 else torch.float32)
    value = Value(policy)
    weights = [{"params": policy.parameters(), "lr": LR}, {"params": value.parameters(), "lr": PPO["value_lr"]}]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0, fused=True)
    everything = [*policy.parameters(), *value.parameters()]
    low = torch.autocast("cpu", torch.bfloat16, enabled=in_bf16)
    known = given_answers("ppo", work)

    rows, size = examples("ppo", work), items_of("ppo", work)
    for start in range(0, len(rows), size):
        prompts = [row["prompt"] for row in rows[start : start + size]]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.no_grad(), low:
            answers, real = write(policy, encoded, prompts, known, work.tokens)
        inputs = model_inputs(encoded, answers, real)
        with torch.no_grad(), low:
            old = logps(policy, inputs, answers)
            ref = logps(reference, inputs, answers)
            old_value = value(inputs, answers.shape[1])
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        scores = torch.tensor([even(*pair) for pair in zip(prompts, texts, strict=True)])
        advantage, target = advantages(scores, KL * (old - ref), old_value, real)
        losses = []
        for _ in range(PPO["ppo_epochs"]):
            with low:
                new, expected = logps(policy, inputs, answers), value(inputs, answers.shape[1])
            of_policy = policy_loss(new - old, advantage, real)
            of_value = value_loss(expected, old_value, target, real)
            (of_policy + PPO["vf_coef"] * of_value).backward()
            nn.utils.clip_grad_norm_(everything, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append((of_policy.item(), of_value.item()))
        ended(losses)


def write(policy: Any, encoded: Any, prompts: list[str], known: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """Answers ``[N, L]`` to padded prompts, including EOS, and the mask of real tokens; known answers are reused."""
    if known.keys() >= set(prompts):
        ids, mask = padded([known[prompt][0] for prompt in prompts])
        return ids, mask.bool()
    ids = policy.generate(**encoded, max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=EOS)
    ids = ids[:, encoded["input_ids"].shape[1] :]
    ends = ids == EOS
    return ids, ends.cumsum(1) - ends.long() == 0


def model_inputs(encoded: Any, answers: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Model inputs of prompts followed by answers."""
    mask = torch.cat([encoded["attention_mask"], real.long()], 1)
    ids = torch.cat([encoded["input_ids"], answers], 1)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def logps(model: Any, inputs: dict[str, Tensor], answers: Tensor) -> Tensor:
    """``[N, L]`` float32 log-probs of the answers' tokens."""
    logits = model(**inputs, use_cache=False).logits[:, -answers.shape[1] - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, answers[..., None])[..., 0]


def advantages(scores: Tensor, penalties: Tensor, values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Whitened advantages, and the returns that the value model learns, ``[N, L]`` each."""
    rewards = -penalties * real
    rewards[torch.arange(len(scores)), real.sum(1) - 1] += scores
    values = values * real
    gained, running = torch.zeros_like(values), torch.zeros(len(values))
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    for t in reversed(range(values.shape[1])):
        running = rewards[:, t] + after[:, t] - values[:, t] + PPO["lam"] * running
        gained[:, t] = running
    valid = gained[real]
    return (gained - valid.mean()) / (valid.var(correction=0) + 1e-8).sqrt(), gained + values


def policy_loss(log_ratio: Tensor, advantage: Tensor, real: Tensor) -> Tensor:
    ratio = log_ratio.exp()
    near = ratio.clamp(1 - PPO["clip"], 1 + PPO["clip"])
    return torch.maximum(-advantage * ratio, -advantage * near)[real].mean()


def value_loss(value: Tensor, old: Tensor, target: Tensor, real: Tensor) -> Tensor:
    near = old + (value - old).clamp(-PPO["value_clip"], PPO["value_clip"])
    return 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2)[real].mean()
