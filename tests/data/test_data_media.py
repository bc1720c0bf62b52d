"""Images and sounds in rows: every way to write them, their positions, and every reason to refuse one."""

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest
from helpers_media import png, sound, wav

from afzal.data import FORMATS, read, write
from afzal.data.mediafiles import MediaRules
from afzal.errors import AfzalError
from afzal.media import in_row
from afzal.records import Message, media_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "formats"
RED, BLUE, TONE = png(200), png(9), wav()
PAIR = {"chosen": "A dot.", "rejected": "A line."}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m").mkdir()
    for name, content in (("red.png", RED), ("blue.png", BLUE), ("tone.wav", TONE)):
        (tmp_path / "m" / name).write_bytes(content)
    return tmp_path


def put(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(folder, *rows, **options):
    return read(put(folder, *rows), **options).items


def shas(told):
    return [media.sha256 for media in media_of(told)]


def sha(content):
    return hashlib.sha256(content).hexdigest()


def laid_out(turns):
    """Content as text, with [kind] in place of each medium."""
    return [
        m.content
        if isinstance(m.content, str)
        else "".join(p["text"] if p["type"] == "text" else f"[{p['type']}]" for p in m.content)
        for m in turns
    ]


def refused(folder, *rows, **options):
    """The reason and detail for the one unreadable row."""
    path = put(folder, {"prompt": "Fine?", **PAIR, "images": []}, *rows)
    dataset = read(path, on_error="drop", format="conversational", **options)
    assert dataset.kept == len(rows)
    return dataset.drops[0].reason, dataset.drops[0].detail


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "m/red.png"},
        {"type": "image", "path": "m/red.png"},
        {"type": "image", "url": "m/red.png"},
        {"type": "image_url", "image_url": {"url": "m/red.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(RED).decode()}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{base64.b64encode(RED).decode()}"},
        {"type": "image", "base64": base64.b64encode(RED).decode()},
        {"type": "image", "image": {"path": "m/red.png", "bytes": None}, "text": None},
    ],
)
def test_a_typed_part_may_name_or_hold_its_image(folder, part):
    asked = {"role": "user", "content": [part, {"type": "text", "text": "Which <image>?"}]}
    (item,) = items(folder, {"prompt": [asked], **PAIR})
    assert shas(item.prompt) == [sha(RED)]
    assert laid_out(item.prompt) == ["[image]Which <image>?"]
    assert media_of(item)[0].read() == RED


def test_a_sound_of_a_server_and_a_sound_as_samples(folder):
    given = {"type": "input_audio", "input_audio": {"data": base64.b64encode(TONE).decode(), "format": "wav"}}
    samples = {"type": "audio", "audio": {"array": [0.0, 0.5, -0.5, 0.25], "sampling_rate": 8000, "path": None}}
    (item,) = items(folder, {"prompt": [{"role": "user", "content": [given, samples]}], **PAIR})
    import io

    import soundfile

    assert shas(item)[0] == sha(TONE)
    frames, rate = soundfile.read(io.BytesIO(media_of(item)[1].read()), dtype="float32")
    assert (frames.tolist(), rate) == ([0.0, 0.5, -0.5, 0.25], 8000)


@pytest.mark.parametrize(
    ("columns", "marks"),
    [
        ({"images": ["m/red.png"]}, "<image>"),
        ({"image": "m/red.png"}, "<image>"),
        ({"image": {"path": "m/red.png", "bytes": None}}, "<image>"),
        ({"image_path": "m/red.png", "audio": None}, "<image>"),
        ({"audios": ["m/tone.wav"]}, "<audio>"),
        ({"audio": "m/tone.wav"}, "<audio>"),
        ({"images": ["m/red.png", "m/blue.png"], "audio": "m/tone.wav"}, "<image><audio><image>"),
    ],
)
def test_media_of_columns_are_at_the_marks(folder, columns, marks):
    (item,) = items(folder, {"prompt": f"Look {marks} here", **PAIR, **columns})
    assert laid_out(item.prompt) == [f"Look {marks} here".replace("<", "[").replace(">", "]")]
    assert item.prompt[0].role == "user"
    assert [r.turns for r in item.responses] == [(Message("assistant", PAIR[side]),) for side in PAIR]


