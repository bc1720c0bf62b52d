"""No secret in a recorded command line or configuration; everything else stays readable."""

import sys

import pytest

from afzal import runs

CANARIES = {
    "flag": "canary-flag-1",
    "equals": "canary-equals-2",
    "hub": "hf_" + "A1b2C3d4" * 4,
    "openai": "sk-proj-" + "x" * 32,
    "github": "ghp_" + "Z9" * 18,
    "login": "canary-login-6",
    "query": "canary-query-7",
    "environment": "canary-environment-8",
}


def test_every_kind_of_secret_is_hidden_from_the_command_line(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", CANARIES["environment"])
    line = runs.redact_arguments(
        [
            *("afzal", "train", "dpo", "--max-tokens", "512", "--beta=0.1", "--tokenizer", "gpt2"),
            *("--hub-token", CANARIES["flag"], f"--api-key={CANARIES['equals']}"),
            *("--note", CANARIES["hub"], f"x={CANARIES['openai']}", CANARIES["github"]),
            *("--proxy", f"https://me:{CANARIES['login']}@proxy:8080/"),
            *("--url", f"https://judge/v1?a=1&token={CANARIES['query']}&b=2", CANARIES["environment"] + "/suffix"),
            *("track.wandb_api_key=" + CANARIES["flag"], "--eos-token", "</s>"),
        ]
    )
    for kind, secret in CANARIES.items():
        assert secret not in line, kind
    for kept in ("--max-tokens 512", "--beta=0.1", "--tokenizer gpt2", "a=1&token=", "&b=2", "--hub-token", "</s>"):
        assert kept in line


def test_a_flag_without_value_hides_nothing_else():
    assert runs.redact_arguments(["afzal", "--token", "--beta", "0.1"]) == "afzal --token --beta 0.1"


def test_configurations_are_hidden_at_any_depth():
    config = {
        "judge": {"apiKey": "canary", "url": "https://u:canary@h/"},
        "tokens": 3,
        "max_tokens": "512",
        "secrets": [{"password": "canary"}],
        "auth": {"value": "canary"},
        "pad_token": "<pad>",
        "beta": 0.1,
    }
    shown = runs.redact_config(config)
    assert "canary" not in str(shown)
    assert (shown["max_tokens"], shown["pad_token"], shown["beta"], shown["tokens"]) == ("512", "<pad>", 0.1, 3)


@pytest.mark.parametrize("name", ["--hub-token", "HF_TOKEN", "apiKey", "aws_secret_access_key", "judge.password"])
def test_secret_names(name):
    from afzal.runs.redact import is_secret_name

    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "eos_token", "keyboard", "author", "key", "n_tokens"])
def test_plain_names(name):
    from afzal.runs.redact import is_secret_name

    assert not is_secret_name(name)


def test_a_run_folder_holds_no_secret(tmp_path, monkeypatch):
    """Six canaries in flags, configuration and environment: none in any file of the folder."""
    monkeypatch.setenv("HF_TOKEN", CANARIES["environment"])
    monkeypatch.setattr(
        sys,
        "argv",
        ["/usr/bin/afzal", "train", "--hub-token", CANARIES["flag"], "--x", CANARIES["hub"], CANARIES["environment"]],
    )
    with runs.create(tmp_path / "r", {"hub": {"token": CANARIES["equals"]}, "y": CANARIES["openai"], "b": 1}) as run:
        run.update(step=1, command=f"afzal train --hub-token {CANARIES['flag']} --note {CANARIES['github']}")
        run.update(model={"url": f"https://u:{CANARIES['login']}@h/?token={CANARIES['query']}"})
        everything = b"".join(f.read_bytes() for f in run.path.rglob("*") if f.is_file()).decode()
    for kind, secret in CANARIES.items():
        assert secret not in everything, kind
    assert "afzal train --hub-token" in everything
