"""Hostile model folders: refused before anything is loaded, by the functions that load models for every command.

Each variant plants a canary: a pickle or a module whose loading would create a file. It must never appear, and nothing
may be written anywhere.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from afzal.errors import AfzalError
from afzal.folders.inspection import (
    MAX_CONFIG_BYTES,
    MAX_TEMPLATE_BYTES,
    inspect_model_folder,
    inspect_tokenizer_folder,
    local_folder,
)
from afzal.folders.load import find_folder, hub_config
from afzal.model.load import load_model, load_tokenizer
from afzal.records import Item, Response
from afzal.tokens.display import display_tokens


class Canary:
    """Unpickling one of these creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """A tiny model with its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("models") / "good"
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def place(good, tmp_path) -> Path:
    """A copy to tamper with, in a folder whose other contents are watched."""
    shutil.copytree(good, tmp_path / "model")
    (tmp_path / "outside").mkdir()
    shutil.copy(good / "model.safetensors", tmp_path / "outside")
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    return tmp_path


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def pickled(file: Path, canary: Path) -> None:
    """The canary as a plain pickle, or inside the zip that ``torch.save`` writes."""
    payload = {"lm_head.weight": Canary(canary)}
    if file.suffix in (".pkl", ".pickle", ".joblib"):
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, file)


def only_pickle(name: str) -> Callable[[Path, Path], None]:
    def hurt(model: Path, canary: Path) -> None:
        (model / "model.safetensors").unlink()
        pickled(model / name, canary)

    return hurt


def config(**changes) -> Callable[[Path, Path], None]:
    return lambda model, canary: edit(model / "config.json", **changes)


def in_file(name: str, **changes) -> Callable[[Path, Path], None]:
    return lambda model, canary: edit(model / name, **changes)


def index(shard: str) -> Callable[[Path, Path], None]:
    """Shards by an index whose last one is ``shard``; a pickle with the canary waits at that place."""

    def hurt(model: Path, canary: Path) -> None:
        (model / "model.safetensors").rename(model / "part-1.safetensors")
        target = model / shard
        if not target.exists() and target.suffix != ".safetensors":
            pickled(target, canary)
        weights = {"model.norm.weight": "part-1.safetensors", "lm_head.weight": shard}
        edit(model / "model.safetensors.index.json", metadata={}, weight_map=weights)

    return hurt


def code(name: str, **changes) -> Callable[[Path, Path], None]:
    def hurt(model: Path, canary: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(f"open({str(canary)!r}, 'w')\n")
        if changes:
            edit(model / "config.json", **changes)

    return hurt


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    def hurt(model: Path, canary: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(target)

    return hurt


def write(name: str, data: bytes) -> Callable[[Path, Path], None]:
    return lambda model, canary: bool((model / name).write_bytes(data))


def template_named(name: str) -> Callable[[Path, Path], None]:
    entries = [{"name": "default", "template": "x"}, {"name": name, "template": "y"}]
    return in_file("tokenizer_config.json", chat_template=entries)


def template_file(name: str) -> Callable[[Path, Path], None]:
    def hurt(model: Path, canary: Path) -> None:
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates" / name).write_text("x")

    return hurt


def renamed_pickle(model: Path, canary: Path) -> None:
    pickled(model / "weights.pkl", canary)
    (model / "weights.pkl").replace(model / "model.safetensors")


def explicit_pickle(model: Path, canary: Path) -> None:
    """transformers accepts this file name for the weights although it is a pickle."""
    pickled(model / "adapter_model.bin", canary)
    edit(model / "config.json", transformers_weights="adapter_model.bin")


def pipe(model: Path, canary: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


LINK_OUT = "../outside/model.safetensors"
# name: (modification of a good folder, what the refusal must name)
HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "pickle .bin": (only_pickle("pytorch_model.bin"), "pytorch_model.bin"),
    "pickle .pt": (only_pickle("model.pt"), "model.pt"),
    "pickle .pth": (only_pickle("weights.pth"), "weights.pth"),
    "pickle .pkl": (only_pickle("model.pkl"), "model.pkl"),
    "pickle .ckpt": (only_pickle("model.ckpt"), "model.ckpt"),
    "pickle .joblib": (only_pickle("model.joblib"), "model.joblib"),
    "pickle called safetensors": (renamed_pickle, "model.safetensors"),
    "pickle chosen by the configuration": (explicit_pickle, "adapter_model.bin"),
    "index to a pickle": (index("pytorch_model.bin"), "pytorch_model.bin"),
    "index outside": (index(LINK_OUT), LINK_OUT),
    "index to an absolute path": (index("/etc/passwd"), "/etc/passwd"),
    "index to a missing file": (index("part-2.safetensors"), "part-2.safetensors"),
    "index without map": (write("model.safetensors.index.json", b"{}"), "weight_map"),
    "auto_map with code": (
        code("modeling_evil.py", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}),
        "modeling_evil.py",
    ),
    "auto_map to another repository": (
        config(auto_map={"AutoConfig": "evil/repo--config.Evil", "AutoModelForCausalLM": "evil/repo--m.Evil"}),
        "auto_map",
    ),
    "auto_map of the tokenizer": (
        in_file("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/repo--tok.Evil", None]}),
        "auto_map",
    ),
    "auto_map in a nested configuration": (config(text_config={"auto_map": {"AutoConfig": "x.Y"}}), "auto_map"),
    "trust_remote_code in the configuration": (config(trust_remote_code=True), "trust_remote_code"),
    "pipeline code": (config(custom_pipelines={"evil": {"impl": "evil.Pipe"}}), "custom_pipelines"),
    "generation code": (code("custom_generate/generate.py"), "generate.py"),
    "compiled code": (code("evil.so"), "evil.so"),
    "private kernel key": (config(_attn_implementation_internal="evil/kernel"), "_attn_implementation_internal"),
    "private experts key": (config(_experts_implementation_internal="eager"), "_experts_implementation_internal"),
    "private kernel key nested": (
        config(vision_config={"x": [{"_attn_implementation_internal": "evil/kernel"}]}),
        "_attn_implementation_internal",
    ),
    "hub kernel": (config(attn_implementation="evil/kernel@v1:run"), "evil/kernel"),
    "hub kernel by part": (config(attn_implementation={"text_config": "evil/kernel"}), "evil/kernel"),
    "hub kernel, old key": (config(_attn_implementation="evil/kernel"), "_attn_implementation"),
    "weights linked outside": (link("model.safetensors", LINK_OUT), "model.safetensors"),
    "file linked to a secret": (link("vocab.txt", "../outside/secret.txt"), "vocab.txt"),
    "folder linked outside": (link("additional_chat_templates", "../outside"), "additional_chat_templates"),
    "absolute link": (link("merges.txt", "/etc/passwd"), "merges.txt"),
    "link loop": (link("config.json", "config.json"), "config.json"),
    "pipe as configuration": (pipe, "config.json"),
    "template name with ../": (template_named("../../outside/evil"), "../../outside/evil"),
    "template name absolute": (template_named("/tmp/evil"), "/tmp/evil"),
    "template name with backslash": (template_named("..\\evil"), "evil"),
    "template name that is no text": (in_file("tokenizer_config.json", chat_template=[{"name": 3}]), "3"),
    "template file with an odd name": (template_file("..\\..\\evil.jinja"), "evil"),
    "template of 2 MB": (write("chat_template.jinja", b"x" * (2 * MAX_TEMPLATE_BYTES)), "chat_template.jinja"),
    "inline template of 2 MB": (
        in_file("tokenizer_config.json", chat_template="x" * (2 * MAX_TEMPLATE_BYTES)),
        "chat template",
    ),
    "tokenizer file outside": (
        in_file("tokenizer_config.json", fast_tokenizer_files=["../outside/tokenizer.4.0.json"]),
        "fast_tokenizer_files",
    ),
    "configuration not JSON": (write("config.json", b"import os"), "config.json"),
    "configuration not an object": (write("config.json", b"[1]"), "config.json"),
    "configuration nested 100,000 deep": (write("config.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "deep"),
    "configuration huge": (write("config.json", b" " * (MAX_CONFIG_BYTES + 1)), "bytes"),
    "configuration missing": (lambda model, canary: (model / "config.json").unlink(), "config.json"),
    "weights missing": (lambda model, canary: (model / "model.safetensors").unlink(), "no weights"),
    "weights empty": (write("model.safetensors", b""), "model.safetensors"),
    "weights cut short": (lambda model, canary: os.truncate(model / "model.safetensors", 4000), "bytes instead of"),
    "weights with a header larger than the file": (
        write("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
        "model.safetensors",
    ),
}


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below and when its content changed."""
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.mark.parametrize("variant", HOSTILE)
def test_hostile_folders_are_refused_and_the_canary_never_fires(place, variant):
    hurt, named = HOSTILE[variant]
    model, canary = place / "model", place / "canary"
    hurt(model, canary)
    before = everything(place)
    with pytest.raises(AfzalError) as caught:
        load_model(str(model))
    assert named in str(caught.value)
    assert "try:" in str(caught.value)
    assert not canary.exists()
    assert everything(place) == before


