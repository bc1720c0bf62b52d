"""``afzal train METHOD --model M --data D ...`` and ``afzal train FILE key=value ...``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import CONTEXT, HelpfulGroup, startup
from afzal.cli.files import path_of, settings_of
from afzal.cli.flags import given, parameters, with_parameters
from afzal.cli.report import ended
from afzal.errors import AfzalError, did_you_mean


class MethodGroup(HelpfulGroup):
    """``sft``, ``dpo``, ... are commands; any other word is a YAML file or a run folder, whose method decides."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command of the method, with the file's settings as its first ones."""
        word, rest = args[0], args[1:]
        if word in config.METHODS:
            return word, _command(word, []), rest
        path = path_of(word)
        if not path.is_file():
            raise _unknown(word)
        settings = settings_of(word)
        typed = [config.read_override(text) for text in rest if text.startswith("method=")]
        return word, _command(config.method_of([*settings, *typed]), settings), rest


def _unknown(word: str) -> AfzalError:
    """The error for a word that is neither a method nor a file; it may be an objective."""
    from afzal.objectives import REGISTRY

    name = word.replace("-", "_")
    if name in REGISTRY:
        return AfzalError(
            f"{word!r} is an objective, not a method", remedy=f"afzal train prefer --objective {name} ..."
        )
    hint = config.suggestion(name, [*config.METHODS, *REGISTRY])
    usage = f"afzal train {'|'.join(config.METHODS)} ..., or afzal train FILE.yaml"
    return AfzalError(
        f"{word!r} is neither a method nor a file{hint}", remedy=(not hint and did_you_mean(word)) or usage
    )


def _command(method: str, base: Sequence[config.Setting]) -> Any:
    """The command of one method, with a flag for each setting; flags override the settings in ``base``."""
    kind = config.CONFIGS[method]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(method, help=config.METHODS[method].line, context_settings=CONTEXT)(
        with_parameters(_runner(method, base), parameters(kind))
    )
    return typer.main.get_command(app)


def _runner(method: str, base: Sequence[config.Setting]) -> Callable[..., Any]:
    def run(
        ctx: typer.Context,
        overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest intact checkpoint.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and plan, train nothing.")] = False,
        **flags: Any,
    ) -> None:
        typed = [_override(text) for text in overrides or ()]
        settings = [*base, config.Setting("method", method), *given(config.CONFIGS[method], flags), *typed]
        _train(config.resolve(settings), resume=resume, dry_run=dry_run, command=shlex.join(["afzal", *ctx.obj]))

    return run


def _override(text: str) -> config.Setting:
    """Parse ``key=value``; a file here is refused: it belongs in the method's place."""
    if "=" not in text and text.endswith((".yaml", ".yml")):
        raise AfzalError(f"{text!r} is a file, which names its own method", remedy=f"afzal train {text}")
    return config.read_override(text)


def _train(settings: config.TrainConfig, *, resume: bool, dry_run: bool, command: str) -> None:
    startup.begin(settings, f"{settings.method} of {settings.model} on {settings.data}, into {settings.out}")
    with startup.importing():
        from afzal import recipes
    if dry_run:
        typer.echo(config.dump(settings))
        for line in recipes.plan(settings):
            typer.echo(line)
        return
    folder = recipes.train(settings, resume=resume, command=command)
    ended(folder)


app = typer.Typer(
    cls=MethodGroup,
    add_completion=False,
    context_settings=CONTEXT,
    help="Train a model. `afzal train FILE.yaml key=value ...` runs a file, and resumes a run as "
    "`afzal train RUN --resume`; every flag of a method is also a key of the file: see `afzal train dpo --help`.",
)
for _method in config.METHODS.values():
    app.command(_method.name, help=_method.line)(lambda: None)
