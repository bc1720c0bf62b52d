"""The contents of a run's page as plain text: one function per part of the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.config import method_in
from afzal.health import up_to_kept_step
from afzal.health.facts import referenced, unit_of, writes
from afzal.report.headline import Measure
from afzal.report.previews import previews
from afzal.report.run_files import RunFiles, lost_rows
from afzal.text import duration, is_number, number, plural, setting

Rows = list[tuple[str, str]]

_LONGEST_TEXT = 4000
_MOST_PROMPTS = 40
_EXAMPLES = 50
_ROUNDS = {"iterate": "iterative preference optimisation"}  # not a training method itself: it uses others
_GLOSSARY = (
    ("nat", "Unit of log-probability: ln 2 nats are one bit. Log-probs are summed over a response, its end included."),
    ("reward (implicit)", "β (log π − log π_ref) of a response: how much likelier training made it, times β."),
    (
        "reward accuracy",
        "Share of pairs in which the chosen response has the larger reward. Chance is 0.5; ties count ½.",
    ),
    ("margin", "Reward of the chosen response minus that of the rejected one."),
    (
        "KL to the start",
        "Expected log π − log π_start of the policy's own answers, in nats: how far it moved from the policy at the "
        "start of training. Summed over each answer from the exact KL of every next token.",
    ),
    ("β (beta)", "Strength of the pull towards the reference: larger keeps the policy nearer to it."),
    ("reference", "The policy before training; it stays fixed. At the first step, policy and reference are equal."),
    ("held out", "Rows that no update uses, split off by prompt so that no prompt is on both sides."),
    (
        "95% interval",
        "Over prompts, since rows of one prompt are not independent. It covers chance in the data, not bias.",
    ),
    ("perplexity", "exp of the mean loss per token: how many tokens the model wavers between."),
    ("gradient norm", "Euclidean length of the gradient before clipping."),
    ("z₀", "KTO's estimate of the KL to the reference, from responses paired with other prompts."),
    (
        "desirable, undesirable",
        "KTO's labels of single responses; they take the place of chosen and rejected in the curves.",
    ),
)

_OF_REFERENCE = {"β (beta)", "reference"}
_FREE_REWARD = ("reward", "What the objective makes of the log-prob of a response alone; there is no reference.")


def subtitle(facts: Mapping[str, Any]) -> str:
    """The method in words."""
    name, method = str(facts.get("method") or ""), method_in(facts)
    if method is None:
        return _ROUNDS.get(name, name or "unknown method")
    return method.title or f"preference optimisation, {_part(facts, 'objective').get('name') or 'unknown objective'}"


def overview(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> Rows:
    """The line of facts under the verdict."""
    model, data = _part(facts, "model"), _part(facts, "data")
    rows = [
        ("Model", _base(model.get("path"))),
        ("Parameters", _parameters(model)),
        ("Data", _base(data.get("source"))),
        ("Trained on", _count(data.get("train"), "item")),
        ("Held out", _count(data.get("eval"), "item")),
        ("Steps", _steps(facts)),
        ("Time", duration(facts.get("seconds")) if is_number(facts.get("seconds")) else ""),
        ("Rollouts", _rollout_shares(metrics, facts.get("seconds"))),
        ("Finished", str(facts.get("finished") or "")[:10]),
    ]
    return [(name, value) for name, value in rows if value]


def _rollout_shares(metrics: Sequence[Mapping[str, Any]], total: Any) -> str:
    """The shares of a run's time that its rollouts took, by stage; empty if it has none."""
    spent: dict[str, float] = {}
    for m in metrics:
        if m.get("kind") == "rollout":
            for name, seconds in m.items():
                if name.startswith("seconds/") and is_number(seconds):
                    stage = name.removeprefix("seconds/")
                    spent[stage] = spent.get(stage, 0.0) + seconds
    if not spent or not is_number(total) or total <= 0:
        return ""
    return ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in spent.items()) + " of the time"


