"""Changes between a run and its resumption: each is refused by name, or harmless because the bytes are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import fingerprint, model_folder, one_thread, settings
from helpers_tokenizers import CHATML, byte_tokenizer
from safetensors.torch import load_file, save_file

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.recipes.input_hashes import NAMES
from afzal.tokens import rendering
from afzal.train import checkpoint

QUIET = {"max_steps": 2, "save_every_steps": 1, "sample_prompts": 1, "sample_tokens": 2, "eval_fraction": 0.0}
QUIET |= {"eval_every_steps": None, "keep_checkpoints": 9}
CODE = {
    "rewards.py": "from helper import weigh\ndef letters(prompt, answer):\n    return weigh(answer)\n",
    "helper.py": "import deeper.inner\ndef weigh(text):\n    return 1.0 + deeper.inner.weight(text)\n",
    "deeper/__init__.py": "",
    "deeper/inner.py": "def weight(text):\n    from deeper.late import FACTOR\n    return FACTOR * len(text)\n",
    "deeper/late.py": "FACTOR = 0.5\n",
    "loss.py": "from afzal.objectives import objective\nfrom scale import SCALE\n"
    "@objective('mine', unit='pair', needs_reference=True)\ndef mine(policy, reference, pairs):\n"
    "    h = (policy.logps - reference.logps)\n    h = h[pairs.yw_idxs] - h[pairs.yl_idxs]\n"
    "    return SCALE * (1 - h) ** 2, 0.1 * (policy.logps - reference.logps).detach()\n",
    "scale.py": "SCALE = 1.0\n",
    "cost.py": "def cost(prompt, answer):\n    return float(len(answer))\n",
}


SPACE = ('"add_prefix_space": false', '"add_prefix_space": true')


def chats(path: Path, n: int = 12) -> Path:
    """Pairs of conversations, so that the template matters."""
    turn = lambda role, text: {"role": role, "content": text}  # noqa: E731
    pair = lambda k, word: [turn("user", f"Q{k}?"), turn("assistant", f"{word} {k % 3}")]  # noqa: E731
    rows = [{"chosen": pair(k, "please"), "rejected": pair(k, "no")} for k in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Models, adapters, reward models, data and code; and a run of two updates on each combination."""
    path = tmp_path_factory.mktemp("world")
    tokenizer = byte_tokenizer(template=CHATML)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name in ("model", "reference"):
        model_folder(path / name, vocab_size=len(tokenizer), **ids)
        tokenizer.save_pretrained(path / name)
    chats(path / "pairs.jsonl")
    chats(path / "held.jsonl", 4)
    for name, text in CODE.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    train(path, "reward", "worth", reference=None)
    train(path, "dpo", "adapted", lora_rank=2, reference="frozen")
    return path


RUNS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "dpo": ("dpo", lambda w: {"reference": str(w / "reference"), "eval_data": str(w / "held.jsonl")}),
    "adapter": ("dpo", lambda w: {"model": str(w / "adapted"), "reference": "frozen"}),
    "cached": ("dpo", lambda w: {"reference": "cached", "reference_cache": str(w / "cache")}),
    "own": ("prefer", lambda w: {"objective": f"dpo + 0.5*{w}/loss.py:mine", **constrained(w)}),
    "function": ("rloo", lambda w: {"reward": f"{w}/rewards.py:letters", **online()}),
    "judged": ("ppo", lambda w: {"reward": str(w / "worth"), "value_model": str(w / "worth"), **online()}),
}


def online() -> dict[str, Any]:
    return {"iterations": 1, "max_steps": None, "epochs": None, "minibatches": 2, "ppo_epochs": 1}


def constrained(w: Path) -> dict[str, Any]:
    return {"constraint": "black_box", "constraint_score": f"{w}/cost.py:cost", "constraint_weight": 1.0}


def made(world: Path, method: str, out: str, **given: Any) -> Any:
    values = settings(world, world / out, **(QUIET | given))
    known = config.CONFIGS[method].model_fields
    return config.make(method, **{k: v for k, v in values.items() if k in known and v is not None})


def train(world: Path, method: str, out: str, *, resume: bool = False, **given: Any) -> Path:
    with one_thread():
        return recipes.train(made(world, method, out, **given), resume=resume)


def begun(world: Path, base: str) -> dict[str, Any]:
    """The settings of a run that is at its first checkpoint; the run is made on first use."""
    method, given = RUNS[base]
    if not (world / base).exists():
        train(world, method, base, **given(world))
    return {"method": method, "out": base, **given(world)}


