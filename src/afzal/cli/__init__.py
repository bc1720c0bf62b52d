"""The command line: one thin command per verb, imported only when it is called.

Exit codes: 0 success; 1 findings, or finished with problems; 2 an error in the input or setup; 70 a bug in Afzal;
129, 130 and 143 ended by SIGHUP, Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from typer.core import TyperGroup

from afzal.errors import AfzalError, Terminated, signal_of
from afzal.terminal import VisibleStream

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

# Verb -> its line in `afzal --help`. The verb's module is afzal.cli.<verb>: a function `command`, or a Typer `app`.
VERBS = {
    "check": "Show what a data file holds and what is wrong with it; needs no model.",
    "convert": "Write a data file in another format.",
    "import": "Turn a configuration of TRL, axolotl or LLaMA-Factory into settings.",
    "train": "Train a model with a method such as dpo, with any objective, or from a YAML file.",
    "plan": "Estimate what a training run needs before you start it: memory, time, cost, and a layout that fits.",
    "objectives": "List the objectives: formulas, requirements, defaults, papers.",
    "iterate": "Generate, score, pair and train in rounds: iterative DPO, RSO, online DPO, SPIN.",
    "generate": "Generate a model's answers to one prompt or a file of prompts.",
    "chat": "Chat with a model and its start (or another model) side by side, and vote blind on their answers.",
    "score": "Score the responses in a file with a reward model, or with a policy and its reference.",
    "export": "Merge a trained adapter into its base model and check that its log-probs do not change.",
    "push": "Upload a finished model and its card to the hub.",
    "compare": "Train or reuse several methods, plot reward against KL, and compare them.",
    "sweep": "Vary training settings, and choose the best arm on held-out prompts within a KL budget.",
    "ladder": "Train levels of an assisted judge, each from the one below: recursive reward modelling.",
    "annotate": "Serve a page on which people compare, rank or rate responses by keyboard.",
    "judge": "Let judges say which answer is better: rules, reward models, local models, servers, people.",
    "revise": "Make preference pairs from principles: answers, critiques, revisions, or a judge's labels.",
    "ask": "Choose the pairs of answers that people should be asked about next.",
    "aggregate": "Measure how far annotators agree, and combine their votes into one preference per pair.",
    "leaderboard": "Rank models from votes or verdicts, or judges from items of known truth.",
    "report": "Rebuild a run's report, and check whether its curves are healthy.",
    "runs": "List the runs in a folder and how each one ended.",
    "board": "Show the runs in a folder in the browser, with live curves.",
    "env": "Show the versions and hardware that a run would use.",
    "demo": "Run the whole pipeline on a small built-in language whose true reward is known exactly.",
}
_RANKED = ("train", "iterate")  # the verbs that run over several ranks
BUG, INTERRUPTED, BROKEN_PIPE = 70, 130, 141
CONTEXT = {"help_option_names": ["-h", "--help"]}

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}


class HelpfulGroup(TyperGroup):
    """A group that shows its help when it is called without a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The group's own options."""
        return super().parse_args(ctx, args or ["--help"])


