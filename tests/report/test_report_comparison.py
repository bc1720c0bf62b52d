"""The picture of a comparison, with and without the library that draws it."""

from __future__ import annotations

import struct
import sys
import zlib
from xml.etree import ElementTree

import pytest
from helpers_report import comparison as body

from afzal import report
from afzal.errors import AfzalError
from afzal.report import Series, comparison_views, line_chart, raster, standalone


def test_methods_are_told_apart_by_their_paired_difference_not_by_two_intervals():
    """The intervals of a, 1.9 to 2.1, and b, 1.95 to 2.15, overlap; what counts is the difference, reversed for b."""
    close = body()
    assert comparison_views.findings(close)[0].endswith(
        "Their difference on the same prompts is 0.0500 [\N{MINUS SIGN}0.010, 0.110], so they cannot be told apart."
    )
    clear = {**body(), "differences": [{**body()["differences"][0], "low": -0.07, "high": -0.03}]}
    assert comparison_views.findings(clear)[0].endswith(
        "Their difference on the same prompts is 0.0500 [0.030, 0.070], so they can be told apart."
    )
    alone = {**body(), "differences": [{**body()["differences"][0], "low": None, "high": None}]}
    assert "apart" not in comparison_views.findings(alone)[0]


def test_a_level_that_some_seeds_do_not_reach_is_not_comparable():
    one, other = body()["methods"]
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    some = {**one, "matched": [{"kl": 1.0, "reached": 1, "of": 2, **nothing}]}
    none = {**other, "matched": [{"kl": 1.0, "reached": 0, "of": 2, **nothing}]}
    rows = comparison_views.matched({**body(), "methods": [some, none]})["rows"]
    assert [row[1] for row in rows] == [("not comparable", "1 of 2 seeds reach it"), ("not reached", "")]
    said = comparison_views.findings({**body(), "methods": [some, none]})[0]
    assert said == "Too few methods reach a common KL with every seed, so they cannot be ranked."


def test_the_page_escapes_answers_and_says_when_intervals_overlap(tmp_path):
    report.write_comparison(tmp_path, body())
    page = (tmp_path / "compare.html").read_text()
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<script" not in page
    assert "A &amp; &lt;i&gt;" in page
    assert "At a KL of 1.00 nats, B has the highest gold, 2.050" in page
    assert "cannot be told apart" in page
    assert "cut off" in page


def test_the_picture_is_the_drawing_of_the_page(tmp_path):
    page = report.write_comparison(tmp_path, body()).read_text()
    drawing = (tmp_path / "compare.svg").read_text()
    root = ElementTree.fromstring(drawing)
    assert (root.get("width"), root.get("height")) == ("960", "470")
    assert drawing.partition("</style>")[2].partition("/>")[2].removesuffix("</svg>") in page


def test_a_flattened_drawing_has_no_variables_and_the_colours_of_the_page(tmp_path):
    report.write_comparison(tmp_path, body())
    flat = raster.flattened((tmp_path / "compare.svg").read_text())
    ElementTree.fromstring(flat)
    assert "var(" not in flat
    assert "@media" not in flat
    assert "svg .l.s3{fill: none; stroke: #c24a00;" in flat
    assert "svg .paper{fill: #ffffff;}" in flat


def test_the_png_has_the_colours_of_the_drawing(tmp_path):
    pytest.importorskip("resvg_py")
    lines = [Series("a", ((0, 1.0), (1, 2.0)), 2), Series("b", ((0, 2.0), (1, 1.0)), 3)]
    path = tmp_path / "small.svg"
    path.write_text(standalone(line_chart(lines, title="a and b", x_label="", width=120, height=80)))
    width, height, pixels = decoded(report.write_png(path).read_bytes())
    assert (width, height) == (240, 160)
    assert pixels[:4] == bytes([255, 255, 255, 255])  # the paper, in the corner
    colours = {pixels[k : k + 4] for k in range(0, len(pixels), 4)}
    assert {bytes.fromhex(c + "ff") for c in ("0062b8", "c24a00", "5a626c")} <= colours  # two lines and the text


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and RGBA of a PNG of eight bits without interlacing."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data = 8, b""
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, colour, interlaced) == (8, 6, 0)
    raw, before, rows = zlib.decompress(data), bytes(width * 4), []
    for k in range(height):
        filtered, *line = raw[k * (width * 4 + 1) : (k + 1) * (width * 4 + 1)]
        before = _unfiltered(filtered, bytes(line), before)
        rows.append(before)
    return width, height, b"".join(rows)


def _unfiltered(how: int, line: bytes, above: bytes) -> bytes:
    out = bytearray(len(line))
    for k, value in enumerate(line):
        left, corner = (out[k - 4], above[k - 4]) if k >= 4 else (0, 0)
        guesses = (0, left, above[k], (left + above[k]) // 2, _paeth(left, above[k], corner))
        out[k] = (value + guesses[how]) % 256
    return bytes(out)


def _paeth(left: int, above: int, corner: int) -> int:
    return min((left, above, corner), key=lambda v: abs(left + above - corner - v))


def test_without_the_library_or_a_font_one_line_says_what_to_install(tmp_path, monkeypatch):
    report.write_comparison(tmp_path, body())
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(AfzalError, match="cannot draw a PNG") as caught:
        report.write_png(tmp_path / "compare.svg")
    assert "pip install 'afzal[png]'" in caught.value.remedy
    assert not (tmp_path / "compare.png").exists()
    monkeypatch.setattr(raster, "_pixels", lambda drawing: b"the same with and without a letter")
    with pytest.raises(AfzalError) as caught:
        report.require_png()
    assert "font" in caught.value.why
