"""Pictures as PNG, through matplotlib, which the extra ``plots`` installs; it is imported only when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

_STYLES = ("-", "--", "-.", ":")


def comparison_png(body: Mapping[str, Any]) -> bytes:
    """Reward against KL of every method, bands over the seeds, as a PNG of 1600 x 960 pixels.

    Args:
        body: the content of ``compare.json``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from afzal.report.comparison import ways

    figure = Figure(figsize=(10, 6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    chief = body["rewards"][0]
    for k, s in enumerate(ways(body, "kl", chief)):
        if not s.points:
            continue
        x, y = zip(*s.points, strict=True)
        colour = f"C{k % 10}"
        axes.plot(x, y, _STYLES[k // 10 % len(_STYLES)], color=colour, marker="o", markersize=3, label=s.name)
        if s.low:
            known = [r for r in zip(x, s.low, s.high, strict=True) if None not in r]
            ends, low, high = (list(column) for column in zip(*known, strict=True))
            axes.fill_between(ends, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("KL to the start, nats per answer")
    axes.set_ylabel(chief)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
