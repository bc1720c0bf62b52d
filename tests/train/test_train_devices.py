"""An update on another device than the host's: no operation mixes the two, and nothing is read back.

Tensors of the device ``meta`` have shapes and no numbers, so that reading one, or adding one to a tensor of the host,
is an error here; on a GPU it would be a stall or an error.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import of_each_kind

from afzal import objectives
from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.load import frozen_copy
from afzal.model.probe import choose_sharing
from afzal.model.reference import AdapterOff, Frozen
from afzal.train.feed import Layout, Update
from afzal.train.method import Method
from afzal.train.update import accumulate

META = torch.device("meta")
# not those with running numbers or group counts: they read them once per update
ON_PAIRS = ["dpo", "cdpo", "robust", "hinge", "ipo", "rpo", "f_dpo", "exo_pair", "sppo", "cal_dpo", "apo_zero"]
ON_PAIRS += ["slic", "orpo", "simpo", "cpo", "rao_kupper", "davidson", "wpo", "tdpo1", "tdpo2", "dpop"]


def _trees(unit: str) -> list:
    if unit == "pair":
        return random_trees(6)
    return [replace(t, preferences=(), labels=(i % 2 == 0,)) for i, t in enumerate(random_trees(6, k=1))]


def _update(model, reference, name: str, sharing="shared") -> None:
    objective = objectives.get(name)
    layout = Layout(sharing, 64, META)
    batches = layout.batches(_trees(objective.unit))
    assert len(batches) > 1
    assert batches[0].ids.device == META
    method = Method.of(objective, None, reference if objective.needs_reference else None)
    result = accumulate(model, method, Update(batches, batches if objective.statistic else [], 6))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert result.loss.device == META
    assert any(p.grad is not None for p in trained)


@pytest.mark.parametrize("name", of_each_kind([*ON_PAIRS, "kto", "sft"]))
def test_an_update_reads_nothing_back(name):
    model = make("llama")
    assert choose_sharing(model)[0] == "shared"
    model.to(META)
    _update(model, Frozen(frozen_copy(model)), name)


@pytest.mark.parametrize("family", ["gemma2", "mistral-sliding", "gpt2", "qwen3", "gpt_neox"])
def test_no_family_mixes_devices(family):
    model = make(family)
    sharing = choose_sharing(model)[0]
    model.to(META)
    _update(model, Frozen(frozen_copy(model)), "dpo", sharing)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prefix", "prompt", "p_tuning"])
def test_no_adapter_mixes_devices(kind):
    model = add_adapter(make("llama"), Adapter(kind))
    sharing = choose_sharing(model)[0]
    model.to(META)
    _update(model, AdapterOff(model), "dpo", sharing)


def test_what_reads_a_number_back_is_found():
    def reading(policy, reference, pairs, *, beta):
        losses = policy.logps[pairs.yw_idxs] * float(policy.logps.sum())
        return losses, policy.logps.detach()

    model = make("llama")
    choose_sharing(model)
    model.to(META)
    batches = Layout("shared", 64, META).batches(random_trees(6))
    method = Method.of(replace(objectives.get("hinge"), fn=reading, needs_reference=False))
    with pytest.raises(AfzalError, match="meta"):
        accumulate(model, method, Update(batches, [], 6))
