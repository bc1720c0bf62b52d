"""``afzal push RUN OWNER/NAME``: upload a finished model and its card to the hub."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    folder: Annotated[
        str, typer.Argument(metavar="RUN", help="The folder of a finished run, or of an exported model.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public if it is new; default: private.")
    ] = False,
) -> None:
    """Upload the weights, the tokenizer and the model card; no samples, metrics or rows.

    The token comes from `hf auth login` or HF_TOKEN.
    """
    from afzal import hub
    from afzal.cli.conclusion import print_conclusion
    from afzal.terminal.conclusion import step

    typer.echo(hub.push(folder, repository, private=not public))
    # on stderr: scripts read the address from stdout
    print_conclusion("", [step("chat", repository, "--alone", why="does it answer as it does here?")], err=True)
