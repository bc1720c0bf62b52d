"""Shared by the pages of ``afzal annotate``, ``board`` and ``chat``: the address, and opening the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from afzal.web.serve import ServerOptions


class ServerSettings(Protocol):
    """Settings of a page."""

    @property
    def host(self) -> str:
        """The address to bind."""
        ...

    @property
    def port(self) -> int:
        """0 for a free one."""
        ...

    @property
    def names(self) -> list[str] | None:
        """Further names in the Host header."""
        ...

    @property
    def headless(self) -> bool:
        """Whether the browser stays closed."""
        ...


def server_options(settings: ServerSettings) -> ServerOptions:
    """The options of a page's server, from its settings."""
    from afzal.web.serve import ServerOptions

    return ServerOptions(settings.host, settings.port, tuple(settings.names or ()))


def show(address: str, settings: ServerSettings) -> None:
    """Print the address of a page immediately, and open it in the browser unless ``headless``."""
    print(address, flush=True)
    open_page(address, settings)


def open_page(address: str, settings: ServerSettings) -> None:
    """Open a page in the browser unless ``headless``."""
    if not settings.headless:
        import webbrowser

        webbrowser.open(address)
