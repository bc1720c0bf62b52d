"""No dropout: recomputed layers run in training mode and give the same numbers as in evaluation mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from helpers_models import OTHER_FAMILIES, SHARING_FAMILIES

from afzal.model.load import drops_by_configuration, switch_off_dropout

FAMILIES = SHARING_FAMILIES | OTHER_FAMILIES


def dropping(family: str, rate: float) -> Any:
    """A model with all dropout rates of its configuration set to this one."""
    name, fields = FAMILIES[family]
    kind = getattr(transformers, name)
    known = kind(**fields).to_dict().items()
    rates = {key: rate for key, value in known if "drop" in key and isinstance(value, int | float)}
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**(fields | rates)))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_changes_nothing(family: str):
    model = dropping(family, 0.5)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        before = model.train()(ids).logits
        switch_off_dropout(model)
        after = model(ids).logits
    assert torch.equal(before, expected) == (family == "mamba"), "the control: of all others something is dropped"
    # modules that read their rates from the configuration are recognised and not recomputed
    assert torch.equal(after, expected) == (family != "falcon")
    assert drops_by_configuration(model) == (family == "falcon")
    assert not drops_by_configuration(dropping(family, 0.0))
