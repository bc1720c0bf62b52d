"""``afzal chat``: a model next to its start or another model, in the terminal or on a page."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.conclusion import print_conclusion, ways_to_learn
from afzal.cli.flags import given, parameters, with_parameters
from afzal.cli.interruption import announce
from afzal.cli.terminal_chat import converse, stdio_terminal, tally_line
from afzal.terminal import one_line
from afzal.terminal.conclusion import step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from afzal.generate.chat import ChatModel
    from afzal.web.chat.session import Session


def _chat(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, a model folder or a hub id.")],
    **flags: Any,
) -> None:
    """Chat with a model and the one its run started from, or --against OTHER, side by side.

    In the terminal, or in the browser with --page. With --blind, the answers come in random order without names, and
    your votes become data for `afzal aggregate` and `afzal train`. Ctrl-C stops an answer, then ends the chat.
    """
    settings = config.build(
        config.ChatConfig, [config.Setting("model", model, "RUN"), *given(config.ChatConfig, flags)]
    )
    startup.begin(settings, f"chat with {settings.model}")
    if settings.blind:
        announce(f"chat with {settings.model}", _folder(settings))
    from afzal.generate.chat import load_chat_models
    from afzal.web.chat.conversation import Conversation
    from afzal.web.chat.session import Session

    talkers = load_chat_models(settings, _note)
    if plain := [talker.name for talker in talkers if talker.continues_text]:
        verb = "have" if len(plain) > 1 else "has"
        _note(f"{' and '.join(plain)} {verb} no chat template: your text is continued as it is")
    conversation = Conversation(talkers, settings.system, random.SystemRandom() if settings.blind else None)
    session = Session(conversation, _votes(settings, talkers) if settings.blind else None)
    try:
        if settings.page:
            _serve(settings, session)
        else:
            converse(session, stdio_terminal())
    finally:
        if session.votes is not None:
            session.votes.close()
            _print_tally(session, settings)


def _votes(settings: config.ChatConfig, talkers: Sequence[ChatModel]) -> Any:
    from afzal.web.chat.votes import Votes

    metadata = {
        "models": [talker.name for talker in talkers],
        "annotator": settings.annotator,
        "sampling": _sampling(settings),
    }
    return Votes(_folder(settings), metadata, plain=all(talker.continues_text for talker in talkers))


def _folder(settings: config.ChatConfig) -> Path:
    """The folder of the votes."""
    return Path(settings.out or f"{Path(settings.model).resolve().name}.chat")


def _sampling(settings: config.ChatConfig) -> dict[str, Any]:
    keys = ("temperature", "top_p", "top_k", "max_new_tokens", "seed")
    return {key: value for key in keys if (value := getattr(settings, key)) is not None}


def _serve(settings: config.ChatConfig, session: Session) -> None:
    from afzal.api.serving import server_options, show
    from afzal.web.chat.serve import serve

    page_info = {"system": settings.system, "sampling": _sampling(settings)}
    serve(session, page_info, server_options(settings), lambda address: show(address, settings))


def _note(line: str) -> None:
    print(f"note: {one_line(line)}", file=sys.stderr)


def _print_tally(session: Session, settings: config.ChatConfig) -> None:
    """Print the tally of all votes in the folder, and the next steps."""
    assert session.votes is not None
    tally, folder = session.votes.tally(), session.votes.path
    if not any(tally["counts"].values()):
        print("no votes", file=sys.stderr)
        return
    print(f"votes: {folder}")
    print_conclusion(tally_line(tally), [step("aggregate", folder), *ways_to_learn(str(folder), model=settings.model)])


_FLAGS = [p for p in parameters(config.ChatConfig, panel="Options") if p.name != "model"]
command = with_parameters(_chat, _FLAGS)
