"""Direct preference optimisation in one flat file: only PyTorch and transformers, nothing from Afzal.

    python examples/flat_dpo.py MODEL PAIRS.jsonl OUT

MODEL is a folder or a hub id of a causal language model. PAIRS.jsonl has one row per pair: {"prompt": "...",
"chosen": "...", "rejected": "..."}. The texts are concatenated as they are, and rows are used in file order.
OUT receives the trained model. ``with_afzal.py`` runs the same training with Afzal. A test checks that both give the
same numbers on rows in the same order (Afzal shuffles them, this file does not), with a tokenizer that gives the same
tokens for two parts of a text as for the full text. Those of GPT-2, Qwen and Llama 3 do. SentencePiece tokenizers
(Llama 2) put a space before each part, which Afzal avoids. Everything that a careful run adds (packing, evaluation,
checkpoints, a report) is left out on purpose.
"""

import copy
import json
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA, LR, BATCH_SIZE = 0.1, 3e-4, 8


def encode(tokenizer, prompt, response):
    """Token ids of prompt and response, and the number of prompt ids.

    Prompt and response are encoded separately, so that the prompt's ids are the same for both responses. The response
    ends with EOS, which is trained too: a model that never sees it never learns to stop.
    """
    head = tokenizer(prompt)["input_ids"]
    if head and head[-1] == tokenizer.eos_token_id:  # some tokenizers end every text with EOS
        head = head[:-1]
    body = tokenizer(response, add_special_tokens=False)["input_ids"]
    return torch.tensor([*head, *body, tokenizer.eos_token_id]), len(head)


def response_logp(model, ids, n_prompt):
    """log pi(response | prompt), summed over the response's tokens, in nats."""
    logits = model(input_ids=ids[None]).logits[0]
    # The logits at position t predict the token at t + 1: the response's first token is predicted by the prompt's last.
    logps = logits[:-1].float().log_softmax(-1)
    token_logps = logps.gather(-1, ids[1:, None])[:, 0]
    return token_logps[n_prompt - 1 :].sum()


def dpo_loss(pi_logps, ref_logps, yw_idxs, yl_idxs, beta):
    """One loss per pair and one reward per response (Rafailov et al. 2023, Appendix B)."""
    pi_logratios = pi_logps[yw_idxs] - pi_logps[yl_idxs]
    ref_logratios = ref_logps[yw_idxs] - ref_logps[yl_idxs]
    losses = -F.logsigmoid(beta * (pi_logratios - ref_logratios))
    return losses, beta * (pi_logps - ref_logps).detach()


def main(model_path, pairs_path, out):
    """Train on every pair once and return the loss before each update, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    # eval() switches off dropout, with which policy and reference would disagree at the first step.
    policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)

    with open(pairs_path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    history = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        # B = 2T responses: chosen, then rejected, of each of the T pairs.
        responses = [encode(tokenizer, row["prompt"], row[which]) for row in batch for which in ("chosen", "rejected")]
        yw_idxs = torch.arange(0, len(responses), 2)
        yl_idxs = yw_idxs + 1

        pi_logps = torch.stack([response_logp(policy, *response) for response in responses])
        with torch.no_grad():
            ref_logps = torch.stack([response_logp(reference, *response) for response in responses])
        losses, rewards = dpo_loss(pi_logps, ref_logps, yw_idxs, yl_idxs, BETA)
        loss = losses.mean()

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

        accuracy = (rewards[yw_idxs] > rewards[yl_idxs]).float().mean()
        history.append(loss.item())
        print(f"update {len(history)}: loss {loss.item():.4f}  accuracy {accuracy.item():.3f}")

    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