def test_media_are_taken_in_reading_order_through_prompt_and_answers(folder):
    row = {"prompt": "Draw <image> again", "chosen": "<image>", "rejected": "Here: <image>"}
    (item,) = items(folder, row | {"images": ["m/red.png", "m/blue.png", "m/red.png"]})
    assert shas(item.prompt) == [sha(RED)]
    assert [shas(r.turns) for r in item.responses] == [[sha(BLUE)], [sha(RED)]]
    assert laid_out(item.responses[1].turns) == ["Here: [image]"]


def test_dialogues_that_repeat_the_prompt_count_its_marks_once(folder):
    asked = {"role": "user", "content": "<image>What?"}
    sides = {side: [asked, {"role": "assistant", "content": said}] for side, said in PAIR.items()}
    (item,) = items(folder, {**sides, "images": ["m/red.png"]})
    assert shas(item) == [sha(RED)]


def test_typed_places_without_payload_take_the_columns_and_typed_text_is_never_a_mark(folder):
    content = [{"type": "text", "text": "What does <image> mean in "}, {"type": "image", "index": 0}]
    (item,) = items(folder, {"prompt": [{"role": "user", "content": content}], **PAIR, "images": ["m/red.png"]})
    assert laid_out(item.prompt) == ["What does <image> mean in [image]"]
    content[1]["index"] = 1
    assert refused(folder, {"prompt": [{"role": "user", "content": content}], **PAIR, "images": ["m/red.png"]})[0] == (
        "media_count"
    )


def test_without_any_mark_media_come_before_the_first_user_turn_and_a_note_says_so(folder):
    system = {"role": "system", "content": "Be brief."}
    turns = [system, {"role": "user", "content": "What?"}]
    dataset = read(put(folder, {"prompt": turns, **PAIR, "images": ["m/red.png", "m/blue.png"], "audio": "m/tone.wav"}))
    assert laid_out(dataset.items[0].prompt) == ["Be brief.", "[image][image][audio]What?"]
    assert "no marks: the media of 1 items come before the first user turn's text" in dataset.notes


def test_in_a_file_without_media_columns_a_mark_is_plain_text(folder):
    (item,) = items(folder, {"prompt": "What does <image> or <audio> mean?", **PAIR})
    assert item.prompt == "What does <image> or <audio> mean?"
    typed = [{"role": "user", "content": [{"type": "text", "text": "And <image>?"}]}]
    (item,) = items(folder, {"prompt": typed, **PAIR})
    assert item.prompt == (Message("user", "And <image>?"),)


@pytest.mark.parametrize(
    ("marks", "images", "told"),
    [
        ("<image><image>", ["m/red.png"], "2 marks <image> and 1 image in the columns"),
        ("<image>", ["m/red.png"] * 3, "1 mark <image> and 3 images in the columns"),
        ("<image>", [], "1 mark <image> and no images in the columns"),
        ("<image><audio>", ["m/red.png"], "1 mark <audio> and no sounds in the columns"),
    ],
)
def test_a_mismatch_refuses_the_row_with_both_counts(folder, marks, images, told):
    good = {"prompt": "<image>", **PAIR, "images": ["m/red.png"]}
    assert refused(folder, {"prompt": f"{marks}What?", **PAIR, "images": images}, good) == ("media_count", told)


