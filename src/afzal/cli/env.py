"""``afzal env``: the versions and hardware that a run would use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer


def command(
    torch: Annotated[bool, typer.Option("--torch", help="Import torch and query its devices (takes seconds).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the versions and hardware that a run would use, for a bug report."""
    from afzal.api.inspecting import env

    torch_facts: dict[str, Any] = {"torch": _torch_facts()} if torch else {}  # first: env() then lists its devices
    sections = {**env(), **torch_facts}
    if as_json:
        print(json.dumps(sections, indent=2, ensure_ascii=False))
    else:
        _print(sections)


def _torch_facts() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cuda": torch.version.cuda if cuda else None,
        "bf16": torch.cuda.is_bf16_supported() if cuda else None,
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "devices": [_device(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def _device(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return {"name": facts.name, "memory_bytes": facts.total_memory, "capability": f"{facts.major}.{facts.minor}"}


def _print(sections: Mapping[str, Mapping[str, Any]]) -> None:
    for section, facts in sections.items():
        print(f"{section}:")
        for name, value in facts.items():
            print(f"  {name.removesuffix('_bytes'):16} {_shown(section, name, value)}")


def _shown(section: str, name: str, value: Any) -> str:
    if section == "extras":
        return f"lacks {', '.join(value)}" if value else "installed"
    if name == "memory_bytes":
        return "unknown" if value is None else f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return ", ".join(_shown(section, "", v) for v in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(section, k, v)}" for k, v in value.items())
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
