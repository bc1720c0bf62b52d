"""The board: what it lists, how curves grow, what it serves, and the page by keyboard in a real browser."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers_browser import person
from helpers_web import page_of, raw

from afzal import runs
from afzal.report.board import write_board
from afzal.web.board import curves
from afzal.web.board.app import inside
from afzal.web.board.listing import listing


def made(root: Path, name: str, losses: list[Any], **facts: Any) -> runs.Run:
    """A finished run, with one line of training for each loss."""
    run = runs.create(root / name, {"method": "dpo"})
    for step, loss in enumerate(losses, start=1):
        run.log({"kind": "train", "step": step, "seconds": 2.0 * step, "loss": loss, "rewards/margins": 0.1 * step})
    run.update(**{"method": "dpo", "status": "finished", "steps": len(losses), "step": len(losses), **facts})
    run.release()
    return run


def board_page(root: Path, name: str) -> None:
    body = {"title": "Which <model>?", "subtitle": "s", "findings": ["f"], "facts": [], "unit": "share", "rule": None}
    lines = [{"name": "a", "value": 0.5, "low": 0.4, "high": 0.6}]
    write_board(root / name, body | {"lines": lines, "differences": []})


def wide_board() -> dict[str, Any]:
    """A board like those of ladders and annotators: a long unit, many columns, long names of pairs."""
    names = ["the judge alone", "level 1, lying"]
    known = {
        "value": -0.743,
        "low": -0.8,
        "high": -0.7,
        "labels": 1000,
        "right": 0.6,
        "right_low": 0.5,
        "right_high": 0.7,
    }
    lines = [{"name": name, **known, "first_slot": 0.512, "repeats": 12, "seconds": 31.5} for name in names]
    gap = {"first": names[1], "second": names[0], "value": -0.287, "low": -0.32, "high": -0.25}
    unit = "share of pairs on which the better answer is named"
    about = {"title": "Ladder", "subtitle": "s", "findings": ["f"], "facts": [["a", "b"]], "unit": unit, "rule": 0.5}
    return about | {"lines": lines, "differences": [gap]}


def test_a_table_too_wide_for_a_phone_is_a_list_of_its_rows_there_and_an_interval_stands_by_its_figure(tmp_path):
    page = write_board(tmp_path, wide_board()).read_text("utf-8")
    tables = page.split("<table ")[1:]
    assert ["stack" in table.partition(">")[0] for table in tables] == [True, True]
    few = wide_board() | {"lines": [{"name": "a", "value": 0.5, "low": 0.4, "high": 0.6}], "differences": []}
    assert ' stack"' not in write_board(tmp_path / "few", few).read_text("utf-8")
    assert page.count('data-as="right">0.600 [0.500, 0.700]') == 2
    assert "right low" not in page


@pytest.mark.slow
def test_tables_of_a_board_do_not_scroll_sideways_on_a_phone(chromium, tmp_path):
    address = write_board(tmp_path, wide_board()).as_uri()
    with person(chromium, address, viewport={"width": 390, "height": 844}) as one:
        widths = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        assert one.page.evaluate(widths) == [0, 0]
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_runs_pages_and_broken_folders_are_listed(tmp_path):
    made(tmp_path, "study/one", [0.7, 0.6]).log({"kind": "eval", "step": 2, "n": 8, "loss": 0.5, "kl": 1.5})
    (tmp_path / "study/one/report.html").write_text("<title>r</title>")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text('{"afzal": ')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/run.json").write_text('{"afzal": "0"}')
    board_page(tmp_path, "board")
    (tmp_path / "foreign.html").write_text("<title>not ours</title>")
    listed = listing(tmp_path)
    assert [run["path"] for run in listed["runs"]] == ["bad", "study/one"]
    bad, one = listed["runs"]
    assert bad["status"] == "broken"
    assert "run.json is not JSON" in bad["why"]
    assert str(tmp_path) not in bad["why"]
    assert (one["status"], one["loss"], one["kl"], one["train_loss"], one["step"]) == ("finished", 0.5, 1.5, 0.6, 2)
    assert one["report"] == "study/one/report.html"
    assert [(page["path"], page["kind"], page["title"]) for page in listed["pages"]] == [
        ("board/leaderboard.html", "leaderboard", "Which <model>?")
    ]
    json.dumps(listed, allow_nan=False)


@pytest.mark.parametrize("latest", ["null", "[1]", "3"])
def test_a_run_whose_latest_figures_are_damaged_hides_no_other(tmp_path, latest):
    made(tmp_path, "good", [0.7, 0.6])
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "run.json").write_text(f'{{"afzal": "0", "status": "finished", "latest": {latest}}}')
    good, odd = listing(tmp_path)["runs"]
    assert (good["train_loss"], odd["status"], odd["loss"]) == (0.6, "finished", None)


def test_a_running_run_says_how_long_it_will_take(tmp_path):
    with runs.create(tmp_path / "now", {}) as run:
        run.update(method="sft", steps=10)
        run.log({"kind": "train", "step": 4, "seconds": 8.0, "loss": float("nan")})
        (row,) = listing(tmp_path)["runs"]
        assert (row["status"], row["step"], row["left"], row["train_loss"]) == ("running", 4, 12.0, None)


def test_a_curve_is_read_from_where_the_last_reading_ended(tmp_path):
    run = made(tmp_path, "one", [0.7, float("nan"), 0.5])
    first = curves.read(run.path, {"loss"})
    assert first["points"] == {"loss": {"train": [[1, 0.7], [2, None], [3, 0.5]]}}
    assert first["names"] == ["loss", "rewards/margins"]
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write('{"kind": "eval", "step": 3, "loss": 0.4}\nnonsense\n{"kind": "train", "step": 4, "lo')
    second = curves.read(run.path, {"loss"}, first["next"])
    assert second["points"] == {"loss": {"eval": [[3, 0.4]]}}
    assert (second["fresh"], second["damaged"]) == (False, 1)
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write('ss": 0.3}\n')
    third = curves.read(run.path, {"loss"}, second["next"])
    assert third["points"] == {"loss": {"train": [[4, 0.3]]}}
    assert curves.read(run.path, {"loss"}, third["next"])["points"] == {}


def test_a_log_that_was_cut_back_is_read_anew(tmp_path):
    run = made(tmp_path, "one", [0.7, 0.6])
    first = curves.read(run.path, {"loss"})
    path = run.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace("0.6", "0.65").rstrip("\n") + "\n" + lines[1].replace(": 2,", ": 3,"))
    again = curves.read(run.path, {"loss"}, first["next"])
    assert again["fresh"]
    assert again["points"]["loss"]["train"] == [[1, 0.7], [2, 0.65], [3, 0.6]]


def test_a_long_log_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "_CHUNK", 200)
    run = made(tmp_path, "one", [0.1 * k for k in range(20)])
    since, points, pieces = "", [], 0
    while True:
        piece = curves.read(run.path, {"loss"}, since)
        points += piece["points"].get("loss", {}).get("train", [])
        since, pieces = piece["next"], pieces + 1
        if not piece["more"]:
            break
    assert [step for step, _ in points] == list(range(1, 21))
    assert pieces > 5


@pytest.mark.parametrize(
    "path", ["../secret.html", "a/../../secret.html", "/etc/passwd", "link.html", ".git/x.html", ""]
)
def test_nothing_outside_the_folder_is_served(tmp_path, path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / ".git").mkdir()
    for file in (tmp_path / "secret.html", root / ".git/x.html", root / "a/fine.html"):
        file.write_text("x")
    (root / "link.html").symlink_to(tmp_path / "secret.html")
    assert inside(root, path) is None
    assert inside(root, "a/fine.html") == root / "a/fine.html"


def test_the_server_refuses_what_it_should(tmp_path):
    made(tmp_path, "one", [0.7])
    (tmp_path / "one/report.html").write_text("<title>r</title><script>alert(1)</script>")
    with page_of("board", ".", cwd=tmp_path) as (address, process):
        parts = urlsplit(address)
        token = parts.path.split("/")[2]

        get = partial(raw, address, "GET")
        assert parts.hostname == "127.0.0.1"
        assert get("/b/wrong/")[0] == get("/f/wrong/one/report.html")[0] == 404
        assert get("/api/runs")[0] == get("/api/runs", X_Afzal_Token="wrong")[0] == 401
        assert get(parts.path, Host="evil.example")[0] == 421
        assert get("/api/runs", X_Afzal_Token=token, Sec_Fetch_Site="cross-site")[0] == 403
        assert json.loads(get("/api/runs", X_Afzal_Token=token)[2])["runs"][0]["name"] == "one"
        assert get("/api/curves?run=../x&names=loss", X_Afzal_Token=token)[0] == 404
        for path in ("one/run.json", "one/metrics.jsonl", "one/%2e%2e/%2e%2e/x.html", "one"):
            assert get(f"/f/{token}/{path}")[0] == 404, path
        status, headers, body = get(f"/f/{token}/one/report.html")
        assert (status, body[:7]) == (200, b"<title>")
        policy = headers["content-security-policy"]
        assert policy.startswith("sandbox;")
        assert "script" not in policy
        assert "default-src 'none'" in policy
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def texts(page: Any, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "(all) => all.map((one) => one.textContent.trim())")


def test_the_board_by_keyboard(chromium, tmp_path):
    made(tmp_path, "study/seed-1", [0.69, 0.6, 0.55, 0.5])
    made(tmp_path, "study/seed-2", [0.69, 0.62, 0.57, 0.52])
    for name in ("study/seed-1", "study/seed-2"):
        (tmp_path / name / "report.html").write_text(f"<link rel=icon href=data:,><title>report of {name}</title>")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text("no")
    board_page(tmp_path, "board")
    live = runs.create(tmp_path / "live", {})
    live.update(method="dpo", steps=9)
    live.log({"kind": "train", "step": 1, "seconds": 1.0, "loss": 0.69})
    with page_of("board", ".", cwd=tmp_path) as (address, _), person(chromium, address) as one:
        page = one.page
        one.phase("ready")
        one.says("4 runs, 1 training", "count")
        assert [row.split("\n")[0] for row in texts(page, "#runs li strong")] == [
            "bad", "live", "study/seed-1", "study/seed-2",
        ]  # fmt: skip
        assert texts(page, "#chosen li") == ["live"]  # runs in training are shown first
        one.press("j", "j", "j", "Space", "j", "Space")
        assert texts(page, "#chosen li") == ["live", "study/seed-1", "study/seed-2"]
        page.wait_for_function("() => document.querySelectorAll('[data-metric=loss] .line').length >= 3")
        live.log({"kind": "train", "step": 2, "seconds": 2.0, "loss": 0.6123})
        live.log({"kind": "eval", "step": 2, "n": 8, "loss": 0.7321})
        page.wait_for_function("() => document.body.innerText.includes('0.7321')", timeout=15_000)
        one.press("g", "ArrowRight", "ArrowRight")
        assert page.evaluate("document.activeElement.dataset.metric") == "loss"
        page.wait_for_function(
            "() => document.querySelector('[data-metric=loss] figcaption').innerText.includes('0.6123')",
            timeout=15_000,
        )
        assert "step 2" in page.inner_text("[data-metric=loss] figcaption")
        one.press("m", "Space", "Escape")  # the first in the list is the loss
        page.wait_for_function("() => !document.querySelector('[data-metric=loss]')")
        assert page.query_selector("[data-metric='rewards/margins']") is not None
        one.press("c")
        assert texts(page, "#chosen li") == []
        one.press("/")
        page.keyboard.type("seed-2")
        assert texts(page, "#runs li:not([hidden]) strong") == ["study/seed-2"]
        one.press("Escape", "Enter")
        page.wait_for_url("**/study/seed-2/report.html")
        assert page.title() == "report of study/seed-2"
        page.go_back()
        one.phase("ready")
        assert texts(page, "[data-testid=pages] a") == ["Which <model>?"]
    live.release()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_board_fits_a_phone(chromium, tmp_path, scheme):
    made(tmp_path, "a-name-without-end-" + "x" * 120, [0.69, 0.6], steps=10**6)
    size: Any = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    with page_of("board", ".", cwd=tmp_path) as (address, _), person(chromium, address, **size) as one:
        one.phase("ready")
        one.page.wait_for_selector("[data-metric=loss] .line", state="attached")
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_one_stray_run_does_not_flatten_the_others(chromium, tmp_path):
    """The axis fits the usual runs; the stray's furthest value is marked with its name."""
    for seed in range(4):
        made(tmp_path, f"seed-{seed}", [0.69 - 0.01 * step + 0.003 * seed for step in range(30)])
    made(tmp_path, "wild", [0.69 if step < 10 else 0.69 * 1.6 ** (step - 10) for step in range(30)])
    with page_of("board", ".", cwd=tmp_path) as (address, _), person(chromium, address) as one:
        one.phase("ready")
        one.press("c", *("j Space " * 5).split())
        one.page.wait_for_selector("[data-metric=loss] .beyond", state="attached")
        assert texts(one.page, "[data-metric=loss] .beyond-label") == ["wild: 5213.5"]
        ticks = [float(t) for t in texts(one.page, "[data-metric=loss] svg text[text-anchor=end]") if ":" not in t]
        assert max(ticks) < 1


def test_a_missing_folder_is_named(tmp_path, capsys):
    from afzal.cli import main

    assert main(["board", str(tmp_path / "nowhere"), "--headless"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
