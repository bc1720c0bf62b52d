"""Every kernel on a GPU against plain attention, plain torch and the unshared path: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
from helpers_models import make, random_trees

from afzal.model import head, kernels
from afzal.model.head import linear_logps
from afzal.model.kernels import choose
from afzal.model.kernels import logits as fused
from afzal.model.load import compile_layers
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing, kernel_notes
from afzal.tokens.batch import collate

pytestmark = pytest.mark.gpu

WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "vocab_size": 1000}
LONG = 150  # tokens: rows of several blocks


@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (14, 2)], ids=["own-keys", "grouped", "grouped-odd"])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ragged_sequences_agree_with_plain_attention(dtype, width, window, heads, cuda):
    """Output and gradients. This is where the causal alignment of torch's varlen attention is checked."""
    job = choose.Job(cuda, dtype, *heads, width, width**-0.5, window)
    assert choose.trial("ragged", job) <= choose._TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("dtype", "window", "softcap", "heads"),
    [
        (torch.bfloat16, None, None, (8, 2)),
        (torch.bfloat16, 50, 5.0, (8, 2)),
        (torch.bfloat16, None, None, (14, 2)),
        (torch.float32, None, 5.0, (8, 8)),
    ],
)
def test_flex_attention_agrees_with_plain_attention(dtype, window, softcap, heads, cuda):
    job = choose.Job(cuda, dtype, *heads, 64, 0.125, window, softcap)
    assert choose.trial("flex", job) <= choose._TOLERANCE[dtype]


def test_the_expected_kernels_run_on_this_machine(cuda):
    """On this machine the 16-bit kernel is ragged, the one for soft-caps is flex, and nothing was skipped."""
    job = choose.Job(cuda, torch.bfloat16, 8, 2, 64, 0.125)
    assert kernels.kernel_for(job) == "ragged", kernels.notes()
    assert kernels.kernel_for(choose.replace(job, softcap=30.0)) == "flex", kernels.notes()


def run(model, batch):
    """Log-probs and gradients in float32 on the host."""
    model.zero_grad()
    logps = score(model, batch).token_logps
    (logps * torch.linspace(-1, 2, len(logps), device=logps.device)).sum().backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logps.detach().double().cpu(), torch.cat(grads).double().cpu()


def far(a, b) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma2", "gpt2", "gpt_oss"])
def test_in_float32_a_shared_row_equals_the_unshared_path(family, cuda):
    model = make(family).to(cuda)
    trees = random_trees(6, k=3)
    unshared = run(model, collate(trees, "unshared", cuda))
    assert choose_sharing(model)[0] == "shared"
    for actual, expected in zip(run(model, collate(trees, "shared", cuda)), unshared, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "kernel"),
    [
        *(("llama", k) for k in ("blocks", "ragged", "flex")),
        *(("mistral-sliding", k) for k in ("ragged", "flex")),
        ("gemma2", "flex"),
    ],
)
def test_in_bf16_every_kernel_is_as_near_to_float32_as_the_unshared_path(family, kernel, cuda):
    model = make(family, **WIDE, sliding_window=40).to(cuda)
    with torch.no_grad():
        for p in model.parameters():
            p.div_(3 if p.dim() > 1 else 1)  # weights as large as a trained model's, for realistic rounding
    trees = random_trees(8, k=3, longest=LONG // 4)
    exact = run(model, collate(trees, "unshared", cuda))
    choose_sharing(model)
    shared, model = collate(trees, "shared", cuda), model.to(torch.bfloat16)
    with kernels.forced(kernel):
        shared_bf16 = run(model, shared)
    model.set_attn_implementation("eager" if family == "gemma2" else "sdpa")
    unshared = run(model, collate(trees, "unshared", cuda))
    for ours, theirs, true in zip(shared_bf16, unshared, exact, strict=True):
        assert far(ours, true) <= 1.5 * far(theirs, true) + 1e-3


def test_a_run_in_bf16_reports_no_failed_kernel(cuda):
    model = make("llama", **WIDE).to(cuda)
    assert choose_sharing(model)[0] == "shared"
    assert kernel_notes(model.to(torch.bfloat16)) == ()


@pytest.mark.parametrize("vocabulary", [50257, 128256])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 30.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fused_head_agrees_with_plain_torch(dtype, scale, cap, vocabulary, cuda, monkeypatch):
    """Kept logits, logits recomputed in tiles, and plain torch: the same values and gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device=cuda).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(vocabulary, 64, device=cuda)).to(dtype).requires_grad_()
    target = torch.randint(0, vocabulary, (300,), device=cuda)
    upstream = torch.linspace(-1, 2, 300, device=cuda)

    def values():
        logps = linear_logps(hidden, weight, None, target, scale=scale, cap=cap)
        return logps.detach(), *torch.autograd.grad((logps * upstream).sum(), [hidden, weight])

    assert fused.fused(hidden), kernels.notes()
    kept = values()
    monkeypatch.setattr(head, "KEEP_BYTES_GPU", 0)
    monkeypatch.setattr(head, "TILE_ELEMENTS_GPU", 64 * vocabulary)
    tiled = values()
    monkeypatch.setattr(fused, "fused", lambda logits: False)
    plain = values()
    for a, b, c in zip(kept, tiled, plain, strict=True):
        assert far(a.double(), c.double()) <= (1e-2 if dtype == torch.bfloat16 else 1e-5)
        assert far(b.double(), c.double()) <= (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_compiled_blocks_give_the_same_numbers(cuda):
    model = make("llama", **WIDE).to(cuda)
    choose_sharing(model)
    batches = [collate(random_trees(n, seed=n), "shared", cuda) for n in (5, 6, 7)]
    plain = [run(model, b) for b in batches]
    compile_layers(model)
    for batch, expected in zip(batches, plain, strict=True):
        for actual, wanted in zip(run(model, batch), expected, strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
