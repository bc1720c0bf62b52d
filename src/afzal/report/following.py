"""The command that makes sense after a run, from what its report says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.config import method_in
from afzal.health import Diagnosis, alarms
from afzal.text import setting


def next_command(path: str, facts: Mapping[str, Any], diagnoses: Sequence[Diagnosis]) -> str:
    """One line for a shell: to resume, to repeat the run with what would fix it, or to use what was trained.

    Args:
        path: the run folder.
        diagnoses: alarms first, as :func:`~afzal.health.diagnose` gives them.
    """
    if facts.get("status") in ("stopped", "running", "failed"):
        return shlex.join(["afzal", "train", path, "--resume"])
    raised = alarms(diagnoses)
    change = next((d.change for d in raised if d.change), {})
    if change:
        changed = [f"{k}={setting(v) if isinstance(v, float) else v}" for k, v in change.items()]
        return shlex.join(["afzal", "train", f"{path}/run.yaml", *changed, f"out={path}-2"])
    if any(d.severity == "bad" for d in raised):
        return shlex.join(["afzal", "report", path, "--open"])
    data = facts.get("data")
    source = str(data.get("source") or "") if isinstance(data, Mapping) else ""
    method = method_in(facts)
    if method is not None and method.next is not None and source:
        return shlex.join(method.next(path, source))
    return shlex.join(["afzal", "generate", "--model", path, "--prompt", "How are you?"])
