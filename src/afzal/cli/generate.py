"""``afzal generate``: a model's answers to one prompt or a file of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal import config
from afzal.cli import startup
from afzal.cli.flags import given, parameters, with_parameters


def _generate(**flags: Any) -> None:
    """Generate a model's answers to one prompt (--prompt TEXT) or a file of prompts (--prompts FILE)."""
    settings = config.build(config.GenerateConfig, given(config.GenerateConfig, flags))
    startup.begin(settings, f"answers of {settings.model}")
    with startup.importing():
        from afzal.generate.run import answers, generate

    if settings.out is None:
        generate(settings)  # stdout is only the answers, for pipes
        return
    _conclude(settings, answers(settings))


def _conclude(settings: config.GenerateConfig, records: Sequence[Mapping[str, Any]]) -> None:
    from afzal import runs
    from afzal.cli.conclusion import print_conclusion
    from afzal.terminal.conclusion import step
    from afzal.text import plural

    cut = sum(record["stop"] == "length" for record in records)
    withheld = sum(record["stop"] not in ("eos", "length") for record in records)
    verdict = f"{settings.out}: {plural(len(records), 'answer')}"
    verdict += f", {cut} of them cut at {settings.max_new_tokens} tokens" if cut else ", none cut"
    verdict += f", {withheld} ended by the server in another way" if withheld else ""
    steps = [step("annotate", settings.out, why="rate them")]
    start = runs.start_of(settings.model)
    if start and settings.prompts:
        flags = ["--against", start, "--prompts", settings.prompts]
        steps.append(step("judge", settings.model, *flags, why="is it better than its start?"))
    print_conclusion(verdict, steps)


command = with_parameters(_generate, parameters(config.GenerateConfig, panel="Options"))