def measured(numbers: Sequence[Measure], metrics: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The evaluations that the table compares, and their number of rows."""
    held_out = [m for m in up_to_kept_step(metrics, facts) if m.get("kind") == "eval"]
    if not numbers or not held_out:
        return ""
    n = held_out[-1].get("n")
    rows = f"{plural(int(n), 'held-out item')}; " if is_number(n) else ""
    if len(held_out) == 1:
        return f"{rows}one evaluation, at step {numbers[0].step_after}. In brackets: 95% intervals."
    steps = f"before is step {held_out[0].get('step')}, after is step {held_out[-1].get('step')}"
    kept_words = ", whose weights were kept" if is_number(facts.get("kept_step")) else ""
    return f"{rows}{steps}{kept_words}. In brackets: 95% intervals, where the run measured them."


def evaluations(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All evaluations as a table of text: columns and rows."""
    held_out = [m for m in metrics if m.get("kind") == "eval"]
    names = list(dict.fromkeys(k for m in held_out for k in m if k not in ("kind", "step")))
    rows = [[number(m.get("step")), *(number(m.get(k)) for k in names)] for m in held_out]
    return {"columns": ["step", *names], "rows": rows}


def samples(records: Sequence[Mapping[str, Any]], run: Path) -> list[dict[str, Any]]:
    """Prompts with their images and sounds, and their answers before and after, in order of appearance.

    A prompt is shown as the model read it. Rows of earlier versions have that as ``prompt``, the answer as ``text``.
    """
    by_prompt: dict[str, dict[str, Any]] = {}
    for s in records:
        rendered = s.get("rendered", s.get("prompt"))
        key = str(s.get("prompt_id") or rendered)
        empty = {"prompt": _cut(rendered), "media": s.get("media"), "before": [], "after": []}
        entry = by_prompt.setdefault(key, empty)
        if s.get("stage") in ("before", "after"):
            entry[str(s["stage"])].append({"text": _cut(s.get("completion", s.get("text"))).strip(), "note": _note(s)})
    entries = list(by_prompt.values())[:_MOST_PROMPTS]
    sides = (("before", "Before"), ("after", "After"))
    return [
        {"prompt": e["prompt"], "media": media, "sides": [{"name": name, "texts": e[stage]} for stage, name in sides]}
        for e, media in zip(entries, previews([e["media"] for e in entries], run), strict=True)
    ]


def sampled(records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """How the samples were drawn."""
    prompts = len({str(s.get("prompt_id") or s.get("rendered", s.get("prompt"))) for s in records})
    temperature = _part(facts, "config").get("sample_temperature")
    sampling = f", temperature {setting(temperature)}" if is_number(temperature) else ""
    limit = f"; the first {_MOST_PROMPTS} are shown" if prompts > _MOST_PROMPTS else ""
    return f"{plural(prompts, 'held-out prompt')}{sampling}, not hand-picked{limit}."


def data(run: RunFiles) -> dict[str, Any]:
    """Source, counts, lost rows by reason, and the audit."""
    facts, lost = _part(run.facts, "data"), lost_rows(run)
    rows = facts.get("rows")
    summary = [
        ("Source", str(facts.get("source") or "")),
        ("Format", str(facts.get("format") or "")),
        ("Rows", _count(rows, "row")),
        ("Kept", _count(facts.get("kept"), "row")),
        ("For training", _count(facts.get("train"), "item")),
        ("Held out", _count(facts.get("eval"), "item")),
        ("Fingerprint", str(facts.get("fingerprint") or "")),
    ]
    notes = run.data.get("notes")
    return {
        "summary": [(k, v) for k, v in summary if v],
        "known": bool(facts) or bool(run.dropped),
        "dropped": _reasons(lost["dropped"], rows),
        "cut": _reasons(lost["cut"], rows),
        "audit": audit_counts(run.data.get("audit")),
        "findings": findings(run.data.get("audit")),
        "notes": [str(n) for n in notes] if isinstance(notes, list) else [],
        "examples": [_dropped_row(row) for row in run.dropped[:_EXAMPLES]],
    }


def audit_counts(audit: Any) -> Rows:
    """The audit's numbers, nested names joined, without zeros and findings."""
    rows: Rows = []
    for key, value in audit.items() if isinstance(audit, Mapping) else ():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            rows += [(f"{name}: {inner}", text) for inner, text in audit_counts(value)]
        elif is_number(value) and value and key not in ("rows", "kept"):
            rows.append((name, number(value)))
    return rows


def findings(audit: Any) -> list[dict[str, str]]:
    """The audit's findings, the most serious first."""
    entries = audit.get("findings") if isinstance(audit, Mapping) else None
    rows = [f for f in entries if isinstance(f, Mapping)] if isinstance(entries, list) else []
    names = {"major": ("bad", "Fix first"), "minor": ("watch", "Watch"), "ok": ("good", "")}
    by_severity = sorted(rows, key=lambda f: list(names).index(f["severity"]) if f.get("severity") in names else 1)
    return [
        {
            "css": names.get(str(f.get("severity")), ("watch", ""))[0],
            "level": names.get(str(f.get("severity")), ("", str(f.get("severity"))))[1],
            "message": str(f.get("message") or f.get("code") or ""),
            "remedy": str(f.get("remedy") or ""),
        }
        for f in by_severity
    ]


def run_facts(facts: Mapping[str, Any]) -> Rows:
    """Facts of the run that appear nowhere else on the page."""
    objective, model = _part(facts, "objective"), _part(facts, "model")
    params = ", ".join(f"{k} = {setting(v) if is_number(v) else v}" for k, v in _part(objective, "params").items())
    rows = [
        ("Status", str(facts.get("status") or "")),
        ("Ended because", "" if facts.get("stop_reason") == "finished" else str(facts.get("stop_reason") or "")),
        ("Objective", f"{objective.get('name') or ''}{f' ({params})' if params else ''}"),
        (
            "Loss at the reference",
            number(objective["at_reference"]) if is_number(objective.get("at_reference")) else "",
        ),
        ("Reference", str(facts.get("reference") or "")),
        ("Model", str(model.get("path") or "")),
        ("Architecture", str(model.get("architecture") or "")),
        ("Seed", str(facts["seed"]) if "seed" in facts else ""),
        ("Started", str(facts.get("started") or "")),
        ("Finished", str(facts.get("finished") or "")),
    ]
    return [(k, v) for k, v in rows if v]


def environment(facts: Mapping[str, Any]) -> Rows:
    """Versions and hardware."""
    rows = [(str(k), str(v)) for k, v in _part(facts, "versions").items()]
    for key, value in _part(facts, "hardware").items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if key == "memory_bytes" and is_number(value):
            key, text = "memory", f"{value / 2**30:.1f} GiB"
        if text and value is not None:
            rows.append((str(key), text))
    return rows


def config_text(config: Mapping[str, Any]) -> str:
    """The resolved configuration as YAML."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100) if config else ""


def glossary(facts: Mapping[str, Any]) -> Rows:
    """The terms used on this method's page."""
    pair_terms = {"reward (implicit)", "reward accuracy", "margin", "β (beta)", "reference"}
    kto_terms = {"z₀", "desirable, undesirable"}
    policy_terms = {"KL to the start"} | pair_terms - {"reward accuracy", "margin"}
    hidden = {"token": pair_terms | kto_terms, "response": {"reward accuracy", "perplexity"}}
    unseen = hidden.get(unit_of(facts), kto_terms | {"perplexity"})
    if not writes(facts):
        unseen = policy_terms | kto_terms | {"perplexity", "nat"}
    rows = [row for row in _GLOSSARY if row[0] not in unseen]
    if writes(facts) and not referenced(facts):
        rows = [(n, w) if n != "reward (implicit)" else _FREE_REWARD for n, w in rows if n not in _OF_REFERENCE]
    return [(name, _reference(facts) if name == "reference" else words) for name, words in rows]


def _reference(facts: Mapping[str, Any]) -> str:
    """What the run's reference is; older runs, which do not say, are described as most are."""
    if facts.get("reference_moves"):
        return "The policy before training at first; during training it moves towards the policy."
    if facts.get("reference_is_start") is False:
        return "A model other than the policy before training; it stays fixed."
    return dict(_GLOSSARY)["reference"]


def _part(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def _base(path: Any) -> str:
    """A hub id as it is; of a path, the last part."""
    name = str(path or "")
    return name if name.count("/") <= 1 and not name.startswith((".", "/", "~")) else name.rstrip("/").split("/")[-1]


def _count(value: Any, noun: str) -> str:
    return plural(int(value), noun) if is_number(value) else ""


def _parameters(model: Mapping[str, Any]) -> str:
    total, moving = model.get("parameters"), model.get("trainable")
    if not is_number(total):
        return ""
    return number(int(total)) + (f", {number(int(moving))} trained" if is_number(moving) and moving != total else "")


def _steps(facts: Mapping[str, Any]) -> str:
    step, steps = facts.get("step"), facts.get("steps")
    if not is_number(step):
        return ""
    return number(step) if step == steps or not is_number(steps) else f"{number(step)} of {number(steps)}"


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]} … ({len(text) - _LONGEST_TEXT:,} more characters)"


def _note(sample: Mapping[str, Any]) -> str:
    tokens = _count(sample.get("tokens"), "token")
    end = {"eos": "ended with EOS", "length": "cut at the limit"}.get(str(sample.get("stop")), "")
    return ", ".join(part for part in (tokens, end) if part)


def _reasons(counts: Mapping[str, int], rows: Any) -> list[tuple[str, str, str]]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    share = (lambda n: f"{n / rows:.1%}") if is_number(rows) and rows > 0 else (lambda n: "")
    return [(reason.replace("_", " "), number(n), share(n)) for reason, n in ordered if n]


def _dropped_row(row: Mapping[str, Any]) -> list[str]:
    action = " ".join(str(row[k]) for k in ("action", "stage") if row.get(k))
    return [str(row.get("where") or ""), str(row.get("item_id") or ""), action, str(row.get("reason") or ""),
            str(row.get("detail") or "")[:300]]  # fmt: skip