@contextmanager
def kept(world: Path) -> Iterator[None]:
    """Undo at the end whatever the block changed in the world."""
    aside = world.with_name(world.name + "-aside")
    shutil.copytree(world, aside)
    try:
        yield
    finally:
        shutil.rmtree(world)
        aside.rename(world)


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Change a text in a file, which must occur at least once."""

    def change(world: Path) -> None:
        text = (world / name).read_text()
        assert old in text, (name, old)
        (world / name).write_text(text.replace(old, new, 1))

    return change


def setting(name: str, key: str, value: Any) -> Callable[[Path], None]:
    """Set another value in a JSON file."""

    def change(world: Path) -> None:
        content = json.loads((world / name).read_text())
        assert content.get(key) != value, (name, key)
        (world / name).write_text(json.dumps({**content, key: value}, indent=2))

    return change


def one_number(name: str, tensor: str = "") -> Callable[[Path], None]:
    """Change one number of one tensor by a thousandth."""

    def change(world: Path) -> None:
        tensors = load_file(world / name)
        chosen = tensor or sorted(tensors)[0]
        tensors[chosen].view(-1)[-1] += 1e-3
        save_file(tensors, world / name, metadata={"format": "pt"})

    return change


def lines(change: Callable[[list[str]], list[str]], name: str = "pairs.jsonl") -> Callable[[Path], None]:
    def apply(world: Path) -> None:
        (world / name).write_text("".join(change((world / name).read_text().splitlines(keepends=True))))

    return apply


def renamed_columns(world: Path) -> None:
    text = (world / "pairs.jsonl").read_text().replace('"chosen"', '"x"').replace('"rejected"', '"chosen"')
    (world / "pairs.jsonl").write_text(text.replace('"x"', '"rejected"'))


def cached_number(world: Path) -> None:
    (path,) = (world / "cache").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 64  # in the log-probs, or in the ends of the responses
    path.write_bytes(data)


def swapped_cache(world: Path) -> None:
    """Log-probs of another reading of the data: a sound table, but not the one that the run started with."""
    from safetensors import safe_open
    from safetensors.numpy import save_file as save

    (path,) = (world / "cache").glob("*.safetensors")
    with safe_open(path, "np") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["logps"] = tensors["logps"] + 0.5
    save(tensors, path, metadata=about)


def runtime(**facts: Any) -> Callable[[Path], None]:
    """As if the run had started on another machine: what ``auto`` chose there."""

    def change(world: Path) -> None:
        for base in RUNS:
            if (world / base).exists():
                run = runs.open_run(world / base)
                run.update(runtime=run.facts()["runtime"] | facts)

    return change


# What changes, in which run, how, and what the refusal names.
REFUSED: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("a word of a row", "dpo", edited("pairs.jsonl", "please 1", "please 7"), "content of the training data"),
    ("the order of rows", "dpo", lines(lambda r: [r[1], r[0], *r[2:]]), "content of the training data"),
    ("a row less", "dpo", lines(lambda r: r[1:]), "content of the training data"),
    ("chosen and rejected", "dpo", renamed_columns, "content of the training data"),
    ("the held-out file", "dpo", edited("held.jsonl", "Q0", "Q9"), "eval_data: the content of its file"),
    ("the prompts of rollouts", "function", edited("pairs.jsonl", "Q0", "Q99"), "content of the training data"),
    ("one number of the model", "dpo", one_number("model/model.safetensors"), "model: model.safetensors has changed"),
    (
        "rope_theta",
        "dpo",
        edited("model/config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0'),
        "model: config",
    ),
    ("rms_norm_eps", "dpo", setting("model/config.json", "rms_norm_eps", 1e-2), "model: config.json has changed"),
    ("eos_token_id", "dpo", setting("model/config.json", "eos_token_id", 5), "model: config.json has changed"),
    (
        "generation_config",
        "dpo",
        setting("model/generation_config.json", "eos_token_id", 5),
        "model: generation_config",
    ),
    (
        "tokenizer.json",
        "dpo",
        edited("model/tokenizer.json", *SPACE),
        "model: tokenizer.json has changed",
    ),
    ("tokenizer_config", "dpo", setting("model/tokenizer_config.json", "extra", 1), "model: tokenizer_config.json has"),
    (
        "the chat template",
        "dpo",
        edited("model/chat_template.jinja", "'\\n'", "'\\n\\n'"),
        "model: chat_template.jinja has.*|tokens: ",
    ),
    ("the reference's weights", "dpo", one_number("reference/model.safetensors"), "reference: model.safetensors has"),
    (
        "the reference's rms_norm_eps",
        "dpo",
        setting("reference/config.json", "rms_norm_eps", 1e-2),
        "reference: config",
    ),
    ("the starting adapter", "adapter", one_number("adapted/adapter_model.safetensors"), "model: adapter_model.safete"),
    (
        "the adapter's scale",
        "adapter",
        setting("adapted/adapter_config.json", "lora_alpha", 64),
        "model: adapter_config",
    ),
    ("the adapter's base model", "adapter", one_number("model/model.safetensors"), "model: base model, model.safetens"),
    (
        "the reference cache, damaged",
        "cached",
        cached_number,
        "reference cache .* is damaged|log-probs in the reference c",
    ),
    ("the reference cache, another", "cached", swapped_cache, "log-probs in the reference cache|is damaged"),
    ("an objective's file", "own", edited("loss.py", "(1 - h)", "(2 - h)"), "objective: .*has changed"),
    ("a module it imports", "own", edited("scale.py", "1.0", "2.0"), "objective: .*scale.py has changed"),
    (
        "a constraint's function",
        "own",
        edited("cost.py", "len", "2 * len"),
        "constraint_score: the content of its file",
    ),
    (
        "a reward function's file",
        "function",
        edited("rewards.py", "weigh(answer)", "-weigh(answer)"),
        "reward: its file has",
    ),
    ("a module it imports", "function", edited("helper.py", "1.0", "2.0"), "reward: helper.py has changed"),
    (
        "a module of a package",
        "function",
        edited("deeper/inner.py", "len(text)", "len(text) ** 2"),
        "reward: deeper/inner.py",
    ),
    (
        "a module imported late",
        "function",
        edited("deeper/late.py", "0.5", "5.0"),
        "reward: deeper/late.py has changed",
    ),
    ("the reward model's weights", "judged", one_number("worth/model.safetensors"), "reward: model.safetensors has"),
    (
        "the reward model's shift",
        "judged",
        setting("worth/config.json", "reward_shift", 9.0),
        "value_model: config.json",
    ),
    (
        "the sharing of auto",
        "dpo",
        runtime(sharing="unshared"),
        "how sharing=auto lays out prompts: unshared -> shared",
    ),
]


@pytest.mark.parametrize(("base", "change", "named"), [pytest.param(*r[1:], id=f"{r[1]}: {r[0]}") for r in REFUSED])
def test_a_change_under_a_resumed_run_is_refused_by_name(world, base, change, named):
    given = begun(world, base)
    with kept(world):
        to_the_first(world, base)
        before = (world / base / "metrics.jsonl").read_bytes()
        change(world)
        with pytest.raises(AfzalError, match=f"(?s){named}") as caught:
            train(world, resume=True, **given)
        assert (
            "restore what changed" in str(caught.value)
            or "delete" in str(caught.value)
            or "resume it on" in str(caught.value)
        )
        assert (world / base / "metrics.jsonl").read_bytes() == before


SETTINGS = {
    "lr": 2e-3,
    "lr_schedule": "cosine",
    "warmup": 1.0,
    "optimizer": "rmsprop",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_eps": 1e-6,
    "seed": 5,
    "batch_size": 4,
    "tokens_per_forward": 64,
    "epochs": 2.0,
    "max_steps": 3,
    "max_tokens": 64,
    "eos_token": "<pad>",
    "clean": False,
    "dtype": "bf16",
    "sharing": "unshared",
    "beta": 0.5,
    "sample_tokens": 3,
    "chat_template": "chatml",
    "lora_rank": 2,
    "activation_checkpointing": "full",
    "eval_every_steps": 1,
}


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_another_setting_is_refused_by_name(world, key):
    given = begun(world, "dpo")
    with pytest.raises(AfzalError, match=f"(?s)cannot be resumed with other settings.*{key}: .* -> "):
        train(world, resume=True, **{**given, key: SETTINGS[key], "reference": str(world / "reference")})


def to_the_first(world: Path, base: str) -> None:
    """Restore the run to its state when it was killed after its first update."""
    shutil.rmtree(max(checkpoint.listed(world / base / "checkpoints"))[1])
    runs.open_run(world / base).update(status="running", step=1)


def elsewhere(world: Path) -> dict[str, Any]:
    """The same bytes under other folder names."""
    shutil.copytree(world / "model", world / "moved" / "model")
    shutil.copytree(world / "reference", world / "moved" / "reference")
    for name in ("pairs.jsonl", "held.jsonl"):
        shutil.move(world / name, world / "moved" / name)
    moved = {name: str(world / "moved" / name) for name in ("model", "reference")}
    return moved | {"data": str(world / "moved/pairs.jsonl"), "eval_data": str(world / "moved/held.jsonl")}


def more_files(world: Path) -> dict[str, Any]:
    """Add files that a person may put next to a model, and change file times."""
    (world / "model" / "README.md").write_text("notes")
    (world / "model" / "report.json").write_text("{}")
    for path in (world / "model").iterdir():
        path.touch()
    return {}


def no_cache(world: Path) -> dict[str, Any]:
    shutil.rmtree(world / "cache")
    return {}


HARMLESS: list[tuple[str, str, Callable[[Path], dict[str, Any]]]] = [
    ("nothing", "dpo", lambda world: {}),
    ("other places", "dpo", elsewhere),
    ("files beside the model's", "dpo", more_files),
    ("when it saves", "dpo", lambda world: {"save_every_steps": None, "keep_checkpoints": 8, "save_every_minutes": 0}),
    ("a cache that is gone", "cached", no_cache),
    ("a comment in a file that nothing imports", "function", lambda world: (world / "loss.py").write_text("#") and {}),
]


@pytest.mark.parametrize(("base", "change"), [pytest.param(*r[1:], id=f"{r[1]}: {r[0]}") for r in HARMLESS])
def test_a_change_that_is_let_through_changes_no_byte(world, base, change):
    given = begun(world, base)
    expected = fingerprint(world / base)
    with kept(world):
        to_the_first(world, base)
        train(world, resume=True, **(given | change(world)))
        assert fingerprint(world / base) == expected


def test_other_versions_ranks_and_threads_are_said(world, capsys):
    given = begun(world, "dpo")
    with kept(world):
        to_the_first(world, "dpo")
        run = runs.open_run(world / "dpo")
        facts = run.facts()
        run.update(versions=facts["versions"] | {"torch": "1.0"}, runtime=facts["runtime"] | {"ranks": 4, "threads": 7})
        capsys.readouterr()
        train(world, resume=True, **given)
        said = capsys.readouterr().err
    torch_now = facts["versions"]["torch"]
    assert f"changed since the run started: ranks 4 -> 1, threads per rank 7 -> 1, torch 1.0 -> {torch_now}; " in said


def dated(world: Path) -> dict[str, Any]:
    """A model whose template writes the date."""
    if not (world / "dated").exists():
        shutil.copytree(world / "model", world / "dated")
        text = "{{ strftime_now('%d %B %Y') + '\\n' }}" + CHATML
        (world / "dated" / "chat_template.jinja").write_text(text)
    return {"model": str(world / "dated"), "reference": "frozen"}


@pytest.fixture
def program_of():
    """The date at which a program was started."""
    before = rendering.date()
    yield lambda *day: rendering.set_date(datetime(*day))
    rendering.set_date(before)


def test_a_template_that_writes_the_date_sees_that_of_the_runs_beginning(world, program_of, capsys):
    given = dated(world)
    with kept(world):
        program_of(2026, 2, 27)
        train(world, "dpo", "days", **given)
        assert "the chat template writes the date: 2026-02-27 throughout this run" in capsys.readouterr().err
        expected, run = fingerprint(world / "days"), runs.open_run(world / "days")
        assert run.facts()["template_date"] == "2026-02-27T00:00:00"
        to_the_first(world, "days")
        program_of(2026, 11, 28)
        train(world, "dpo", "days", resume=True, **given)
        assert fingerprint(world / "days") == expected
        assert rendering.date() == datetime(2026, 11, 28)
        to_the_first(world, "days")
        run.update(template_date=None)  # as if the date had not been recorded: the tokens reveal it
        with pytest.raises(AfzalError, match=r"tokens: what the data becomes .* has changed"):
            train(world, "dpo", "days", resume=True, **given)


def test_a_model_in_memory_is_compared_too(world):
    from afzal.model.load import load_model, load_tokenizer

    model = load_model(str(world / "model"))
    about = made(world, "dpo", "in-memory", max_steps=1)
    with kept(world):
        recipes.train(about, model=model, tokenizer=load_tokenizer(str(world / "model")))
        with pytest.raises(AfzalError, match="model: the content of its file has changed"):  # it has been trained since
            recipes.train(about, model=model, tokenizer=load_tokenizer(str(world / "model")), resume=True)
        with torch.no_grad():
            again = load_model(str(world / "model"))
        recipes.train(about, model=again, tokenizer=load_tokenizer(str(world / "model")), resume=True)


# Texts that name nothing outside the run, or whose content has a separate fingerprint (the data).
WORDS = {
    *("method", "data", "prompts", "out", "device", "data_format", "axis", "eos_token", "tokenizer"),
    *("preset", "reference_cache", "pairing", "task", "push_to_hub"),
}


def test_every_setting_that_may_name_something_is_compared_by_content():
    """A new setting of type text must be put into one of the two lists."""
    kinds = [*config.CONFIGS.values(), config.IterateConfig]
    texts = {
        key
        for kind in kinds
        for key, field in kind.model_fields.items()
        if str in config.members(field.annotation) and not key.startswith("_")
    }
    assert texts <= set(NAMES) | WORDS, texts - set(NAMES) - WORDS
    assert not set(NAMES) & WORDS
