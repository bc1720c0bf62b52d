"""The benchmark of all methods: its rows, pacing and table, and a complete run on a small model."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.gpu.install import ROOT
from benchmarks.methods_step import pacing, table, work
from benchmarks.methods_step.__main__ import sound

TINY = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "vocabulary": 50}


def job(**changes) -> work.Work:
    given = {"folder": "", "items": 8, "updates": 2, "dtype": "fp32", "vocabulary": 50, "tokens": 5, "shared": "absent"}
    return work.Work(**(given | changes))


def test_every_method_has_the_same_texts_and_a_short_first_update():
    pairs = work.examples("reward", job())
    assert len(pairs) == 16
    assert all(len(row["prompt"].split()) <= 64 and len(row["chosen"].split()) <= 16 for row in pairs[:8])
    assert max(len(row["prompt"].split()) for row in pairs[8:]) > 64
    assert work.examples("orpo", job()) == work.examples("simpo", job()) == pairs
    shown = work.examples("sft", job())
    assert [row["completion"] for row in shown] == [row["chosen"] for row in pairs]
    labelled = work.examples("kto", job())
    for row, pair in zip(labelled, pairs, strict=True):
        assert row["completion"] == pair["chosen" if row["label"] else "rejected"]
    assert sum(row["label"] for row in labelled) == 8


def test_items_are_answers_where_the_policy_writes_them():
    rows = work.examples("grpo", job())
    assert len(rows) == 2 * 8 // work.ANSWERS
    assert set(rows[0]) == {"prompt"}


def test_words_below_two_are_never_written_and_the_reward_is_the_share_of_even_words():
    words = [int(w) for row in work.examples("sft", job()) for w in (row["prompt"] + row["completion"]).split()]
    assert min(words) >= 2
    assert max(words) < 50
    assert work.even("", " 2 3 4 8 <pad>") == 0.75
    assert work.even("", "") == 0
    assert work.evens(["a", "b"], ["2", "3"], trainer_state=None) == [1, 0]


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> work.Work:
    """Work on a tiny model, with steps large enough to show in the losses; whatever a side patches is restored."""
    from afzal.iterate import answers
    from afzal.recipes import rollout
    from benchmarks.methods_step import plain, sides

    for module, name in ((rollout, "sample"), (answers, "sample")):
        monkeypatch.setattr(module, name, getattr(module, name))
    for module in (plain, sides):
        monkeypatch.setattr(module, "LR", 3e-3)
        monkeypatch.setattr(module, "PPO", work.PPO | {"value_lr": 6e-3})
    work.save_models(tmp_path, TINY)
    return job(folder=str(tmp_path), items=4)


def test_ppo_and_the_plain_loop_have_the_same_losses_in_every_pass_over_the_same_answers(tiny):
    from benchmarks.methods_step import plain, sides

    once = dataclasses.replace(tiny, updates=1)
    ours, theirs = [], []
    sides.afzal("ppo", once, ours.append)
    plain.ppo(once, theirs.extend)
    assert len(ours) == len(theirs) == 4
    for own, (policy, value) in zip(ours, theirs, strict=True):
        assert own["loss/ppo"] == pytest.approx(policy, rel=1e-4, abs=1e-6)
        assert own["loss/value"] == pytest.approx(value, rel=1e-4)
    assert abs(theirs[3][0] - theirs[0][0]) > 0.01  # the steps were large enough to compare


def test_the_plain_loop_writes_answers_that_end_at_their_first_end_mark(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.methods_step import plain

    policy = AutoModelForCausalLM.from_pretrained(f"{tiny.folder}/policy")
    asked = AutoTokenizer.from_pretrained(f"{tiny.folder}/policy", padding_side="left")(
        [" 2", " 3 4"], return_tensors="pt", padding=True
    )
    torch.manual_seed(0)
    ids, real = plain.write(policy, asked, ["a", "b"], {}, 200)
    for row, mask in zip(ids.tolist(), real.tolist(), strict=True):
        ends = row.index(plain.EOS) + 1 if plain.EOS in row else len(row)
        assert mask == [True] * ends + [False] * (len(row) - ends)
    assert plain.EOS in ids


def test_the_rounds_take_the_prompts_in_the_order_of_the_other_sides_and_start_from_given_answers(tiny, monkeypatch):
    from afzal.iterate import answers
    from benchmarks.methods_step import sides

    drawn, asked = answers.sample, []

    def recorded(model, prompts, **settings):
        asked.extend(" " + " ".join(map(str, ids)) for ids in prompts)
        return drawn(model, prompts, **settings)

    monkeypatch.setattr(answers, "sample", recorded)
    losses = []

    def heard(loss):
        losses.append(loss)
        if len(losses) == 2:
            raise _Enough

    with pytest.raises(_Enough):
        sides.rounds(tiny, heard)
    rows = [row["prompt"] for row in work.examples("online-dpo", tiny)]
    assert len(rows) == 4
    assert asked[:3] == [" 2 3", *rows[2:]]  # held-out prompts are measured first; the first round has given answers
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[1] != losses[0]


class _Enough(BaseException):
    """Ends the rounds immediately."""


@pytest.mark.slow
def test_online_dpo_and_trl_have_the_same_losses_on_the_same_answers(tiny, monkeypatch):
    pytest.importorskip("trl")
    from benchmarks.methods_step import sides

    def of_all_updates(method, given):
        return work.given_answers(method, dataclasses.replace(given, items=given.items * given.updates, updates=1))

    known = of_all_updates("online-dpo", tiny)
    assert known.keys() == {row["prompt"] for row in work.examples("online-dpo", tiny)}
    monkeypatch.setattr(sides, "given_answers", of_all_updates)
    ours, theirs = [], []
    sides.trl("online-dpo", tiny, theirs.append, best=True)
    sides.rounds(tiny, ours.append)
    assert len(ours) == 2
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(ours[1] - ours[0]) > 1e-3


def side(tmp_path, code: str, name: str = "side") -> pacing.Side:
    """A process that runs ``code``, in which ``pace`` is its pacing object."""
    whole = f"from benchmarks.methods_step import pacing\nimport time\npace = pacing.of_this_process()\n{code}"
    return pacing.Side([sys.executable, "-c", whole], tmp_path / f"{name}.log", {**os.environ, "PYTHONPATH": str(ROOT)})


def test_sides_take_turns_and_what_they_print_is_kept_apart(tmp_path):
    code = "open({0!r}, 'a').write({1!r}); print('noise')\npace.ended(float(k))"
    order = str(tmp_path / "order")
    sides = {}
    for name in "ab":
        body = "".join(f"    {line}\n" for line in code.format(order, name).split("\n"))
        sides[name] = side(tmp_path, f"for k in range(9):\n{body}", name)
    figures = pacing.take_turns(sides, updates=3, share=60, until=time.monotonic() + 60)
    for one in sides.values():
        one.stop()
    text = (tmp_path / "order").read_text()
    assert sorted(text[:2]) == ["a", "b"]  # both were set up first; then they took turns
    assert text[2:] == "ababab"
    assert figures["left_out"] == {}
    assert figures["a"]["first_loss"] == 0.0
    assert len(figures["a"]["clock"]) == len(figures["b"]["processor"]) == 3
    assert figures["a"]["peak_bytes"] > 1e6
    assert "noise" in (tmp_path / "a.log").read_text()


def test_a_share_that_is_spent_ends_the_rounds_after_the_first(tmp_path):
    one = side(tmp_path, "while True: pace.ended(0.5)")
    figures = pacing.take_turns({"a": one}, updates=5, share=0, until=time.monotonic() + 60)
    one.stop()
    assert len(figures["a"]["clock"]) == 1


def test_sides_that_fail_or_are_late_are_left_out_with_their_reason(tmp_path):
    sides = {
        "good": side(tmp_path, "while True: pace.ended(0.5)", "good"),
        "bad": side(tmp_path, "raise ValueError('no room')", "bad"),
        "falls": side(tmp_path, "pace.ended(1.0)\nraise ValueError('later')", "falls"),
    }
    figures = pacing.take_turns(sides, updates=2, share=60, until=time.monotonic() + 60)
    for one in sides.values():
        one.stop()
    assert figures["left_out"] == {"bad": "ValueError: no room", "falls": "ValueError: later"}
    assert "falls" not in figures
    assert len(figures["good"]["clock"]) == 2
    late = side(tmp_path, "time.sleep(60)", "late")
    figures = pacing.take_turns({"late": late}, updates=1, share=1, until=time.monotonic())
    assert figures == {"left_out": {"late": "out of time"}}
    assert late.process.returncode is not None


def test_a_pace_gives_the_processor_s_seconds_of_an_update_and_none_of_the_first():
    said = io.StringIO()
    pace = pacing.Pace(io.StringIO("go\ngo\n"), said)
    pace.ended(2.0)
    began = time.process_time()
    while time.process_time() - began < 0.05:
        pass
    pace.ended(1.5)
    first, second = map(json.loads, said.getvalue().splitlines())
    assert "clock" not in first
    assert first["loss"] == 2.0
    assert 0.03 <= second["processor"] < 5  # the CPU clock ticks in hundredths of a second
    assert second["clock"] > 0.04


def taken(loss: float, *seconds: float, memory: float = 1e9) -> dict:
    return {"first_loss": loss, "processor": [2 * s for s in seconds], "clock": list(seconds), "peak_bytes": memory}


ABOUT = {
    "date": "2026-01-02",
    "command": "python -m benchmarks.methods_step",
    "device": "A processor",
    "threads": 2,
    "versions": {"afzal": "0.1.0"},
    "load": 0.1,
    "dtype": "fp32",
    "parameters": 58e6,
    "items": 8,
    "answers": 4,
    "tokens": 59,
    "lengths": "real rows, scaled",
    "tolerance": 1e-4,
    "sides": ["afzal", "trl", "trl-best"],
}


def content(**methods) -> dict:
    empty = {"left_out": {}, "differs": "", "disagreement": ""}
    return {"about": ABOUT, "methods": {name: empty | sides for name, sides in methods.items()}}


def test_the_table_has_medians_and_ratios_of_the_same_updates():
    peer = taken(8.0, 10, 8, 30, memory=3e9)
    peer["processor"] = [4, 4, 80]
    results = content(sft={"afzal": taken(8.0, 1, 2, 4), "trl": peer, "left_out": {"trl-best": "no room"}})
    text = table.markdown(results)
    wanted = "| SFT | 3 | 4.00 / 2.00 | 2.0x / 7.5x |  | 1.00, 3.00, - GB | 8, 8, - |"
    assert wanted in text.splitlines()
    assert "Left out: SFT, trl-best: no room" in text
    assert "plain" not in text
    beside = content(ppo={"afzal": taken(8.0, 1), "plain": taken(8.0, 3), "remark": "four passes."})
    beside["about"] = ABOUT | {"sides": ["afzal", "trl", "plain"]}
    lines = table.markdown(beside).splitlines()
    assert "| PPO | 1 | 2.00 / 1.00 |  | 3.0x / 3.0x | 1.00, -, 1.00 GB | 8, -, 8 |" in lines
    assert "PPO: four passes." in lines
    other = table.markdown(content(orpo={"afzal": taken(8.0, 1), "trl": taken(6.0, 2), "differs": "another mean"}))
    assert "| 2.0x / 2.0x |  | 1.00, 1.00, - GB | not compared |" in other
    assert "ORPO: losses are not compared: another mean." in other
    assert "2026-01-02, A processor, 2 threads" in text
    assert "    python -m benchmarks.methods_step\n" in text


def test_losses_that_differ_are_reported_and_fail():
    near, far = taken(8.0005, 1), taken(8.01, 1)
    assert table.disagreement({"differs": "", "afzal": taken(8.0, 1), "trl": near}, 1e-4) == ""
    wrong = table.disagreement({"differs": "", "afzal": taken(8.0, 1), "trl": far}, 1e-4)
    assert wrong.startswith("the sides do not compute the same loss")
    assert table.disagreement({"differs": "by design", "afzal": taken(8.0, 1), "trl": far}, 1e-4) == ""
    assert table.disagreement({"differs": "", "afzal": taken(float("nan"), 1), "trl": near}, 1e-4)
    assert sound(content(sft={"afzal": near}))
    assert not sound(content(sft={"afzal": near, "disagreement": wrong}))
    assert not sound(content(sft={"left_out": {"afzal": "it fell"}}))
    assert f"**SFT: {wrong}**" in table.markdown(content(sft={"afzal": near, "disagreement": wrong}))


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["", "trl-best"])
def test_a_small_run_gives_every_method_s_figures_and_the_losses_agree(tmp_path, peer):
    if peer and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed here (make peers)")
    out = tmp_path / "figures/methods.json"
    command = [sys.executable, "-m", "benchmarks.methods_step", "--quick", "--force", "--dtype", "fp32"]
    peers = ["trl-best", "plain"] if peer else ["plain"]
    command += ["--updates", "1", "--minutes", "60", "--threads", "1", "--sides", "afzal", *peers]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert list(results["methods"]) == list(work.METHODS)
    for method, figures in results["methods"].items():
        assert figures["left_out"] == {}, method
        for name in {"afzal", *peers} & set(work.METHODS[method].sides):
            assert figures[name]["processor"][0] > 0
    assert results["methods"]["kto"]["afzal"]["first_loss"] != pytest.approx(0.5, abs=1e-3)  # policy != reference
    assert done.stdout.rstrip().endswith(table.markdown(results))
