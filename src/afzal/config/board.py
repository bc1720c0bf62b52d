"""The settings of ``afzal board``."""

from __future__ import annotations

from pydantic import Field

from .base import Names, Settings


class BoardConfig(Settings, frozen=True):
    """The runs below a folder in the browser."""

    folder: str = Field(".", description="Folder whose runs and pages are shown, six levels down.")
    host: str = Field(
        "127.0.0.1", description="Address to serve at; the default, loopback, is reachable from this machine only."
    )
    port: int = Field(0, ge=0, le=65535, description="Port to serve at; 0 picks a free one.")
    names: Names = Field(None, description="Additional names to accept in the Host header, such as a proxy's.")
    headless: bool = Field(False, description="Print the address and open no browser.")
