"""vLLM through its real interface: what is asked of it, and what is made of its answers. vLLM itself is not needed."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_runs import model_folder

from afzal.errors import AfzalError
from afzal.generate import Sampling
from afzal.generate.with_vllm import sample_with_vllm


def fake_vllm(calls, *, logprobs=True):
    """Answers request i with completions ``[7, i]`` (ends with 2) and ``[8, 9]`` (cut), given in the wrong order."""

    class LLM:
        def __init__(self, **kwargs):
            calls.append(("LLM", kwargs))

        def generate(self, prompts, sampling_params, use_tqdm):
            calls.append(("generate", prompts, sampling_params, use_tqdm))
            return [SimpleNamespace(outputs=[self.completion(1, [8, 9]), self.completion(0, [7, 2])]) for _ in prompts]

        def completion(self, index, ids):
            steps = [{t: SimpleNamespace(logprob=-t / 10), 99: SimpleNamespace(logprob=-9.0)} for t in ids]
            return SimpleNamespace(index=index, token_ids=ids, logprobs=steps if logprobs else None)

    params = lambda **kwargs: kwargs  # noqa: E731
    return SimpleNamespace(LLM=LLM, SamplingParams=params, TokensPrompt=lambda **kwargs: kwargs)


def test_requests_and_samples(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm(calls))
    sampling = Sampling(2, temperature=0.7, top_p=0.9, min_new_tokens=1)
    folder = str(model_folder(tmp_path / "model"))
    drawn = sample_with_vllm(folder, [[1, 5], [6]], eos=[2, 3], n=2, sampling=sampling, seed=4)
    (_, engine), (_, prompts, settings, bar) = calls
    safely = {"trust_remote_code": False, "load_format": "safetensors"}
    assert engine == {"model": folder, "logprobs_mode": "raw_logprobs", **safely}
    assert prompts == [{"prompt_token_ids": [1, 5]}, {"prompt_token_ids": [6]}]
    assert not bar
    assert settings[0]["seed"] != settings[1]["seed"]
    assert all(0 <= s.pop("seed") < 2**31 for s in settings)
    wanted = {"n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 2, "min_tokens": 1, "logprobs": 0}
    wanted |= {"ignore_eos": True, "stop_token_ids": [2, 3], "detokenize": False}
    assert settings == [wanted, wanted]
    assert [(s.prompt_index, s.ids.tolist(), s.stop) for s in drawn] == [
        (0, [7, 2], "eos"),
        (0, [8, 9], "length"),
        (1, [7, 2], "eos"),
        (1, [8, 9], "length"),
    ]
    np.testing.assert_allclose(drawn[0].logps, [-0.7, -0.2], rtol=1e-6)


def test_an_engine_can_be_given_and_the_seed_counts(monkeypatch):
    calls = []
    module = fake_vllm(calls)
    monkeypatch.setitem(sys.modules, "vllm", module)
    engine = module.LLM()
    for seed in (0, 0, 1):
        sample_with_vllm(engine, [[1]], eos=[2], seed=seed)
    first, again, other = ([s["seed"] for s in call[2]] for call in calls if call[0] == "generate")
    assert first == again != other


def test_missing_log_probs_and_a_missing_vllm_are_said_plainly(monkeypatch, tmp_path):
    folder = str(model_folder(tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm([], logprobs=False))
    with pytest.raises(AfzalError, match="no log-probs"):
        sample_with_vllm(folder, [[1]], eos=[2])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(AfzalError, match=r"pip install 'afzal\[vllm\]'"):
        sample_with_vllm(folder, [[1]], eos=[2])


@pytest.mark.parametrize("lacks", ["nothing", "generation_config.json", "eos in config.json"])
@pytest.mark.parametrize("adapted", [False, True])
def test_vllm_is_given_the_ends_of_the_other_engines(monkeypatch, tmp_path, capsys, lacks, adapted):
    """The model's own ends from wherever the folder, or an adapter's base model, states them."""
    from afzal import config
    from afzal.generate import run as module

    folder = model_folder(tmp_path / "model", eos_token_id=9)
    if lacks == "generation_config.json":
        (folder / "generation_config.json").unlink()
    if lacks == "eos in config.json":
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "eos_token_id": None}))
    if adapted:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = AutoModelForCausalLM.from_pretrained(folder)
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
        folder = tmp_path / "adapter"
    ends = {}
    monkeypatch.setattr(module, "sample", lambda *args, eos, **more: ends.update(own=eos) or [])
    monkeypatch.setattr(module, "sample_with_vllm", lambda *args, eos, **more: ends.update(vllm=eos) or [])
    for engine in ("auto", "vllm"):
        module.generate(config.GenerateConfig(model=str(folder), prompt="a", engine=engine))
    assert ends["vllm"] == ends["own"]
    assert 9 in ends["own"]
    assert "never with vLLM itself" in capsys.readouterr().err