def test_there_are_more_than_twenty_variants():
    assert len(HOSTILE) >= 20


def test_the_canary_would_fire(tmp_path):
    """The control: what the refusals prevent is real."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "variant",
    [v for v in HOSTILE if v.startswith(("template", "auto_map of", "tokenizer", "inline", "file", "compiled"))],
)
def test_the_tokenizer_alone_is_refused_too(place, variant):
    hurt, named = HOSTILE[variant]
    hurt(place / "model", place / "canary")
    (place / "model" / "config.json").unlink()
    with pytest.raises(AfzalError) as caught:
        inspect_tokenizer_folder(place / "model")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "variant", sorted(HOSTILE.keys() - {"weights missing"})
)  # a tokenizer and a configuration are enough
def test_a_look_at_the_tokens_opens_no_folder_that_training_refuses(place, variant, monkeypatch):
    """``afzal check --model`` too, whatever is typed: it never prompts."""
    hurt, named = HOSTILE[variant]
    hurt(place / "model", place / "canary")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(AfzalError) as caught:
        display_tokens([Item("1", "w1", (Response("w3"),))], str(place / "model"), 1, 99)
    assert named in str(caught.value)
    assert not (place / "canary").exists()


# --- folders that must still work -------------------------------------------------------------------------------------


def test_a_good_folder_loads(good):
    inspect_model_folder(good)
    assert load_model(str(good)).config.vocab_size == 16
    assert len(load_tokenizer(str(good))) == 16


def test_pickles_next_to_safetensors_are_left_alone(place):
    """Other tools leave them in training folders; they are never opened, because only safetensors are requested."""
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin", "model.pkl", "x.ckpt"):
        pickled(place / "model" / name, place / "canary")
    weights = load_model(str(place / "model")).state_dict()
    assert not (place / "canary").exists()
    assert torch.equal(weights["lm_head.weight"], load_model(str(place / "model")).state_dict()["lm_head.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation_autoset": True},
        {"_attn_implementation": "sdpa"},
        {"attn_implementation": {"": "eager", "text_config": None}},
        {"_name_or_path": "/home/someone/model", "_commit_hash": "abc"},
        {"auto_map": None},
    ],
    ids=str,
)
def test_harmless_keys_of_older_versions_are_accepted(place, changes):
    edit(place / "model" / "config.json", **changes)
    inspect_model_folder(place / "model")


def test_the_hubs_cache_with_its_links_is_accepted_but_not_links_beyond_it(good, tmp_path):
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in good.iterdir():
        shutil.copy(file, cache / "blobs" / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    inspect_model_folder(snapshot)
    assert load_model(str(snapshot)).config.vocab_size == 16
    (tmp_path / "secret").write_text("x")
    (snapshot / "merges.txt").symlink_to("../../../secret")
    with pytest.raises(AfzalError, match=r"merges\.txt"):
        inspect_model_folder(snapshot)


def test_a_hub_id_becomes_its_inspected_cache_folder(good, tmp_path, monkeypatch):
    import huggingface_hub

    cache = tmp_path / "models--org--name"
    shutil.copytree(good, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    asked = {}
    real = huggingface_hub.snapshot_download

    def offline(model, **options):
        asked.update(options)
        return real(model, cache_dir=tmp_path, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    folder = local_folder("org/name")
    assert folder == cache / "snapshots" / "abc"
    inspect_model_folder(folder)
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["allow_patterns"])
    assert local_folder(str(good)) == good
    with pytest.raises((OSError, ValueError)):
        local_folder("org/other")


def test_a_hub_id_is_looked_up_by_the_files_that_are_needed(good, monkeypatch):
    import huggingface_hub

    asked = []

    def download(model, *, allow_patterns, ignore_patterns):
        asked.append(sorted(allow_patterns))
        return str(good)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    texts = ["*.jinja", "*.json", "*.model", "*.tiktoken", "*.txt"]
    find_folder("org/name")
    assert asked.pop() == texts
    assert load_tokenizer("org/name").eos_token == load_tokenizer(str(good)).eos_token
    assert asked.pop() == texts
    assert hub_config("org/name")["vocab_size"] == 16
    assert asked.pop() == ["config.json"]
    assert load_model("org/name").config.vocab_size == 16
    assert asked.pop() == sorted([*texts, "*.safetensors"])


def test_shards_named_by_an_index_are_accepted(good, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(good)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    inspect_model_folder(tmp_path)
    assert torch.equal(load_model(str(tmp_path)).lm_head.weight, model.lm_head.weight)


def test_a_linked_folder_and_links_inside_are_accepted(place):
    (place / "model" / "model.safetensors").rename(place / "model" / "real.safetensors")
    (place / "model" / "model.safetensors").symlink_to("real.safetensors")
    (place / "alias").symlink_to("model")
    inspect_model_folder(place / "alias")


def test_several_named_templates_are_accepted(place):
    template_named("tool_use")(place / "model", place)
    (place / "model" / "chat_template.jinja").unlink()
    template_file("rag.jinja")(place / "model", place)
    inspect_model_folder(place / "model")


def test_a_folder_without_tokenizer_is_named(place):
    inspect_tokenizer_folder(place / "model")
    for file in (place / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(AfzalError, match="has no tokenizer"):
        inspect_tokenizer_folder(place / "model")


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(place) -> Path:
    """A LoRA adapter on the good model."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(place / "adapter")
    return place / "adapter"


