"""`make media`: the pictures and sounds, the figures, and resumable stages."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from afzal import data
from afzal.records import media_of
from benchmarks.media import __main__ as media
from benchmarks.media import page, steps, world
from benchmarks.stages import Stage, make_all

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")


def test_every_caption_is_of_one_number_and_kind_and_no_two_are_alike():
    for name, n in (("shapes", 48), ("tones", 18)):
        known = world.captions(name)
        assert len(set(known)) == len(known) == n
        assert all(text.endswith("s") != text.startswith("one ") for text in known)


@pytest.mark.parametrize(("caption", "hertz"), [("one long low tone", 300), ("three short high tones", 2000)])
def test_a_sound_has_the_pitch_and_the_number_of_tones_that_its_caption_says(caption: str, hertz: float):
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(world.medium("tones", caption, np.random.default_rng(3))))
    assert len(samples) == rate == world.RATE
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(float(spectrum.argmax()) - hertz) <= 0.1 * hertz + 20
    loud = np.abs(samples).reshape(-1, 160).max(1) > 0.1
    assert int((np.diff(loud.astype(int)) == 1).sum()) == {"one": 1, "three": 3}[caption.split()[0]]


def test_a_picture_has_the_colour_and_the_area_that_its_caption_says():
    from PIL import Image

    def inked(caption: str) -> np.ndarray:
        image = Image.open(io.BytesIO(world.medium("shapes", caption, np.random.default_rng(1))))
        pixels = np.asarray(image).reshape(-1, 3).astype(int)
        return pixels[pixels.min(1) < 200]

    one, four = inked("one green circle"), inked("four green circles")
    assert (four.argmax(1) == 1).all()
    assert 2.5 < len(four) / len(one) < 6


def test_the_true_caption_counts_where_it_is_the_likeliest_and_a_tie_does_not():
    assert page.chosen(np.array([[-1.0, -2, -3], [-2, -1, -3], [-1, -1, -3]])).tolist() == [1.0, 0.0, 0.0]


def test_the_probability_of_the_true_caption_is_among_all_captions():
    assert page.believed(np.log([[0.2, 0.1, 0.1], [0.01, 0.02, 0.01]])) == pytest.approx([0.5, 0.25])


def test_a_sloppy_caption_counts_one_more_and_one_in_place_of_the_largest_number():
    known = world.captions("tones")
    assert world.one_more("two short high tones", known) == "three short high tones"
    assert world.one_more("three short high tones", known) == "one short high tone"
    assert world.one_more("four red squares", world.captions("shapes")) == "one red square"


def test_one_in_five_preferences_is_reversed_and_no_medium_is_in_two_files(tmp_path: Path):
    size = world.Size(demonstrations=30, preferences=400, held_out=30)
    for name in ("one", "again"):
        world.write(tmp_path / name, "shapes", size)
    files = [tmp_path / "one" / f"{name}.jsonl" for name in ("sft", "prefer", "held-out")]
    seen = [{m.sha256 for item in data.read(str(f)).items for m in media_of(item)} for f in files]
    assert [len(s) for s in seen] == [30, 400, 30]
    assert len(set.union(*seen)) == 460
    for f in sorted((tmp_path / "one").iterdir()):
        assert f.read_bytes() == (tmp_path / "again" / f.name).read_bytes()
    pairs = [json.loads(line) for line in files[1].read_text("utf-8").splitlines()]
    said = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in pairs]
    assert all(world.words_apart(*both) == 1 for both in said)
    truths = _truths(size)
    assert all(truth in both for truth, both in zip(truths, said, strict=True))
    flipped = np.mean([truth == rejected for truth, (_, rejected) in zip(truths, said, strict=True)])
    assert flipped == pytest.approx(world.FLIPPED, abs=0.06)


def _truths(size: world.Size) -> list[str]:
    """The true captions of the preferences, drawn again as the pictures were."""
    rng, known, drawn = np.random.default_rng([0, 0]), world.captions("shapes"), []
    for _ in range(size.demonstrations + size.preferences):
        drawn.append(known[rng.permutation(len(known))[0]])
        world.medium("shapes", drawn[-1], rng)
        rng.random()
    return drawn[size.demonstrations :]


def _digests(out: Path) -> dict[str, str]:
    """Digests of everything that contains no time of day: rows, answers, weights, measurements and the page."""
    kept = [*out.glob("*/*.jsonl"), *out.glob("*/*.json"), *out.glob("page/*"), *out.glob("*/*/model.safetensors")]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


@pytest.mark.slow
def test_each_stage_of_pictures_leaves_its_file(tmp_path: Path):
    made = [stage for stage in media.stages(tmp_path, world.QUICK) if stage.name.startswith("shapes/")]
    make_all(tmp_path, made, say=lambda text: None)
    assert all((tmp_path / stage.name).exists() for stage in made)
    logps = json.loads((tmp_path / "shapes" / "measured-mpo.json").read_text("utf-8"))
    assert np.array(logps["seen"]).shape == np.array(logps["blank"]).shape == (world.QUICK.held_out, 48)
    assert np.abs(np.array(logps["seen"]) - np.array(logps["blank"])).max() > 1e-4


@pytest.mark.slow
def test_a_quick_run_that_is_killed_ends_in_the_same_bytes_and_its_page_plays(tmp_path: Path, monkeypatch):
    whole = media.run(tmp_path / "whole", world.QUICK)
    text = whole.read_text("utf-8")
    assert text.count('<img src="data:image/png;base64,') == text.count("<audio controls") == world.QUICK.shown
    assert "media-src data:" in text
    out, original = tmp_path / "killed", media.stages
    left = ["shapes/mpo", "tones/sft", "tones/answers", "page"]

    class Killed(BaseException):
        pass

    def stopping(folder: Path, size: world.Size) -> list[Stage]:
        def cut(stage: Stage) -> Stage:
            def make(to: Path) -> None:
                stage.make(to)
                if left and stage.name == left[0]:  # everything is written, nothing has been renamed yet
                    left.pop(0)
                    raise Killed

            return Stage(stage.name, make)

        return [cut(stage) for stage in original(folder, size)]

    monkeypatch.setattr(media, "stages", stopping)
    for _ in range(4):
        with pytest.raises(Killed):
            media.run(out, world.QUICK)
    media.run(out, world.QUICK)
    assert _digests(out) == _digests(tmp_path / "whole")
    _a_cached_reference_changes_no_bit(tmp_path / "whole" / "shapes", tmp_path / "cached")


def _a_cached_reference_changes_no_bit(folder: Path, to: Path) -> None:
    steps.prefer("mpo", folder / "sft", folder / "data" / "prefer.jsonl", to, world.QUICK, reference="cached")
    assert (to / "model.safetensors").read_bytes() == (folder / "mpo" / "model.safetensors").read_bytes()