class LazyGroup(HelpfulGroup):
    """A group whose commands are placeholders (name and help line) until one of them is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The real command in place of its placeholder."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            from afzal.config import METHODS, suggestion

            message = f"unknown command {args[0]!r}{suggestion(args[0], self.commands)}"
            raise AfzalError(message, remedy=f"afzal train {args[0]} ..." if args[0] in METHODS else "afzal --help")
        name, _, rest = super().resolve_command(ctx, args)
        return name, _load(args[0]), rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code; raises only with ``--debug``."""
    args = list(sys.argv[1:] if argv is None else argv)
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    debug = "--debug" in args
    if debug:
        sys.excepthook = _traceback
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", VisibleStream(stream)) for stream in streams)
    try:
        return _dispatch(args, debug)
    finally:
        sys.stdout, sys.stderr = streams


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, with terminal control characters made visible."""
    VisibleStream(sys.stderr).write("".join(traceback.format_exception(kind, error, trace)))


def _dispatch(args: list[str], debug: bool) -> int:
    if not debug:
        # From libraries to their callers: a person at the command line cannot act on them.
        warnings.filterwarnings("ignore", category=FutureWarning)
    args = [a for a in args if a != "--debug"]
    from afzal.cli.interruption import record_interrupts

    with record_interrupts() as interrupts:
        return _guarded(lambda: _run(args), args, interrupts, debug)


def _run(args: list[str]) -> int:
    _refuse_ranks(args)
    try:
        code = typer.main.get_command(_app()).main(args=args, prog_name="afzal", standalone_mode=False, obj=args)
        sys.stdout.flush()
    except AfzalError as error:
        if args[0] in VERBS:
            from afzal.cli.remedies import adapt_remedy

            adapt_remedy(error, args[0], _load(args[0]))
        raise
    except SystemExit as error:
        # Typer turns a broken pipe into exit code 1, which here means findings.
        raise error.__context__ if isinstance(error.__context__, BrokenPipeError) else error from None
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _refuse_ranks(args: list[str]) -> None:
    """Refuse to run under a launcher of several processes, except for ``train`` and ``iterate``: every process would
    do the same work."""
    from afzal.runs import torchrun

    if args and args[0] in VERBS and args[0] not in _RANKED:
        torchrun.require_one_process(f"afzal {args[0]}")


def _app() -> typer.Typer:
    app = typer.Typer(
        name="afzal",
        cls=LazyGroup,
        help="Turn human preferences into a better language model, and prove that it did.",
        epilog="--debug anywhere shows the traceback of an error.",
        context_settings=CONTEXT,
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    for name, line in VERBS.items():
        app.command(name, help=line)(lambda: None)
    return app


def _version(requested: bool) -> None:
    if requested:
        from afzal._version import __version__

        print(f"afzal {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The program's own options."""


def _load(verb: str) -> Any:
    module: ModuleType = import_module(f"afzal.cli.{verb}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(verb, help=module.command.__doc__ or VERBS[verb], context_settings=CONTEXT)(module.command)
    app.pretty_exceptions_enable = False
    command = typer.main.get_command(app)
    command.name = verb
    return command


def _guarded(run: Callable[[], int], args: list[str], interrupts: list[int], debug: bool) -> int:
    """The exit code of ``run``, every failure reported in a few plain lines. Each signal adds to ``interrupts``."""
    from afzal.cli.interruption import is_interruption
    from afzal.runs import torchrun

    try:
        return run()
    except BrokenPipeError:
        # The reader (such as `head`) has exited; the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, Terminated, typer.Abort) as stop:
        return _interrupted(args, interrupts or [signal.Signals[signal_of(stop)]])
    except Exception as error:
        if torchrun.world_size() > 1 and args and args[0] in _RANKED:
            _tell_ranks(error)
        told = getattr(error, "told", False)  # another rank reports it
        if debug and not told:
            raise
        if interrupts and not told and (is_interruption(error) or not isinstance(error, AfzalError)):
            return _interrupted(args, interrupts)
        message, code = _message_and_code(error)
        rank = torchrun.global_rank()
        reported = told or (rank and hasattr(error, "signal"))  # every rank got the signal
        return code if reported else _print_error(f"rank {rank}: {message}" if rank else message, code)


def _tell_ranks(error: Exception) -> None:
    """Tell the other ranks, if they still wait for this one to join them."""
    from afzal.train import ranks

    with suppress(KeyboardInterrupt, Terminated):  # the others have ended
        ranks.tell(error)


def _interrupted(args: list[str], interrupts: list[int]) -> int:
    """Say what was interrupted (every rank gets the signal; rank 0 speaks), and return the shell's code for it."""
    from afzal.cli.interruption import interruption_line
    from afzal.runs import torchrun

    for name in ("SIGTERM", "SIGHUP"):  # a second one must not cut off the message
        if (number := getattr(signal, name, None)) in interrupts:
            signal.signal(number, signal.SIG_IGN)
    number = interrupts[0]
    return 128 + number if torchrun.global_rank() else _print_error(interruption_line(args, number), 128 + number)


def _message_and_code(error: Exception) -> tuple[str, int]:
    """The message for an error, and its exit code."""
    if isinstance(error, AfzalError):
        # A run stopped by a signal has saved itself: the exit code is the shell's for that signal.
        name = getattr(error, "signal", None)
        return str(error), 128 + signal.Signals[name] if name else 2
    if hasattr(error, "format_message"):
        return _usage_message(error), 2
    if isinstance(error, OSError):
        return _os_error_message(error), 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory\n  try: lower tokens_per_forward, or activation_checkpointing=full, or lora_rank", 2
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}\n  this is a bug in Afzal; run it again with --debug to see where", BUG


