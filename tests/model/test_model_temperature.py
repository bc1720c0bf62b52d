"""Log-probs at a temperature: the plain head and one that something hooks into agree, and both divide the logits."""

import pytest
import torch
from helpers_models import make

from afzal.model.head import is_plain
from afzal.model.logprobs import head_logps, output_head


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_a_hooked_head_has_the_temperature_of_a_plain_one(family):
    model = make(family)
    torch.manual_seed(0)
    hidden, target = torch.randn(5, model.config.hidden_size), torch.tensor([3, 1, 4, 1, 5])
    plain = {t: head_logps(model, hidden, target, t) for t in (1.0, 2.0)}
    handle = output_head(model).register_forward_hook(lambda module, inputs, output: None)
    assert not is_plain(output_head(model))
    for t, expected in plain.items():
        assert head_logps(model, hidden, target, t).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    handle.remove()
    assert (plain[1.0] - plain[2.0]).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "changed"), [("gemma2", {"final_logit_softcapping": 2.0}), ("cohere", {})])
def test_the_temperature_divides_what_scale_and_cap_leave(family, changed):
    """log softmax(z / T), z the logits as the family's own forward pass has them: scaled, then capped."""
    model = make(family, **changed)
    torch.manual_seed(0)
    hidden, target = 3 * torch.randn(4, model.config.hidden_size), torch.tensor([3, 1, 4, 1])
    with torch.no_grad():
        logits = output_head(model)(hidden) * getattr(model.config, "logit_scale", 1.0)
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        for temperature in (0.5, 1.0, 2.0):
            expected = (logits / temperature).log_softmax(-1).gather(1, target[:, None])[:, 0]
            logps = head_logps(model, hidden, target, temperature)
            assert logps.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
