"""The progress output of a run, in a pipe and on a terminal."""

import io

import pytest
from rich.console import Console

from afzal.train import progress
from afzal.train.progress import Reporter, time_left


def record(step: int, seconds: float, **more) -> dict:
    return {"kind": "train", "step": step, "seconds": seconds, "loss": 0.5, **more}


def test_time_left_is_by_the_pace_since_the_first_record():
    """The evaluation before the first update took 30 s; an update takes 2 s."""
    first = record(1, 32.0)
    assert time_left(first, first, 100) == "32 s"
    assert time_left(first, record(11, 52.0), 100) == "52 s, about 2 min 58 s left"
    assert time_left(first, record(100, 230.0), 100) == "3 min 50 s"


def test_time_left_after_resuming_ignores_the_earlier_process():
    first = record(51, 1000.0)
    assert time_left(first, record(61, 1010.0), 71) == "16 min 50 s, about 10 s left"
    assert time_left(record(1, 1.0), record(90, 2.0), 100) == "2.0 s, less than a second left"


@pytest.fixture
def shown(monkeypatch):
    """Lines in a pipe under a stopped clock: an interval never passes."""
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    stream = io.StringIO()
    return Reporter(3, console=Console(file=stream, width=200)), stream


def test_a_pipe_gets_the_first_and_the_last_update_and_every_evaluation(shown):
    reporter, stream = shown
    with reporter:
        for entry in (
            {"kind": "eval", "step": 0, "seconds": 1.0, "loss": 0.6931, "rewards/accuracies": 0.5},
            record(1, 2.0),
            record(2, 3.0),
            record(3, 4.0),
        ):
            reporter.record(entry)
    assert stream.getvalue().splitlines() == [
        "held-out at step 0: loss 0.6931  accuracy 0.500",
        "step 1/3  loss 0.5000  2.0 s",
        "step 3/3  loss 0.5000  4.0 s",
    ]


def test_a_text_with_brackets_is_shown_as_it_is(shown):
    reporter, stream = shown
    reporter.say("note: [bold]item[/bold] :smile:")
    assert stream.getvalue() == "note: [bold]item[/bold] :smile:\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_shows_the_time_left_on_a_narrow_terminal(width: int):
    """With all facts of a run; the end of the facts is cut if they do not fit."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    more = {"rewards/accuracies": 0.75, "rewards/margins": 0.123, "reward": 1.5, "kl": 2.25}
    with Reporter(12_000, console=console) as reporter:
        reporter.record(record(345, 20.0, **more))
        assert reporter.bar is not None
        reporter.bar.refresh()
        lines = console.render_lines(reporter.bar.get_renderable())
    (line,) = ("".join(segment.text for segment in parts) for parts in lines)
    assert len(line) == width
    assert "345/12000" in line
    assert " left " in line
    assert "loss 0.5000  accuracy 0.750" in line
    assert ("KL 2.25" in line) is (width == 120)