@pytest.mark.parametrize("name", sorted({e.name for e in FORMATS if e.family not in ("refused",)}))
def test_every_format_with_a_prompt_carries_images(folder, name):
    path = FIXTURES / f"{name}.jsonl"
    files = [path] if path.exists() else sorted(FIXTURES.glob(f"{name}*.jsonl"))
    for file in files:
        plain = read(file, format=name)
        rows = [json.loads(line) | {"images": ["m/red.png"]} for line in file.read_text().splitlines()]
        if name in ("text", "anthropic_evals") or (name == "oasst" and plain.rows < len(plain.items)):
            rows = [row for row in rows if row.get("text") != "" and row.get("prompt") != ""]
        if name == "text":
            with pytest.raises(AfzalError, match="none of"):
                items(folder, *rows, format=name)
            continue
        made = read(put(folder, *rows), format=name)
        assert len(made.items) == len(plain.items)
        assert all(shas(item) == [sha(RED)] for item in made.items)
        assert [item.votes for item in made.items] == [item.votes for item in plain.items]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("m/none.png", "media_missing"),
        ("m", "media_missing"),
        ("m/red\0.png", "media_missing"),
        ("x" * 5000, "media_missing"),
        ("../outside.png", "media_outside"),
        ("m/../m/red.png", "media_outside"),
        ("link.png", "media_outside"),
        ("linked/outside.png", "media_outside"),
        ("/etc/hostname", "media_outside"),
        ("https://example.org/red.png", "media_address"),
        ("file:///etc/hostname", "media_address"),
        ("data:image/png;base64,@@@", "media_broken"),
        ("data:image/png,abc", "media_broken"),
        ("data:image/png;base64,", "media_broken"),
    ],
)
def test_a_path_leads_to_a_file_inside_the_folder_or_the_row_is_refused(tmp_path, folder, name, reason):
    inner = folder / "inner"
    inner.mkdir()
    (folder / "m").rename(inner / "m")
    (folder / "outside.png").write_bytes(RED)
    (inner / "link.png").symlink_to(folder / "outside.png")
    (inner / "linked").symlink_to(folder)
    for row in (
        {"prompt": "<image>", **PAIR, "images": [name]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": name}]}], **PAIR},
    ):
        assert refused(inner, row)[0] == reason


def test_links_and_absolute_paths_inside_the_folder_are_fine(folder):
    (folder / "link.png").symlink_to(folder / "m" / "red.png")
    row = {"prompt": "<image><image>", **PAIR, "images": ["link.png", str(folder / "m" / "red.png")]}
    (item,) = items(folder, row)
    assert shas(item) == [sha(RED)] * 2
    assert [m.name for m in media_of(item)] == row["images"]


def bomb():
    """A PNG of 60,000 x 60,000 pixels in a few hundred bytes."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


PHOTO = png(77, (64, 64), "JPEG")
BROKEN = {
    "empty": ("image", b"", "media_broken"),
    "text": ("image", b"this is no image", "media_wrong_type"),
    "zeros": ("image", b"\0" * 100, "media_wrong_type"),
    "sound": ("image", TONE, "media_wrong_type"),
    "svg": ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "media_wrong_type"),
    "postscript": ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n", "media_wrong_type"),
    "cut_png": ("image", png(1, (64, 64))[:-20], "media_broken"),
    "cut_jpeg": ("image", PHOTO[: len(PHOTO) * 2 // 3], "media_broken"),
    "head_of_png": ("image", RED[:20], "media_broken"),
    "bomb": ("image", bomb(), "media_too_large"),
    "picture": ("audio", RED, "media_wrong_type"),
    "words": ("audio", b"lalala" * 50, "media_wrong_type"),
    "cut_wav": ("audio", TONE[:-300], "media_broken"),
    "cut_flac": ("audio", sound("FLAC")[:-900], "media_broken"),
    "no_samples": ("audio", wav(seconds=0), "media_broken"),
    "mp3_of_noise": ("audio", b"ID3" + bytes(range(256)) * 4, "media_broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_row_and_reason(folder, name):
    kind, content, reason = BROKEN[name]
    (folder / "x.jpg").write_bytes(content)
    row = {"prompt": f"<{kind}>", **PAIR, f"{kind}s": ["x.jpg"]}
    got, detail = refused(folder, row)
    assert got == reason
    assert detail.startswith("'x.jpg' ")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_formats_of_images(folder, format):
    (folder / "x").write_bytes(png(5, (20, 10), format))
    assert len(shas(items(folder, {"prompt": "<image>", **PAIR, "image": "x"})[0])) == 1


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_of_sounds(folder, format):
    (folder / "x").write_bytes(sound(format))
    assert len(shas(items(folder, {"prompt": "<audio>", **PAIR, "audio": "x"})[0])) == 1


@pytest.mark.parametrize(
    ("rules", "kind", "name"),
    [
        (MediaRules(max_mib=1e-5), "image", "m/red.png"),
        (MediaRules(max_megapixels=47e-6), "image", "m/red.png"),
        (MediaRules(max_minutes=0.001), "audio", "m/tone.wav"),
    ],
)
def test_limits_are_settings(folder, rules, kind, name):
    row = {"prompt": f"<{kind}>", **PAIR, f"{kind}s": [name]}
    assert refused(folder, row, media=rules)[0] == "media_too_large"
    assert len(items(folder, row, media=MediaRules(max_megapixels=48e-6, max_minutes=0.1 / 60))) == 1


def test_another_folder_may_be_named(folder, tmp_path):
    elsewhere = folder / "m"
    row = {"prompt": "<image>", **PAIR, "images": ["red.png"]}
    assert refused(folder, row)[0] == "media_missing"
    assert shas(items(folder, row, media=MediaRules(folder=str(elsewhere)))[0]) == [sha(RED)]


@pytest.mark.parametrize("field", ["video", "videos", "rejected_images"])
def test_fields_that_are_not_read_are_refused_and_counted(folder, field):
    assert refused(folder, {"prompt": "<image>", **PAIR, "images": ["m/red.png"], field: ["x.mp4"]})[0] == "media"


def test_values_that_are_no_media_are_refused(folder):
    for value in ([None], [3], 7.5, {"width": 3}, [["m/red.png"]], {"array": "no", "sampling_rate": 8000}):
        assert refused(folder, {"prompt": "<image>", **PAIR, "images": value})[0] == "wrong_type"
    part = {"type": "image", "image": "m/red.png", "path": "m/blue.png"}
    assert refused(folder, {"prompt": [{"role": "user", "content": [part]}], **PAIR})[0] == "wrong_type"


def test_bytes_in_parquet_with_the_layout_of_datasets(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"prompt": "<image>What?", **PAIR, "images": [{"bytes": RED, "path": None}]},
        {
            "prompt": "<image>And <image>?",
            **PAIR,
            "images": [{"bytes": BLUE, "path": "b.png"}, {"bytes": RED, "path": ""}],
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    made = read(folder / "x.parquet").items
    assert [shas(item) for item in made] == [[sha(RED)], [sha(BLUE), sha(RED)]]
    assert media_of(made[0])[0].data == RED


def test_a_saved_data_set_keeps_the_bytes_of_its_images_and_sounds(folder):
    datasets = pytest.importorskip("datasets")
    rows = {"prompt": ["<image>A?", "<image>B?"], "chosen": ["a", "b"], "rejected": ["c", "d"]}
    rows["image"] = [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}]
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.save_to_disk(str(folder / "saved"))
    got = read(folder / "saved").items
    assert [shas(item) for item in got] == [[sha(RED)], [sha(BLUE)]]


def test_a_decoded_picture_is_kept_as_png(folder):
    from PIL import Image

    from afzal.data.mediaparts import path_or_bytes

    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    import io

    again = Image.open(io.BytesIO(path_or_bytes(picture)))
    assert (again.size, again.getpixel((2, 1))) == ((3, 2), (1, 2, 3))


@pytest.mark.parametrize("target", ["afzal", "conversational", "openai"])
def test_writers_keep_media_and_reading_them_gives_the_same_items(folder, target):
    inline = f"data:image/png;base64,{base64.b64encode(BLUE).decode()}"
    turns = [{"role": "user", "content": [{"type": "image", "image": inline}, {"type": "text", "text": "<audio>?"}]}]
    rows = [
        {
            "prompt": "<image>What <audio>?",
            "chosen": "<image>",
            "rejected": "No.",
            "images": ["m/red.png", "m/blue.png"],
        }
        | {"audios": ["m/tone.wav"]}
    ]
    for given in (rows, [{"prompt": turns, **PAIR}]):
        first = read(put(folder, *given))
        write(first.items, folder / "out.jsonl", target)
        again = read(folder / "out.jsonl")
        assert again.fingerprint == first.fingerprint
        assert [m.name for m in media_of(again.items[0])] == [m.name for m in media_of(first.items[0])]


def test_media_are_named_from_the_folder_of_the_written_file(folder):
    made = items(folder, {"prompt": "<image>", **PAIR, "images": ["red.png"]}, media=MediaRules(folder=f"{folder}/m"))
    write(made, folder / "out.jsonl", "afzal")
    write(made, folder / "elsewhere" / "out.jsonl", "afzal")
    assert [m.name for m in media_of(read(folder / "out.jsonl").items[0])] == ["m/red.png"]
    with pytest.raises(AfzalError, match=r"'red.png' is not a file in elsewhere/") as caught:
        read(folder / "elsewhere" / "out.jsonl")
    assert "--media-folder" in caught.value.remedy
    again = read(folder / "elsewhere" / "out.jsonl", media=MediaRules(folder=f"{folder}/m"))
    assert shas(again.items[0]) == [sha(RED)]


def test_a_written_row_whose_file_changed_is_refused(folder):
    write(items(folder, {"prompt": "<image>", **PAIR, "images": ["m/red.png"]}), folder / "out.jsonl", "afzal")
    (folder / "m" / "red.png").write_bytes(BLUE)
    with pytest.raises(AfzalError, match="is not the file that the row was written with: its SHA-256 differs"):
        read(folder / "out.jsonl")


def test_votes_on_one_question_with_two_pictures_stay_apart(folder):
    rows = [
        {
            "prompt": "<image>?",
            "response_a": "A.",
            "response_b": "B.",
            "winner": side,
            "annotator": who,
            "images": [name],
        }
        for name, who, side in (("m/red.png", "ann", "A"), ("m/red.png", "ben", "B"), ("m/blue.png", "ann", "A"))
    ]
    made = items(folder, *rows)
    assert [(shas(item), len(item.votes)) for item in made] == [([sha(RED)], 2), ([sha(BLUE)], 1)]


def test_without_the_extra_one_line_names_it_and_first_bytes_are_still_checked(folder, monkeypatch):
    monkeypatch.setattr("afzal.data.mediafiles.find_spec", lambda name: None)
    (folder / "x.jpg").write_bytes(b"this is no image")
    row = {"prompt": "<image>", **PAIR, "images": ["m/red.png"]}
    notes = read(put(folder, row, row)).notes
    assert [n for n in notes if "afzal[vision]" in n] == [
        "images were not fully checked, only their first bytes; pip install afzal[vision]"
    ]
    assert refused(folder, row | {"images": ["x.jpg"]})[0] == "media_wrong_type"


def test_a_file_used_by_many_rows_is_read_once(folder, monkeypatch):
    read_bytes, opened = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self.name) or read_bytes(self))
    items(folder, *[{"prompt": f"<image>{n}", **PAIR, "images": ["m/red.png"]} for n in range(20)])
    assert opened == ["red.png"]


def test_a_pipe_is_no_file_and_does_not_hang(folder):
    os.mkfifo(folder / "pipe.png")
    assert refused(folder, {"prompt": "<image>", **PAIR, "images": ["pipe.png"]})[0] == "media_missing"


def test_media_in_a_row_equal_those_of_a_file(folder):
    (item,) = items(folder, {"prompt": "<image>", **PAIR, "images": ["m/red.png"]})
    assert media_of(item) == (in_row("image", RED),)
