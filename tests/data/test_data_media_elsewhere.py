"""Media stored away from their rows, or not media at all: the message gives the remedy, and ``convert`` applies it."""

import json

import pytest
from helpers_media import png

import afzal
from afzal.data import read
from afzal.data.fields import RowError
from afzal.data.mediafiles import MediaRules, inspect
from afzal.errors import AfzalError
from afzal.records import media_of


def test_convert_brings_rows_and_media_of_two_folders_together(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(png())
    row = {"prompt": "<image>What?", "chosen": "a", "rejected": "b", "images": ["red.png"]}
    source, out = tmp_path / "rows.jsonl", tmp_path / "new" / "rows.jsonl"
    source.write_text(json.dumps(row) + "\n")
    with pytest.raises(AfzalError, match=r"'red\.png' is not a file") as caught:
        read(source)
    assert "afzal convert FILE OUT --to afzal --media-folder FOLDER" in caught.value.remedy
    said = afzal.api.convert(source, out, to="afzal", media_folder=tmp_path / "pictures")
    assert str(said).endswith("new/media: 1 images or sounds from other folders")
    (tmp_path / "pictures" / "red.png").unlink()
    (item,) = read(out).items
    assert [media.read() for media in media_of(item)] == [png()]


def test_a_video_is_named_as_one(tmp_path):
    for start in (b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI "):
        with pytest.raises(RowError, match="is a video"):
            inspect("image", start + bytes(100) + b"\xff", MediaRules())
