"""Every refusal, word for word: what, where, and how to fix it."""

from __future__ import annotations

from pathlib import Path

import pytest

from afzal import config
from afzal.errors import AfzalError

HEAD = "method: dpo\nmodel: M\ndata: D\n"

FILES = {
    "slip": (HEAD + "bata: 0.2\n", "run.yaml:4: unknown setting 'bata' (did you mean beta?)"),
    "foreign name": (HEAD + "learning_rate: 1e-6\n", "run.yaml:4: unknown setting 'learning_rate' (did you mean lr?)"),
    "foreign name of a length": (
        "method: rloo\nmodel: M\ndata: D\nreward: m:f\nmax_new_tokens: 9\n",
        "run.yaml:5: unknown setting 'max_new_tokens' (did you mean sample_tokens?)",
    ),
    "nothing near": (HEAD + "xyzzy: 1\n", "run.yaml:4: unknown setting 'xyzzy'"),
    "of another method": (
        HEAD + "desirable_weight: 2\n",
        "run.yaml:4: the setting 'desirable_weight' has no effect on dpo (only on kto)\n  try: leave it out",
    ),
    "sft has no beta": (
        "method: sft\nmodel: M\ndata: D\nbeta: 0.2\n",
        "run.yaml:4: the setting 'beta' has no effect on sft (only on dpo, ipo, kto, irl)\n  try: leave it out",
    ),
    "ipo is called ipo": (
        "method: ipo\nmodel: M\ndata: D\ndesirable_weight: 2\n",
        "run.yaml:4: the setting 'desirable_weight' has no effect on ipo (only on kto)\n  try: leave it out",
    ),
    "prefer has objective_arg": (
        "method: prefer\nmodel: M\ndata: D\nbeta: 0.2\n",
        "run.yaml:4: the setting 'beta' has no effect on prefer (only on dpo, ipo, kto, irl)\n"
        "  try: objective_arg: {beta: ...}, if the objective has it",
    ),
    "a reference that cannot follow": (
        HEAD + "reference: cached\nreference_sync_steps: 5\n",
        "run.yaml:5: reference_sync_steps needs a frozen copy of all weights that can move; the reference is cached",
    ),
    "mixup of nothing": (
        HEAD + "reference_mixup: 1\n",
        "run.yaml:4: reference_mixup has no effect: reference_sync_steps is not set",
    ),
    "a constraint that nothing holds": (
        "method: prefer\nmodel: M\ndata: D\nconstraint: unsafe_mass\nconstraint_tokens: [a]\n",
        "run.yaml:4: constraint needs exactly one of constraint_weight (a penalty) and constraint_dual_lr (a "
        "multiplier)",
    ),
    "a constraint without its data": (
        "method: prefer\nmodel: M\ndata: D\nconstraint: unsafe_likelihood\nconstraint_weight: 1\n",
        "run.yaml:4: constraint unsafe_likelihood needs constraint_data",
    ),
    "parts of another constraint": (
        "method: prefer\nmodel: M\ndata: D\nconstraint: m:f\nconstraint_weight: 1\nconstraint_score: m:g\n",
        "run.yaml:6: constraint_score has no effect: the constraint is m:f",
    ),
    "parts of no constraint": (
        "method: prefer\nmodel: M\ndata: D\nconstraint_bound: 1\n",
        "run.yaml:4: constraint_bound has no effect: there is no constraint",
    ),
    "unknown constraint": (
        "method: prefer\nmodel: M\ndata: D\nconstraint: mass\nconstraint_weight: 1\n",
        "run.yaml:4: constraint cannot be 'mass'; choose one of unsafe_mass, unsafe_likelihood, black_box, "
        "module:function or file.py:function",
    ),
    "learned_lr of nothing": (
        "method: prefer\nmodel: M\ndata: D\nlearned_lr: 0.1\n",
        "run.yaml:4: learned_lr has no effect: learn names no parameter",
    ),
    "nothing learned at a rate of 0": (
        "method: prefer\nmodel: M\ndata: D\nlearn: nu\nlr: 0\n",
        "run.yaml:4: learn has no effect: lr is 0, and learned_lr follows its schedule",
    ),
    "arguments": (
        "method: prefer\nmodel: M\ndata: D\nobjective_arg: beta\n",
        "run.yaml:4: objective_arg cannot be 'beta'; write it as name=value,name=value, such as beta=0.2",
    ),
    "wrong type": (
        HEAD + "batch_size: many\n",
        "run.yaml:4: batch_size cannot be 'many'; wanted: a whole number of at least 1",
    ),
    "fraction": (
        HEAD + "batch_size: 2.5\n",
        "run.yaml:4: batch_size cannot be 2.5; wanted: a whole number of at least 1",
    ),
    "truth": (HEAD + "epochs: yes\n", "run.yaml:4: epochs cannot be true; wanted: a number greater than 0"),
    "out of range": (HEAD + "beta: -1\n", "run.yaml:4: beta cannot be -1; wanted: a number greater than 0"),
    "two bounds": (
        HEAD + "eval_fraction: 1\n",
        "run.yaml:4: eval_fraction cannot be 1; wanted: a number of at least 0 and below 1",
    ),
    "not a number": (HEAD + "lr: .nan\n", "run.yaml:4: lr cannot be nan; wanted: a number of at least 0"),
    "optional": (
        HEAD + "max_steps: 0\n",
        "run.yaml:4: max_steps cannot be 0; wanted: a whole number of at least 1 or null",
    ),
    "choice": (
        HEAD + "lr_schedule: cosin\n",
        "run.yaml:4: lr_schedule cannot be 'cosin'; wanted: one of constant, linear, cosine (did you mean cosine?)",
    ),
    "device": (HEAD + "device: gpu\n", "run.yaml:4: device cannot be 'gpu'; wanted: auto, cpu, cuda, cuda:1 or mps"),
    "number for text": (HEAD + "axis: 3\n", "run.yaml:4: axis cannot be 3; wanted: text or null"),
    "reference": (
        HEAD + "reference: cache\n",
        "run.yaml:4: reference cannot be 'cache'; "
        "it is neither frozen, cached, adapter_off nor a model (did you mean cached?)",
    ),
    "no adapter": (
        HEAD + "reference: adapter_off\n",
        "run.yaml:4: reference adapter_off needs an adapter to switch off: set lora_rank or adapter",
    ),
    "cache of nothing": (
        HEAD + "reference_cache: c\n",
        "run.yaml:4: reference_cache has no effect: the reference is frozen, not cached",
    ),
    "lora parts": (HEAD + "lora_alpha: 8\n", "run.yaml:4: lora_alpha has no effect: lora_rank is not set"),
    "two held-out sets": (
        HEAD + "eval_data: H\neval_fraction: 0.2\n",
        "run.yaml:5: eval_fraction has no effect with eval_data: leave one of them out",
    ),
    "patience without data": (
        HEAD + "early_stop_patience: 2\neval_fraction: 0\n",
        "run.yaml:4: early_stop_patience has no effect: nothing is held out (eval_fraction is 0)",
    ),
    "rmsprop has no betas": (
        HEAD + "optimizer: rmsprop\nadam_beta1: 0.5\n",
        "run.yaml:5: adam_beta1 has no effect: the optimizer is rmsprop",
    ),
    "columns": (
        HEAD + "columns: chosen\n",
        "run.yaml:4: columns cannot be 'chosen'; "
        "write it as role=field,role=field, such as chosen=good,prompt=question",
    ),
    "missing": (
        "method: dpo\nmodel: M\n",
        "the setting 'data' is missing\n"
        "  try: set data (training data: a file, a folder or a hub id; the format is detected)",
    ),
    "several": (
        HEAD + "lr: fast\nseed: -1\n",
        "2 settings are wrong:\n"
        "  run.yaml:4: lr cannot be 'fast'; wanted: a number of at least 0\n"
        "  run.yaml:5: seed cannot be -1; wanted: a whole number of at least 0 and below 9.22337e+18",
    ),
    "a file for another command": (
        HEAD + "".join(f"unheard_of_{k}: 1\n" for k in range(12)),
        "12 settings are wrong:\n"
        + "".join(f"  run.yaml:{4 + k}: unknown setting 'unheard_of_{k}'\n" for k in range(10))
        + "  and 2 more",
    ),
    "unknown method": (
        "method: dpoo\nmodel: M\n",
        "run.yaml:1: unknown method 'dpoo' (did you mean dpo?)\n"
        "  try: choose one of sft, dpo, ipo, kto, prefer, meta, reward, irl, ppo, rloo, grpo, reinforce",
    ),
    "no method": (
        "model: M\n",
        "run.yaml: the setting 'method' is missing\n"
        "  try: add `method: dpo` (or sft, ipo, kto, prefer, meta, reward, irl, ppo, rloo, grpo, reinforce)",
    ),
    "twice": (
        HEAD + "model: N\n",
        "run.yaml:4: the setting 'model' is given twice\n  why: also at run.yaml:2\n  try: keep one of them",
    ),
    "syntax": (
        HEAD + "columns: {chosen: a\nlr: 1\n",
        "run.yaml:4: not valid YAML: expected ',' or '}', but got ':'\n  try: write one `key: value` per line",
    ),
    "a tab": (
        HEAD + "\tlr: 1\n",
        "run.yaml:4: not valid YAML: found character '\\t' that cannot start any token\n"
        "  try: write one `key: value` per line",
    ),
    "no mapping": ("- a\n- b\n", "run.yaml: no settings found\n  try: write one `key: value` per line"),
    "empty": ("", "run.yaml: no settings found\n  try: write one `key: value` per line"),
}


