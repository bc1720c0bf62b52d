"""Answers from a server: the request to each kind, the cost of each fault, and nothing asked twice."""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model_server import serving
from helpers_runs import model_folder, one_thread, pair_file
from helpers_scripted_server import Scripted, scripted, server_file, wait_for_nothing
from helpers_tokenizers import CHATML, byte_tokenizer, llama_tokenizer

from afzal import config, data
from afzal.cli import main
from afzal.config import GenerateConfig, IterateConfig, Setting
from afzal.config.serving import ServerConfig
from afzal.errors import AfzalError
from afzal.generate.run import generate as generate_answers
from afzal.generate.with_server import _PLAIN
from afzal.model.speakers import open_speaker
from afzal.records import Message
from afzal.runs import files

KEY = "sk-served-0123456789abcdef"


@pytest.fixture
def script() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    wait_for_nothing(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with a chat template, plain prompts, and conversations as prompts."""
    path = tmp_path_factory.mktemp("served")
    chat = byte_tokenizer(template=CHATML)
    model_folder(path / "model", vocab_size=len(chat))
    chat.save_pretrained(path / "model")
    rows = [{"prompt": f"q{k}"} for k in range(3)]
    (path / "plain.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    talks = [{"prompt": [{"role": "user", "content": f"q{k}"}]} for k in range(3)]
    (path / "talks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in talks))
    return path


def generate(server: str, folder: Path, out: Path | None = None, **given: Any) -> list[dict[str, Any]]:
    asked = {"prompts": str(folder / "talks.jsonl"), "n": 2, "max_new_tokens": 5} | given
    asked = {key: value for key, value in asked.items() if value is not None}
    where = {"out": str(out)} if out is not None else {}
    generate_answers(GenerateConfig(model=server, **asked, **where))
    return [json.loads(line) for line in out.read_text().splitlines()] if out is not None else []


def test_openai_is_sent_what_every_server_knows(script, folder, tmp_path, capsys):
    server = server_file(tmp_path / "s.yaml", script, folder=str(folder / "model"))
    rows = generate(server, folder, tmp_path / "out.jsonl", temperature=0.5, top_p=0.9)
    assert {path for path, _, _ in script.seen} == {"/v1/chat/completions"}
    assert "may not sample" not in capsys.readouterr().err
    seeds = [body.pop("seed") for body in script.bodies]
    assert len(set(seeds)) == 6
    same = {"model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["<eos>", "<|im_end|>"]}
    for body in script.bodies:
        assert body.pop("messages")[0]["content"] in ("q0", "q1", "q2")
        assert sorted(body.pop("stop")) == sorted(same["stop"])
        assert body == {key: value for key, value in same.items() if key != "stop"}
    assert [(row["prompt"][0]["content"], row["stop"], row["tokens"]) for row in rows] == [
        (f"q{k}", "eos", 7) for k in range(3) for _ in range(2)
    ]
    assert sorted(row["completion"] for row in rows) == sorted(f"said {seed}" for seed in seeds)


def test_other_columns_of_a_prompt_are_copied_to_its_answers(script, folder, tmp_path):
    """Only those on which all rows of the prompt agree. The answer's own columns are not overwritten, and a column that
    would make the row a conversation is left out."""
    talk = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "yes"}]
    rows = [
        {"prompt": "q0", "category": "sums", "key": 4, "tokens": 99, "meta": {"a": [1, 2]}, "messages": talk},
        {"prompt": "q1", "category": "sums", "key": 5},
        {"prompt": "q1", "category": "words", "key": 5},
    ]
    prompts = tmp_path / "prompts.jsonl"
    given = [row | {"chosen": "yes", "rejected": "no"} for row in rows]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in given))
    server = server_file(tmp_path / "s.yaml", script, folder=str(folder / "model"))
    one, two = generate(server, folder, tmp_path / "out.jsonl", prompts=str(prompts), n=1)
    assert (one["category"], one["key"], one["meta"], one["tokens"]) == ("sums", 4, {"a": [1, 2]}, 7)
    assert (two.get("category"), two["key"]) == (None, 5)
    assert not {"messages", "chosen", "rejected"} & one.keys()
    assert data.read(str(tmp_path / "out.jsonl")).format == "prompt_completion"


def test_an_answer_key_next_to_prompts_is_no_obstacle_and_is_named_if_it_cannot_stay(script, folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "q0", "solution": "seventeen", "reference_solution": "17"}) + "\n")
    server = server_file(tmp_path / "s.yaml", script, folder=str(folder / "model"))
    (row,) = generate(server, folder, tmp_path / "out.jsonl", prompts=str(prompts), n=1)
    assert "solution" not in row
    assert row["reference_solution"] == "17"
    assert "left out of the answers: solution" in capsys.readouterr().err
    assert data.read(str(tmp_path / "out.jsonl")).format == "prompt_completion"
    prompts.write_text(json.dumps({"prompt": "q0", "context": "all of it"}) + "\n")  # maybe part of the question
    with pytest.raises(AfzalError, match="'context' may change what the rows mean"):
        generate(server, folder, tmp_path / "other.jsonl", prompts=str(prompts), n=1)


def test_a_blank_that_transformers_serve_would_drop_is_refused(script, folder, tmp_path):
    spaced = llama_tokenizer(template=CHATML)
    model = model_folder(tmp_path / "model", vocab_size=len(spaced))
    spaced.save_pretrained(model)
    plain = str(folder / "plain.jsonl")
    server = server_file(tmp_path / "s.yaml", script, kind="transformers", folder=str(model))
    with pytest.raises(AfzalError, match="drop the space between a plain prompt and its answer"):
        generate(server, folder, prompts=plain)
    assert not script.seen
    generate(server, folder, tmp_path / "out.jsonl")  # a conversation has its own separators
    generate(server_file(tmp_path / "v.yaml", script, kind="vllm", folder=str(model)), folder, prompts=plain)
    other = server_file(tmp_path / "o.yaml", script, kind="transformers", folder=str(folder / "model"))
    generate(other, folder, prompts=plain)


def test_without_a_folder_the_server_decides_and_it_is_said(script, folder, tmp_path, capsys):
    generate(server_file(tmp_path / "s.yaml", script), folder, tmp_path / "out.jsonl", temperature=0.0, n=1)
    assert all("stop" not in body and "seed" not in body for body in script.bodies)
    assert "no folder is named" in capsys.readouterr().err


def test_vllm_is_sent_the_exact_tokens_and_the_ids_that_end_an_answer(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, kind="vllm", folder=str(folder / "model"))
    generate(server, folder, tmp_path / "out.jsonl", top_k=3, min_new_tokens=2)
    speaker = open_speaker(str(folder / "model"))
    ids = [p.tolist() for p in speaker.encode_prompts([(Message("user", f"q{k}"),) for k in range(3)])]
    assert {path for path, _, _ in script.seen} == {"/v1/completions"}
    assert sorted(body["prompt"] for body in script.bodies) == sorted(i for i in ids for _ in range(2))
    for body in script.bodies:
        assert body["skip_special_tokens"] is False  # here too, a marker that is not an end is text
        assert body["stop_token_ids"] == speaker.ends(chat=True)
        assert len(body["stop_token_ids"]) == 2
        assert (body["ignore_eos"], body["top_k"], body["min_tokens"], body["repetition_penalty"]) == (True, 3, 2, 1.0)


def test_transformers_is_sent_its_own_settings_one_request_at_a_time(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, kind="transformers", folder=str(folder / "model"))
    generate(server, folder, tmp_path / "out.jsonl")
    ends = open_speaker(str(folder / "model")).ends(chat=True)
    for body in script.bodies:
        asked = json.loads(body["generation_config"])
        assert {key: value for key, value in asked.items() if key not in _PLAIN} == {
            "max_new_tokens": 5,
            "min_new_tokens": 0,
            "do_sample": True,
            "eos_token_id": ends,
            "pad_token_id": ends[0],
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }
        assert body.keys() == {"model", "messages", "generation_config", "seed"}
    assert script.most_at_once == 1
    with pytest.raises(AfzalError, match="one stream of random numbers"):
        generate(
            server_file(tmp_path / "s.yaml", script, kind="transformers", folder=str(folder), concurrency=2), folder
        )


def test_the_settings_of_a_folder_do_not_change_what_transformers_serve_samples(script, folder, tmp_path):
    """As the server handles a request: missing settings come from the folder's generation_config.json."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    generate(server_file(tmp_path / "s.yaml", script, kind="transformers", folder=str(folder / "model")), folder)
    asked = json.loads(script.bodies[0]["generation_config"])
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    of_folder = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.3, "typical_p": 0.5}
    of_folder |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.3}
    of_folder |= {"encoder_no_repeat_ngram_size": 2, "suppress_tokens": [7], "begin_suppress_tokens": [8]}
    of_folder |= {"epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "min_length": 9, "guidance_scale": 2.0, "num_beams": 2}
    model.generation_config = GenerationConfig(**of_folder)
    heard: list[list[torch.Tensor]] = []
    for settings in (GenerationConfig(**asked), GenerationConfig(eos_token_id=asked["eos_token_id"], max_new_tokens=5)):
        ids = torch.tensor([[5, 6, 5, 6]])
        torch.manual_seed(0)
        out = model.generate(
            ids, generation_config=settings, output_scores=True, output_logits=True, return_dict_in_generate=True
        )
        heard.append([bent[:1] - plain[:1] for bent, plain in zip(out.scores, out.logits, strict=True)])
    told, untold = ([step.nan_to_num().abs().max().item() for step in steps] for steps in heard)
    assert max(told) == 0.0  # unchanged logits at temperature 1
    assert max(untold) > 1.0


@pytest.mark.parametrize(
    ("given", "told"), [({}, True), ({"n": 1, "temperature": 0.0}, False), ({"n": 1}, False), ({"prompt": "q"}, False)]
)
def test_a_server_that_does_not_sample_is_reported(script, folder, tmp_path, capsys, given, told):
    script.says = lambda body: "the same"
    given = given | ({"prompts": None} if "prompt" in given else {})
    generate(server_file(tmp_path / "s.yaml", script), folder, **given)
    assert ("the server may not sample" in capsys.readouterr().err) is told


def test_a_plain_prompt_is_continued(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script)
    generate(server, folder, tmp_path / "out.jsonl", prompts=str(folder / "plain.jsonl"))
    assert {path for path, _, _ in script.seen} == {"/v1/completions"}
    assert Counter(body["prompt"] for body in script.bodies) == {"q0": 2, "q1": 2, "q2": 2}


@pytest.mark.parametrize(
    ("faults", "calls"),
    [
        (["429"], 7),
        (["500", "503"], 8),
        (["html"], 7),
        (["cut"], 7),
        (["open"], 7),
        (["502", "html", "cut", "504"], 10),
    ],
)
def test_each_fault_costs_one_request_and_no_answer(script, folder, tmp_path, faults, calls):
    script.plan[:] = faults
    server = server_file(tmp_path / "s.yaml", script, concurrency=1)
    rows = generate(server, folder, tmp_path / "out.jsonl")
    assert len(script.seen) == calls
    assert len({row["completion"] for row in rows}) == 6


def test_tries_are_bounded_and_nothing_more_is_sent(script, folder, tmp_path):
    script.plan[:] = ["500"] * 99
    server = server_file(tmp_path / "s.yaml", script, concurrency=1, attempts=3)
    with pytest.raises(AfzalError, match="no reply in 3 tries"):
        generate(server, folder, tmp_path / "out.jsonl")
    assert len(script.seen) == 3


def test_requests_at_once_are_bounded(script, folder, tmp_path):
    generate(server_file(tmp_path / "s.yaml", script, concurrency=2), folder, tmp_path / "out.jsonl", n=8)
    assert len(script.seen) == 24
    assert script.most_at_once <= 2


def test_a_stopped_command_asks_only_what_has_no_reply(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, concurrency=1)
    script.stop_after = 4
    with pytest.raises(AfzalError, match="status 401"):
        generate(server, folder, tmp_path / "out.jsonl")
    script.stop_after = None
    rows = generate(server, folder, tmp_path / "out.jsonl")
    assert len(script.seen) == 5 + 2
    assert not (tmp_path / "out.jsonl.replies.sqlite").exists()
    whole = generate(server, folder, tmp_path / "again.jsonl")
    assert [row["completion"] for row in rows] == [row["completion"] for row in whole]


def test_how_an_answer_ended_is_kept_and_reported(script, folder, tmp_path, capsys):
    for said, told in (("length", " cut at "), ("content_filter", "none cut, 3 ended by the server in another way")):
        script.finish, out = said, tmp_path / f"{said}.jsonl"
        line = ["generate", "--model", server_file(tmp_path / "s.yaml", script), "--out", str(out)]
        assert main([*line, "--prompts", str(folder / "talks.jsonl")]) == 0
        assert {json.loads(row)["stop"] for row in out.read_text().splitlines()} == {said}
        assert told in capsys.readouterr().out


def test_a_full_disk_leaves_no_part_of_the_answers(script, folder, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    line = ["generate", "--model", server_file(tmp_path / "s.yaml", script), "--out", str(tmp_path / "a.jsonl")]
    line += ["--prompts", str(folder / "talks.jsonl")]
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", full)
        assert main(line) == 2
    assert main(line) == 0  # no partial file blocks the next run


def test_the_key_reaches_the_server_and_no_file(script, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", KEY)
    server = server_file(tmp_path / "s.yaml", script, key_env="SERVED_KEY")
    script.stop_after = 3
    with pytest.raises(AfzalError) as failed:
        generate(server, folder, tmp_path / "out.jsonl")
    assert {key for _, _, key in script.seen} == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert all(KEY.encode() not in body for body in [*written, str(failed.value).encode()])
    monkeypatch.delenv("SERVED_KEY")
    with pytest.raises(AfzalError, match="SERVED_KEY is not set"):
        generate(server, folder)


@pytest.mark.parametrize(
    ("server", "asked", "said"),
    [
        ({}, {"top_k": 3}, "top_k: a server of kind openai has no such field"),
        ({}, {"min_new_tokens": 1}, "min_new_tokens: a server of kind openai"),
        ({"kind": "vllm"}, {}, "no folder provides them"),
        ({"reload": ["load", "it"]}, {}, "reload must name"),
    ],
)
def test_settings_that_a_server_cannot_take_are_refused(script, folder, tmp_path, server, asked, said):
    with pytest.raises(AfzalError, match=said):
        generate(server_file(tmp_path / "s.yaml", script, **server), folder, **asked)
    assert not script.seen


def test_settings_of_our_engine_are_refused_with_a_server(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script)
    with pytest.raises(AfzalError, match="dtype has no effect: a server writes the answers"):
        config.build(GenerateConfig, [Setting("model", server), Setting("prompt", "q"), Setting("dtype", "bf16")])


def test_another_model_or_another_template_behind_the_address_is_refused(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, kind="vllm", folder=str(folder / "model"))
    script.answers_as = "other"
    with pytest.raises(AfzalError, match="answers with the model other, not with m"):
        generate(server, folder, tmp_path / "out.jsonl")
    script.answers_as, script.prompt_tokens = None, 3
    with pytest.raises(AfzalError, match="reads prompt 0 as 3 tokens"):
        generate(server, folder, tmp_path / "out.jsonl")


def test_a_judge_compares_a_server_with_a_run(script, folder, tmp_path, capsys):
    server = server_file(tmp_path / "big.yaml", script)
    line = ["judge", server, "--against", str(folder / "model"), "--prompts", str(folder / "talks.jsonl")]
    line += ["--judge", "rule:longest", "--max-new-tokens", "3", "--out", str(tmp_path / "out"), "--resamples", "10"]
    assert main(line) == 0
    rows = (tmp_path / "out" / "rows.jsonl").read_text()
    assert '"big"' in rows
    assert "said " in rows
    asked = len(script.seen)
    assert main([*line[:-3], str(tmp_path / "out"), "--resamples", "20"]) == 0  # its answers are read back
    assert len(script.seen) == asked


def test_every_key_of_a_server_is_documented():
    page = Path("docs/servers.md").read_text()
    assert [key for key in ServerConfig.model_fields if f"| `{key}` |" not in page] == []


@pytest.mark.slow
def test_every_command_of_the_page_runs(script, folder, tmp_path, monkeypatch):
    page = Path("docs/servers.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVER_KEY", KEY)
    files = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for name, text in zip(("server.yaml", "rounds.yaml"), files, strict=True):
        Path(name).write_text(re.sub(r"http://\S+/v1", script.url, text))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q{k}"}) + "\n" for k in range(12)))
    Path("judge.yaml").write_text("kind: rule\nrule: longest\n")
    pair_file(Path("pairs.jsonl"), 16)
    common = ["--data", "pairs.jsonl", "--batch-size", "4", "--max-steps", "1", "--max-tokens", "64", "--device", "cpu"]
    for method in ("sft", "dpo", "reward"):
        assert main(["train", method, "--model", str(folder / "model"), *common, "--out", f"runs/{method}"]) == 0
    commands = re.findall(r"^    afzal (.*)$", page, re.MULTILINE)
    small = {"generate": "--max-new-tokens 5", "judge": "--max-new-tokens 5 --resamples 10"}
    small["iterate"] = "--max-new-tokens 5 -n 4 --no-require-eos --held-out 3 --held-out-samples 2 --batch-size 4"
    assert [command.split()[0] for command in commands] == ["generate", "judge", "iterate"]
    for command in commands:
        before = len(script.seen)
        assert main([*command.split(), *small[command.split()[0]].split()]) == 0, command
        assert len(script.seen) > before, command
    assert {body["model"] for body in script.bodies} == {"my-dpo", "my-sft"}


# --- rounds ---------------------------------------------------------------------------------------------------------


def rounds(folder: Path, out: Path, server: str, **given: Any) -> Path:
    from afzal.iterate import iterate

    pair_file(out.parent / "pairs.jsonl", 16)
    (out.parent / "r.py").write_text("def r(prompt, answer):\n    return float(sum(map(ord, answer)) % 97)\n")
    small = {"n": 3, "max_new_tokens": 5, "max_tokens": 64, "held_out": 3, "held_out_samples": 2, "rounds": 2}
    small |= {"batch_size": 4, "lr": 1e-3, "max_steps": 2, "eval_fraction": 0.0, "device": "cpu", "require_eos": False}
    base = {"model": str(folder / "model"), "prompts": str(out.parent / "pairs.jsonl"), "out": str(out)}
    base |= {"reward": f"{out.parent / 'r.py'}:r", "generator": server}
    asked = base | small | given
    with one_thread():
        return iterate(config.build(IterateConfig, [Setting(k, v) for k, v in asked.items()]))


def test_every_round_is_answered_by_its_own_policy(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script, kind="vllm", model="{policy}")
    rounds(folder, tmp_path / "out", server)
    names = Counter(body["model"] for body in script.bodies)
    first, second = str((folder / "model").resolve()), str((tmp_path / "out" / "rounds" / "001" / "run").resolve())
    assert names.keys() == {first, second}
    assert all(count % 3 == 0 for count in names.values())
    rows = [json.loads(line) for line in (tmp_path / "out/rounds/002/samples.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith("said ") and row["stop"] == "eos" for row in rows)


def test_a_reload_command_is_run_before_each_round(script, folder, tmp_path):
    note = "import sys, pathlib; pathlib.Path(sys.argv[2]).open('a').write(sys.argv[1] + '\\n')"
    reload = ["python3", "-c", note, "{policy}", str(tmp_path / "loaded")]
    server = server_file(tmp_path / "s.yaml", script, reload=reload)
    rounds(folder, tmp_path / "out", server, rounds=1)
    assert (tmp_path / "loaded").read_text().splitlines() == [str((folder / "model").resolve())]


def test_a_reload_command_that_fails_stops_before_anything_is_asked(script, folder, tmp_path):
    reload = ["python3", "-c", "import sys; sys.exit('no such adapter')", "{policy}"]
    with pytest.raises(AfzalError, match="no such adapter"):
        rounds(folder, tmp_path / "out", server_file(tmp_path / "s.yaml", script, reload=reload))
    assert not script.seen


def test_one_set_of_weights_for_several_rounds_is_refused(script, folder, tmp_path):
    server = server_file(tmp_path / "s.yaml", script)
    with pytest.raises(AfzalError, match="with the same weights"):
        rounds(folder, tmp_path / "out", server)
    with pytest.raises(AfzalError, match="folder has no effect"):
        rounds(folder, tmp_path / "out", server_file(tmp_path / "s.yaml", script, folder="x", model="{policy}"))
    assert not script.seen


def test_prompts_that_the_server_cannot_answer_are_refused_before_any_work(script, folder, tmp_path, capsys):
    spaced = llama_tokenizer(template=CHATML)
    model = model_folder(tmp_path / "model", vocab_size=len(spaced))
    spaced.save_pretrained(model)
    server = server_file(tmp_path / "s.yaml", script, kind="transformers", model="{policy}")
    with pytest.raises(AfzalError, match="drop the space between a plain prompt and its answer"):
        rounds(folder, tmp_path / "out", server, model=str(model))
    with pytest.raises(AfzalError, match="top_k: a server of kind openai has no such field"):
        rounds(folder, tmp_path / "out", server_file(tmp_path / "o.yaml", script, model="{policy}"), top_k=5)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    line = f"iterate --model {model} --prompts {tmp_path}/pairs.jsonl --reward {tmp_path}/r.py:r --rounds 1"
    line += f" --max-new-tokens 5 --out {tmp_path}/out --dry-run --generator"
    assert main([*line.split(), server]) == 2
    assert "drop the space" in capsys.readouterr().err
    assert main([*line.split(), server_file(tmp_path / "v.yaml", script, kind="vllm")]) == 0
    assert not (tmp_path / "out").exists()
    assert not script.seen


def test_what_a_filter_withheld_is_never_trained_on(script, folder, tmp_path):
    script.finish = "content_filter"
    server = server_file(tmp_path / "s.yaml", script)
    rounds(folder, tmp_path / "out", server, rounds=1)
    lost = [json.loads(line) for line in (tmp_path / "out/rounds/001/rejected.jsonl").read_text().splitlines()]
    assert Counter(row["reason"] for row in lost)["withheld"] == len(script.seen)
    assert not (tmp_path / "out/rounds/001/pairs.jsonl").read_text()


# --- transformers serve ---------------------------------------------------------------------------------------------


def ending_model(path: Path) -> Path:
    """A random model whose greedy answer to ``q0`` ends, after a few tokens, with the template's end of turn.

    Its own generation settings name another end, so only an engine that gets the template's end stops there.
    """
    from transformers import AutoModelForCausalLM

    chat = byte_tokenizer(template=CHATML)
    model_folder(path, vocab_size=len(chat), initializer_range=0.3)
    chat.save_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.tensor([open_speaker(str(path)).encode_prompts([(Message("user", "q0"),)])[0].tolist()])
    said = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
    step = next(k for k in range(3, 12) if said[k] not in said[:k])
    end = chat.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        model.lm_head.weight[[said[step], end]] = model.lm_head.weight[[end, said[step]]]
    model.save_pretrained(path)
    return path


@pytest.mark.slow
def test_transformers_serve_stops_where_our_engine_does_and_its_seeds_count(tmp_path):
    model = ending_model(tmp_path / "model")
    greedy: dict[str, Any] = {"prompts": None, "prompt": "q0", "temperature": 0.0, "n": 1, "max_new_tokens": 24}
    own = generate(str(model), tmp_path, tmp_path / "own.jsonl", **greedy)
    assert (own[0]["stop"], own[0]["tokens"] > 3) == ("eos", True)
    with serving(model) as (url, _):
        told: dict[str, Any] = {"kind": "transformers", "model": str(model), "folder": str(model)}
        served = generate(server_file(tmp_path / "s.yaml", url, **told), tmp_path, tmp_path / "t.jsonl", **greedy)
        assert served == own
        by_text = {"model": str(model), "folder": str(model), "concurrency": 1}
        stopped = generate(server_file(tmp_path / "s.yaml", url, **by_text), tmp_path, tmp_path / "o.jsonl", **greedy)
        assert stopped[0]["stop"] == "eos"
        untold = server_file(tmp_path / "s.yaml", url, model=str(model))
        ran_on = generate(untold, tmp_path, tmp_path / "u.jsonl", **greedy)
        assert (ran_on[0]["stop"], ran_on[0]["tokens"]) == ("length", 24)
        drawn = {}
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            asked = {**greedy, "temperature": 1.0, "n": 4, "seed": seed}
            server = server_file(tmp_path / "s.yaml", url, **told)
            rows = generate(server, tmp_path, tmp_path / f"{name}.jsonl", **asked)
            drawn[name] = [row["completion"] for row in rows]
        assert drawn["a"] == drawn["b"] != drawn["c"]
        assert len(set(drawn["a"])) > 1
        other = server_file(tmp_path / "s.yaml", url, **told | {"model": "another"})
        with pytest.raises(AfzalError, match="refuses the request"):
            generate(other, tmp_path, tmp_path / "x.jsonl", **greedy)


@pytest.mark.slow
def test_rounds_of_transformers_serve_follow_the_policy(tmp_path):
    model = ending_model(tmp_path / "model")
    with serving() as (url, _):
        server = server_file(tmp_path / "s.yaml", url, kind="transformers", model="{policy}")
        out = rounds(tmp_path, tmp_path / "out", server, model=str(model), lr=0.05, temperature=0.7)
    for number in ("001", "002"):
        rows = [json.loads(line) for line in (out / "rounds" / number / "samples.jsonl").read_text().splitlines()]
        assert len({row["text"] for row in rows}) > 3
