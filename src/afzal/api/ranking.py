"""Rank models by strength, or judges by accuracy, from verdicts: the function behind ``afzal leaderboard``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from afzal.api.inputs import Rows, as_path, is_source
from afzal.api.results import ON_REQUEST, Result
from afzal.errors import AfzalError


def leaderboard(
    files: Rows | Sequence[str | PathLike[str]],
    *,
    of: Literal["models", "judges"] = "models",
    ties: Literal["half", "davidson", "rao_kupper"] = "half",
    length_control: bool = False,
    beside: str | PathLike[str] | None = None,
    judge: str | None = None,
    resamples: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
) -> Result:
    """Rank models from votes or verdicts (Bradley-Terry with ties), or judges from items of known truth.

    Args:
        files: verdict files, or rows whose responses name their source; for judges also rows with a label and verdicts.
        of: ``models``, ranked by wins, or ``judges``, ranked by how often they are right.
        ties: how to count a tie: ``half`` a win, or a separate outcome of Davidson's or of Rao and Kupper's model.
        length_control: also each model's win rate at equal answer lengths.
        beside: another file, for the rank correlation of the two leaderboards.
        judge: count only the verdicts of this judge or annotator.
        resamples: number of resamples of whole prompts; default 500 for models, 2000 for judges.
        seed: of the resamples.
        out: folder for the page, figure, CSV and JSON.

    Returns:
        The leaderboard, strengths on the log-odds scale (larger is better; 1 is odds of e to 1); not ``ok`` if some
        models were never compared, never lost or never won, and so have no number.

    Raises:
        AfzalError: a file cannot be read, or an option has no effect.

    Example:
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> vote = {"model_a": "small", "model_b": "large", "conversation_a": talk, "conversation_b": talk}
        >>> votes = [{**vote, "question_id": k, "winner": w} for k, w in enumerate(["model_b", "model_b", "model_a"])]
        >>> board = afzal.api.leaderboard(votes, resamples=50)
        >>> [line["name"] for line in board["lines"]]
        ['large', 'small']
    """
    from afzal import judge as judging
    from afzal import report
    from afzal.text import plural

    if of == "judges" and (length_control or beside is not None):
        raise AfzalError("lengths and correlations need models", where="--of judges", remedy="omit one of them")
    if of == "judges" and ties != "half":
        why = "judges are ranked by accuracy, and have no strengths"
        raise AfzalError(f"--ties {ties} needs models", where="--of judges", why=why, remedy="omit one of them")
    several = list(files) if isinstance(files, list | tuple) and all(map(is_source, files)) else [files]
    paths = [as_path(file, "files") for file in several]
    verdicts = judging.read_gold_verdicts(paths) if of == "judges" else judging.read_model_verdicts(paths)
    if judge is not None:
        verdicts = _only(verdicts, judge)
    source = ", ".join(Path(name).name for name in paths)
    if of == "judges":
        ranked = judging.rank_judges(verdicts, resamples=resamples or 2000, seed=seed)
        body, is_complete = judging.judges_as_plain(ranked, source), True
    else:
        board = judging.rank_models(verdicts, ties, resamples=resamples or 500, seed=seed)
        body, is_complete = judging.models_as_plain(board, ties, source, verdicts.notes), board.board is not None
        parts = [judging.weighed_as_plain(verdicts)]
        if length_control:
            at_equal = judging.length_controlled_rates(verdicts, resamples=resamples or 500, seed=seed)
            parts.append(judging.length_controlled_as_plain(at_equal))
        for part in parts:  # append the tables and findings of each
            joined = {key: [*body.get(key, []), *part[key]] for key in ("tables", "findings") if key in part}
            body |= part | joined
        if beside is not None:
            other_verdicts, n_left_out = _without(judging.read_model_verdicts([str(beside)]), judge, str(beside))
            tied = any(
                v.outcome in ("tie", "both_bad") for v in other_verdicts.verdicts
            )  # without ties, half gives the same
            other_board = judging.rank_models(other_verdicts, ties if tied else "half", resamples=2)
            body["beside"] = judging.rank_correlation(board, other_board)
            body["findings"].append(_correlation(body["beside"], Path(beside).name))
            if n_left_out:
                left_out = f"{plural(n_left_out, 'verdict')} of {judge} in {Path(beside).name}"
                body["findings"].append(f"{left_out} are left out: its leaderboard is compared with the others'.")
    lines, page = _text(report.shortened(body, ON_REQUEST)), None
    if out is not None:
        page = report.write_board(Path(out), body)
        lines.append(f"page: {page}")
    return Result(body, lines, page, ok=is_complete)


def _correlation(correlation: Mapping[str, Any], name: str) -> str:
    texts = {
        key: "unknown" if correlation[key] is None else f"{correlation[key]:.2f}" for key in ("spearman", "kendall")
    }
    return f"With {name}: Spearman's rank correlation {texts['spearman']}, Kendall's tau {texts['kendall']}."


def _without(verdicts: Any, judge: str | None, source: str) -> tuple[Any, int]:
    """The verdicts of others than this judge, and the number of its own."""
    from dataclasses import replace

    others = [v for v in verdicts.verdicts if judge is None or v.judge != judge]
    if not others:
        raise AfzalError(
            f"{Path(source).name} holds only verdicts of {judge}",
            where="--beside",
            why="a judge's leaderboard would be compared with itself",
            remedy="name a file of people's votes, or of other judges' verdicts",
        )
    return replace(verdicts, verdicts=others), len(verdicts.verdicts) - len(others)


def _only(verdicts: Any, judge: str) -> Any:
    from dataclasses import replace

    from afzal.config import suggestion

    matching = [v for v in verdicts.verdicts if v.judge == judge]
    if not matching:
        known = sorted({v.judge for v in verdicts.verdicts})
        raise AfzalError(f"no verdict of {judge!r}{suggestion(judge, known)}", remedy="one of " + ", ".join(known[:12]))
    return replace(verdicts, verdicts=matching)


def _text(body: Mapping[str, Any]) -> list[str]:
    """The leaderboard in lines: the facts, one line for each name, tables and findings."""
    from afzal.text import aligned, interval, number, visible

    lines = [visible(f"{body['title']}: {body['subtitle']}")]
    lines.append("  ".join(f"{name} {value}" for name, value in body["facts"]))
    width = max(len(visible(line["name"])) for line in body["lines"])
    for line in body["lines"]:
        cells = [f"{visible(line['name']):{width}}"]
        if line["value"] is not None:
            cells.append(f"{number(line['value'], 3):>7} {interval(line['low'], line['high']):18}")
        cells += [f"{key.replace('_', ' ')} {number(value, 3)}" for key, value in line.items() if key in _IN_TEXT]
        lines.append("  ".join(cells).rstrip())
    lines += [body["lines_words"]] if "lines_words" in body else []
    for table in body.get("tables", []):
        lines.append(f"{table['title']}: {table['left_out']}" if "left_out" in table else table["title"])
        lines += aligned([table["columns"], *table["rows"]])
    if body.get("judges") and len(body["differences"]) <= _MANY:
        lines += [visible(f"{gap['first']} over {gap['second']}: {_gap(gap)}") for gap in body["differences"]]
    return [*lines, *map(visible, body["findings"])]


def _gap(gap: Mapping[str, Any]) -> str:
    """A paired difference in points, and whether two judges can be told apart."""
    from afzal.text import interval, number

    value, low, high = (None if gap[key] is None else 100 * gap[key] for key in ("value", "low", "high"))
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return f"{number(value, 3)} {interval(low, high)} points, {'told apart' if clear else 'not told apart'}"


_MANY = 8  # differences between judges that are printed; the page has all of them
_IN_TEXT = ("rank", "win_rate", "won", "tied", "lost", "no_verdict", "consistent", "slot_bias", "slot_p")
