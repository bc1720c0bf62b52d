"""A drawing as PNG: the standalone SVG, with its style sheet expanded, rasterised by the extra ``png`` (resvg)."""

from __future__ import annotations

import re
from pathlib import Path

from afzal.errors import AfzalError
from afzal.runs import atomic_write

_SCALE = 2.0  # pixels per SVG unit
_FONTS = "Arial, 'Liberation Sans', Helvetica, 'DejaVu Sans', 'Noto Sans', sans-serif"
_INSTALL = "pip install 'afzal[png]'; the SVG next to it is the same picture and needs nothing"
_LETTER = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">{}</svg>'


def require_png() -> None:
    """Check early that a PNG can be drawn on this machine.

    Raises:
        AfzalError: the library is not installed, or the machine has no font that it can read.
    """
    blank, letter = (_pixels(_LETTER.format(f'<text y="15" font-family="{_FONTS}">{t}</text>')) for t in ("", "a"))
    if blank == letter:
        raise AfzalError(
            "cannot draw a PNG",
            why="no usable font is installed, so every label would be missing",
            remedy="install a font, for example the package fonts-dejavu-core; the SVG needs none",
        )


def write_png(drawing: Path) -> Path:
    """Write the PNG of a :func:`~afzal.report.svg.standalone` SVG next to it; return its path.

    Raises:
        AfzalError: as :func:`require_png`, or the file cannot be written.
    """
    require_png()
    path = drawing.with_suffix(".png")
    atomic_write(path, _pixels(flattened(drawing.read_text("utf-8"))))
    return path


def flattened(drawing: str) -> str:
    """A standalone SVG without variables, media queries and pointer states in its style sheet, which rasterisers lack.

    It has the light colours. A rule that takes its colour from the classes ``s0`` ... ``s11`` becomes one per class.
    """
    head, style, rest = re.split(r"</?style>", drawing, maxsplit=2)
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style)
    colours = dict(re.findall(r"--(\w+): (#\w+)", style))
    rules = [
        rule
        for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style)
        if not selectors.strip().startswith((":root", ".s"))
        for rule in _spelled_out([s.strip() for s in selectors.split(",") if ":" not in s], body, colours)
    ]
    return f"{head}<style>{''.join(rules)}</style>{rest}"


def _spelled_out(selectors: list[str], body: str, colours: dict[str, str]) -> list[str]:
    body = re.sub(r"var\(--(?!c\))(\w+)\)", lambda m: colours[m[1]], body)
    body = re.sub(r"system-ui[^;]*", _FONTS, body).strip()
    if "var(--c)" not in body:
        return [f"{','.join(selectors)}{{{body}}}"] if selectors else []
    classes = sorted(name for name in colours if re.fullmatch(r"s\d+", name))
    return [f"{s}.{name}{{{body.replace('var(--c)', colours[name])}}}" for s in selectors for name in classes]


def _pixels(drawing: str) -> bytes:
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise AfzalError("cannot draw a PNG", why="resvg-py is not installed", remedy=_INSTALL) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=drawing, zoom=_SCALE))
