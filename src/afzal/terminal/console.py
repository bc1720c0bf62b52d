"""A rich console for untrusted text: colours and tables work, control characters in the text are shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.segment import Segment

from afzal.terminal import visible


class VisibleConsole(Console):
    """A console that shows control characters instead of writing them."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(visible(segment.text), segment.style) for segment in buffer
        )
