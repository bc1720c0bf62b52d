"""vLLM through its real interface: requests to it, and samples from its answers. vLLM itself is not needed."""

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_models import make
from helpers_runs import model_folder
from helpers_tokenizers import CHATML, byte_tokenizer

from afzal.errors import AfzalError
from afzal.generate import Sampling, sample
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
    wanted |= {"ignore_eos": True, "stop_token_ids": [2, 3], "detokenize": False, "logit_bias": None}
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


def test_image_and_sound_tokens_are_barred_as_in_our_engine(monkeypatch, tmp_path):
    from afzal.generate import with_vllm as module

    calls = []
    engine = fake_vllm(calls)
    monkeypatch.setitem(sys.modules, "vllm", engine)
    named = {"image_token_id": 11, "audio_token_index": 12, "vision_config": object(), "audio_config": object()}
    shows = SimpleNamespace(get_text_config=lambda: None, **named)
    monkeypatch.setattr(module, "config_of", lambda path: shows)
    monkeypatch.setattr(module, "context_tokens", lambda path: None)
    sample_with_vllm(str(model_folder(tmp_path / "model")), [[1]], eos=[2])
    sample_with_vllm(engine.LLM(), [[1]], eos=[2], sampling=Sampling(2, barred=(5,)))
    told = [settings[0]["logit_bias"] for name, *_, settings, _ in (c for c in calls if c[0] == "generate")]
    assert told == [{11: -100.0, 12: -100.0}, {5: -100.0}]
    assert module.placeholder_ids(shows) == (11, 12)


def test_missing_log_probs_and_a_missing_vllm_are_reported(monkeypatch, tmp_path):
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
    """The model's own end tokens, wherever the folder or an adapter's base model states them."""
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


@dataclass
class Params:
    """The fields of vLLM's ``SamplingParams`` that are set; an unknown one is a ``TypeError``, as there."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None


def scripted_vllm(streams, model_eos, *, length_first):
    """A vLLM whose model writes ``streams[prompt][sample]`` and stops as vLLM's scheduler does (``check_stop``).

    ``token_ids`` include the stop token. Older releases check the length before the stop tokens, so an answer whose
    last allowed token is an end counts as cut there.
    """

    def ended(stream, params):
        for length in range(1, len(stream) + 1):
            last, full = stream[length - 1], length >= params.max_tokens
            if full and length_first:
                return length, "length", None
            if length >= params.min_tokens and not params.ignore_eos and last == model_eos:
                return length, "stop", None
            if length >= params.min_tokens and last in (params.stop_token_ids or ()):
                return length, "stop", last
            if full:
                return length, "length", None
        raise AssertionError("the script is too short")

    class LLM:
        def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
            assert all(0 <= p.seed < 2**31 for p in sampling_params)
            assert len({p.seed for p in sampling_params}) == len(prompts)
            requests = []
            for own, params in zip(streams, sampling_params, strict=True):
                outputs = []
                for index in range(params.n):
                    length, reason, stop = ended(own[index], params)
                    ids = own[index][:length]
                    steps = [{t: SimpleNamespace(logprob=-1.0, rank=1, decoded_token=None)} for t in ids]
                    about = {"text": "", "cumulative_logprob": None, "finish_reason": reason, "stop_reason": stop}
                    outputs.append(SimpleNamespace(index=index, token_ids=ids, logprobs=steps, **about))
                requests.append(SimpleNamespace(outputs=outputs, finished=True))
            return requests

    return SimpleNamespace(LLM=LLM, SamplingParams=Params, TokensPrompt=lambda prompt_token_ids: prompt_token_ids)


@pytest.mark.parametrize("length_first", [False, True])
def test_vllm_stops_where_our_own_engine_stops(monkeypatch, length_first):
    """vLLM repeats the model's tokens: the ids and endings are the same, with several end marks other than the model's
    EOS, and with an end mark as the last token allowed."""
    model, prompts, ends = make("llama"), [[5, 6, 7], [8, 9]], list(range(20, 30))
    plain = Sampling(12)
    endless = sample(model, prompts, eos=[], n=8, sampling=plain, seed=3)
    streams = [[s.ids.tolist() for s in endless if s.prompt_index == p] for p in range(2)]
    own = sample(model, prompts, eos=ends, n=8, sampling=plain, seed=3)
    module = scripted_vllm(streams, model_eos=streams[0][0][0], length_first=length_first)
    monkeypatch.setitem(sys.modules, "vllm", module)
    samples = sample_with_vllm(module.LLM(), prompts, eos=ends, n=8, sampling=plain, seed=3)
    assert [(s.prompt_index, s.ids.tolist(), s.stop) for s in samples] == [
        (s.prompt_index, s.ids.tolist(), s.stop) for s in own
    ]
    assert {s.stop for s in own} == {"eos", "length"}
    longest = max(len(s.ids) for s in own if s.stop == "eos")
    cut = Sampling(longest)  # the end is the last token allowed
    own = sample(model, prompts, eos=ends, n=8, sampling=cut, seed=3)
    samples = sample_with_vllm(module.LLM(), prompts, eos=ends, n=8, sampling=cut, seed=3)
    assert [(s.ids.tolist(), s.stop) for s in samples] == [(s.ids.tolist(), s.stop) for s in own]
    assert any(len(s.ids) == longest and s.stop == "eos" for s in own)


def test_vllm_is_given_the_end_of_a_turn_and_every_eos_of_the_generation_config(monkeypatch, tmp_path):
    from afzal import config
    from afzal.generate import run as module

    folder = model_folder(tmp_path / "model", eos_token_id=9, vocab_size=261)
    tokenizer = byte_tokenizer(template=CHATML)
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**content, "eos_token_id": [9, 11]}))
    asked = []
    vllm = fake_vllm(asked)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    module.generate(config.GenerateConfig(model=str(folder), prompt="a", engine="vllm"))
    (params,) = next(call for call in asked if call[0] == "generate")[2]
    assert {9, 11, tokenizer.convert_tokens_to_ids("<|im_end|>")} <= set(params["stop_token_ids"])
    assert params["ignore_eos"]