def test_a_good_adapter_is_accepted_with_its_base(adapter):
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("model")
    inspect_model_folder(adapter)
    assert load_model(str(adapter)).config.vocab_size == 16


def adapter_only_pickle(adapter: Path, canary: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Canary(canary)}, adapter / "adapter_model.bin")


def adapter_key(**changes) -> Callable[[Path, Path], None]:
    return lambda adapter, canary: edit(adapter / "adapter_config.json", **changes)


def hostile_base(adapter: Path, canary: Path) -> None:
    code("evil.py", auto_map={"AutoModelForCausalLM": "evil.Evil"})(adapter.parent / "model", canary)


def base_is_itself(adapter: Path, canary: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))


HOSTILE_ADAPTERS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "pickle only": (adapter_only_pickle, "adapter_model.bin"),
    "hostile base": (hostile_base, "evil.py"),
    "its own base": (base_is_itself, "adapter"),
    "missing base": (adapter_key(base_model_name_or_path="../nowhere/model"), "../nowhere/model"),
    "base by address": (adapter_key(base_model_name_or_path="https://evil/model"), "https://evil/model"),
    "base at home": (adapter_key(base_model_name_or_path="~/model"), "~/model"),
    "no base": (adapter_key(base_model_name_or_path=None), "None"),
    "base of two lines": (adapter_key(base_model_name_or_path="a\nb"), "hub id"),
    "module by auto_mapping": (
        adapter_key(auto_mapping={"base_model_class": "X", "parent_library": "evil"}),
        "'evil'",
    ),
    "module by megatron": (adapter_key(megatron_core="evil", megatron_config={"a": 1}), "'evil'"),
    "unpickled prompt": (adapter_key(prompt_tuning_init_state_dict_path="/tmp/evil.bin"), "/tmp/evil.bin"),
    "unpickled cache": (adapter_key(corda_config={"cache_file": "evil.pt"}), "evil.pt"),
}


@pytest.mark.parametrize("variant", HOSTILE_ADAPTERS)
def test_hostile_adapters_are_refused_and_the_canary_never_fires(adapter, variant):
    hurt, named = HOSTILE_ADAPTERS[variant]
    place, canary = adapter.parent, adapter.parent / "canary"
    hurt(adapter, canary)
    before = everything(place)
    with pytest.raises(AfzalError) as caught:
        load_model(str(adapter))
    assert named in str(caught.value)
    assert not canary.exists()
    assert everything(place) == before


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(AfzalError, match="does not exist"):
        inspect_model_folder(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(AfzalError, match="is a file"):
        inspect_model_folder(tmp_path / "file")


def test_real_models_are_accepted(shared):
    for folder in (shared / "data" / "models").iterdir():
        inspect_model_folder(folder)