def _usage_message(error: Any) -> str:
    """A parser error in one line: the flag, and the closest one that exists."""
    ctx = getattr(error, "ctx", None)
    hint = f" (see {ctx.command_path} --help)" if ctx else ""
    flag = getattr(error, "option_name", None)
    if ctx is None or flag is None or not hasattr(error, "possibilities"):
        message = error.format_message().splitlines()[0].rstrip(".")
        return message.replace(": Value error, ", ": ") + hint  # Typer's words for an invalid choice
    from afzal.config import suggestion

    key = flag.strip("-").replace("-", "_")
    if ctx.command_path.startswith("afzal train ") and (elsewhere := _not_of_this_method(flag, key, ctx.info_name)):
        return elsewhere
    names = [name for p in ctx.command.params for name in p.opts]
    flags = {name.strip("-"): name for name in names if name.startswith("--")}
    hint_text = suggestion(key, [k.replace("-", "_") for k in flags])
    suggestion_text = hint_text.replace("(did you mean ", "(did you mean --").replace("_", "-")
    return f"unknown option {flag}{suggestion_text or hint}"


_OTHER_FLAGS = {
    "config": "afzal train FILE.yaml, without a flag",
    "loss_type": "afzal train prefer --objective NAME; list them with: afzal objectives",
    "label_smoothing": "for pairs, afzal train prefer --objective cdpo --objective-arg label_smoothing=0.1",
}
"""What to write instead of flags of other trainers that are no setting of any method."""


def _not_of_this_method(flag: str, key: str, method: str) -> str:
    """The message for a flag of ``afzal train`` that only other methods have; empty if none has it."""
    from afzal.config import CONFIGS

    if key in _OTHER_FLAGS:
        return f"unknown option {flag}\n  try: {_OTHER_FLAGS[key]}"
    owners = [name for name, config in CONFIGS.items() if key in config.model_fields]
    if not owners or method not in CONFIGS:
        return ""
    instead = f"afzal train prefer {flag} ..." if owners[0] == "prefer" else "leave it out"
    remedy = f"{instead}; see afzal train {method} --help"
    return f"{flag} has no effect on {method} (only on {', '.join(owners)})\n  try: {remedy}"


_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free space on that disk, then continue with --resume",
    errno.EACCES: "get read permission if it is an input, or choose another --out",
    errno.EROFS: "choose a writable --out",
}


def _os_error_message(error: OSError) -> str:
    reason = error.strerror or str(error).strip().partition("\n")[0]
    where = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno)
    return f"{where}{reason}" + (f"\n  try: {remedy}" if remedy else "")


def _print_error(message: str, code: int) -> int:
    if "_AFZAL_COMPLETE" in os.environ:
        return code  # the shell is completing at Tab, and the line may be incomplete
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    head = "\x1b[1;31merror:\x1b[0m " if colour else "error: "
    out = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    with suppress(OSError):  # the terminal may be closed
        if code in (2, BUG):
            out.write(head)
        print(message, file=sys.stderr, flush=True)
    return code
