"""Return types of :mod:`afzal.api`: figures as plain values, in words, and as shown in a notebook."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from afzal import runs
from afzal.errors import AfzalError, writing

ON_REQUEST = {"lines": "--json", "rest": "--json"}
"""Where a command prints what its words leave out (:func:`afzal.report.shortened`)."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command.

    ``print(result)`` prints the output of the command line; ``result["key"]`` is a figure; a notebook shows both.

    Attributes:
        body: the figures as plain values, as ``--json`` prints them.
        lines: the same in words.
        page: the page that was written, if any.
        rows: the rows that were made, if any.
        ok: False if the command line would exit with 1.
    """

    body: Mapping[str, Any]
    lines: Sequence[str]
    page: Path | None = None
    rows: Sequence[Any] = ()
    ok: bool = True

    def __getitem__(self, key: str) -> Any:
        """A figure by name."""
        return self.body[key]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        link = (
            f'<p><a href="{escape(self.page.resolve().as_uri())}">{escape(str(self.page))}</a></p>' if self.page else ""
        )
        figure = self.page.with_suffix(".svg") if self.page else None
        drawing = image(figure.read_text("utf-8"), "") if figure and figure.is_file() else ""
        return f"{drawing}<pre>{escape(str(self))}</pre>{link}"


@dataclass(frozen=True, slots=True)
class Plot:
    """Plots of a run's curves: a notebook shows them, :meth:`save` writes them."""

    drawings: Mapping[str, str]
    captions: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> list[Path]:
        """Write one SVG file per curve and return them.

        Args:
            path: the file, if there is one curve; otherwise a folder, whose files are named after their curves.
        """
        place = Path(path)
        if len(self.drawings) == 1 and place.suffix == ".svg":
            places = [place]
        else:
            places = [place / f"{name.replace('/', '_')}.svg" for name in self.drawings]
        for file, drawing in zip(places, self.drawings.values(), strict=True):
            runs.make_folder(file.parent)
            with writing(file):
                file.write_text(drawing, encoding="utf-8")
        return places

    def _repr_html_(self) -> str:
        figures = (
            '<figure style="display:inline-block;margin:0 12px 12px 0">'
            f"<figcaption>{escape(self.captions.get(name, name))}</figcaption>{image(drawing, name)}</figure>"
            for name, drawing in self.drawings.items()
        )
        return f"<div>{''.join(figures)}</div>"


@dataclass(frozen=True, slots=True)
class Run(runs.Run):
    """A training run: its folder with facts, metrics and curves. Functions that take a model also take a run.

    Example:
        >>> run = afzal.fit("dpo", model="my-model", data="prefs.jsonl", out="runs/shown", lr=1e-3, batch_size=8)
        >>> sorted(run.curves("loss", kind="eval"))
        ['loss', 'step']
        >>> run.plot("loss").save("loss.svg")
        [PosixPath('loss.svg')]
    """

    def __fspath__(self) -> str:
        return str(self.path)

    def curves(self, *names: str, kind: Literal["train", "eval", "rollout"] = "train") -> dict[str, list[Any]]:
        """Metrics as columns of equal length, ready for ``pandas.DataFrame(run.curves())``.

        Args:
            names: metric names, such as ``loss`` or ``rewards/accuracies`` (TRL's names); default: all of that kind.
            kind: ``train`` for the updates, ``eval`` for the evaluations, ``rollout`` for the policy's own answers.

        Returns:
            ``step`` (updates made) and a column for each name; None if a step has no such number.

        Raises:
            AfzalError: the run has no metric of that name (the message names the closest).
        """
        records = self.metrics(kind)
        known = list(dict.fromkeys(key for record in records for key in record if key != "kind"))
        for name in names:
            if name not in known:
                from afzal.config import suggestion

                what = f"the run has no {kind} metric {name!r}{suggestion(name, known)}"
                raise AfzalError(what, where=str(self.path), remedy=f"one of {', '.join(known) or 'none'}")
        columns = ["step", *(name for name in names or known if name != "step")]
        return {name: [record.get(name) for record in records] for name in columns}

    def plot(self, *names: str) -> Plot:
        """Plots of the curves, training and held out together.

        Args:
            names: metric names; default: every figure in the run's report.

        Raises:
            AfzalError: the run has no such metric.
        """
        from afzal.report import charts, svg

        metrics, facts = self.metrics(), self.facts()
        by_key = {figure.key: figure for figure in charts.figures(metrics, facts)}
        for name in names:
            if name not in by_key:
                by_key[name] = charts.figure_of(name, metrics)
        chosen = [by_key[name] for name in names or by_key]
        if not chosen or any(figure.drawing == "" for figure in chosen):
            missing = ", ".join(figure.key for figure in chosen if not figure.drawing) or "any"
            known = sorted({key for record in metrics for key in record})
            raise AfzalError(
                f"the run has no metric {missing}", where=str(self.path), remedy=f"one of {', '.join(known)}"
            )
        captions = {figure.key: f"{figure.title}: {_legend(figure)}" for figure in chosen}
        return Plot({figure.key: svg.standalone(figure.drawing) for figure in chosen}, captions)

    def _repr_html_(self) -> str:
        facts = self.facts()
        summary = {"method": facts.get("method"), "status": self.status(), "step": facts.get("step")}
        summary |= {f"held-out {name}": value for name, value in self.latest("eval").items() if name in _SUMMARY}
        rows = (f"<tr><th style='text-align:left'>{escape(k)}</th><td>{_cell(v)}</td></tr>" for k, v in summary.items())
        page = self.path / "report.html"
        link = f'<p><a href="{escape(page.resolve().as_uri())}">report</a></p>' if page.is_file() else ""
        plotted = [name for name in _PLOTTED if any(name in record for record in self.metrics())]
        figures = self.plot(*plotted)._repr_html_() if plotted else ""
        return f"<p><b>{escape(str(self.path))}</b></p><table>{''.join(rows)}</table>{figures}{link}"


_SUMMARY = ("loss", "rewards/accuracies", "rewards/margins", "kl", "reward", "perplexity")
_PLOTTED = ("loss", "rewards/accuracies", "reward")


def _legend(figure: Any) -> str:
    return ", ".join(dict.fromkeys(series.name for series in figure.legend))


def _cell(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def image(drawing: str, words: str) -> str:
    """A drawing as a separate image, so that its style sheet does not affect the rest of the page."""
    data = base64.b64encode(drawing.encode("utf-8", "replace")).decode("ascii")
    return f'<img alt="{escape(words)}" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'