@pytest.mark.parametrize("name", FILES)
def test_messages_about_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text, said = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(AfzalError) as caught:
        config.load("run.yaml")
    assert str(caught.value) == said


OVERRIDES = {
    "bata=1": "command line: unknown setting 'bata' (did you mean beta?)",
    "beta": "command line: 'beta' is not a setting\n  try: write key=value, such as beta=0.2",
    "lr=fast": "command line: lr cannot be 'fast'; wanted: a number of at least 0",
    "lr=[": "command line: lr cannot be '['; wanted: a number of at least 0",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_messages_about_an_override(override: str, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(HEAD)
    with pytest.raises(AfzalError) as caught:
        config.load(path, [override])
    assert str(caught.value) == OVERRIDES[override]


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(AfzalError, match=r"no\.yaml: cannot read the configuration: No such file or directory"):
        config.load(tmp_path / "no.yaml")
    with pytest.raises(AfzalError, match="cannot read the configuration: Is a directory"):
        config.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"method: dpo\nmodel: caf\xe9\n")
    with pytest.raises(AfzalError, match=r"latin\.yaml: byte 22 is not UTF-8"):
        config.load(tmp_path / "latin.yaml")


def test_python_values_get_the_same_words():
    with pytest.raises(AfzalError) as caught:
        config.make("dpo", model="M", data="D", bata=3)
    assert str(caught.value) == "unknown setting 'bata' (did you mean beta?)"


def test_a_typo_in_the_path_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("judge.yaml").write_text("kind: rule\n")
    with pytest.raises(AfzalError) as refused:
        config.read_file("jugde.yaml")
    assert refused.value.remedy == "did you mean judge.yaml?"
