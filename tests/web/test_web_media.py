"""Images and sounds: only those of the rows, only from the data's folder, in full or in parts; rankings and ratings."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest
from helpers_media import sound as sound_file
from helpers_media import wav
from helpers_web import answer, job, opened, pairs, served, write_rows
from starlette.testclient import TestClient

from afzal import data
from afzal.errors import AfzalError
from afzal.media import in_row
from afzal.records import Ranking, Rating, media_of
from afzal.web.app import application
from afzal.web.client import Client, new_id
from afzal.web.validation import RequestError


def row(*names: str, kind: str = "audio") -> dict:
    answers = [[{"role": "assistant", "content": [{"type": kind, kind: name}]}] for name in names]
    return {
        "afzal": 1,
        "id": "x",
        "prompt": [{"role": "user", "content": "p"}],
        "responses": [{"turns": a} for a in answers],
    }


@pytest.mark.parametrize(
    "name", ["../secret.wav", "/etc/hostname", "a/../../secret.wav", "link.wav", "missing.wav", "folder.wav", "a\0.wav"]
)
def test_only_files_of_the_datas_folder_are_taken(tmp_path, name):
    root = tmp_path / "data"
    (root / "folder.wav").mkdir(parents=True)
    (tmp_path / "secret.wav").write_bytes(wav())
    os.symlink(tmp_path / "secret.wav", root / "link.wav")
    with pytest.raises(AfzalError) as caught, opened(job(root, [row(name, name)])):
        pass
    assert caught.value.where == f"{root / 'rows.jsonl'}:1"


@pytest.mark.parametrize("content", [b"<html></html>", b"<svg></svg>", b"alert(1)", b""])
def test_only_images_and_sounds_are_taken(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(AfzalError), opened(job(tmp_path, [row("a.png", "a.png", kind="image")])):
        pass


def test_media_are_copied_named_by_their_bytes_and_found_by_nothing_else(tmp_path):
    named, in_the_row = wav(300), in_row("audio", wav(500))
    (tmp_path / "gpt4.wav").write_bytes(named)
    address = "data:audio/wav;base64," + base64.b64encode(in_the_row.read()).decode()
    with opened(job(tmp_path, [row("gpt4.wav", address)])) as folder:
        key = hashlib.sha256(named).hexdigest()
        library = folder.library
        assert library.find(key) == tmp_path / "out" / "media" / f"{key}.wav"
        assert library.find(in_the_row.sha256).read_bytes() == in_the_row.data
        for other in ("gpt4.wav", f"{key}.wav", f"../media/{key}", key[:16], ""):
            assert library.find(other) is None
        text = (tmp_path / "out" / "items.jsonl").read_text()
        assert "gpt4" not in text
        assert "data:" not in text
        (tmp_path / "gpt4.wav").unlink()
    (read,) = data.read(tmp_path / "out").items  # the page's folder is complete without the data folder
    assert [media.read() for media in media_of(read)] == [named, in_the_row.data]
    library.find(key).unlink()
    os.symlink("/etc/hostname", tmp_path / "out" / "media" / f"{key}.wav")
    assert library.find(key) is None


def test_a_page_is_resumed_with_its_media(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(300))
    (tmp_path / "b.wav").write_bytes(wav(500))
    made = job(tmp_path, [row("a.wav", "b.wav")])
    with opened(made) as folder:
        shown = [turns[0]["parts"][0]["media"] for turns in folder.session.next("ann")["responses"]]
    with opened(made) as folder:
        assert all(folder.library.find(key) for key in shown)


def test_files_are_served_whole_and_in_ranges_to_those_with_a_token(tmp_path):
    sound, other = wav(300, 1.0), sound_file("MP3")
    (tmp_path / "llama.wav").write_bytes(sound)
    (tmp_path / "gpt.mp3").write_bytes(other)
    with opened(job(tmp_path, [row("llama.wav", "gpt.mp3")])) as folder, TestClient(application(folder)) as client:
        (token,) = folder.tokens
        asked = folder.session.next("ann")
        said = json.dumps(asked)
        assert "llama" not in said
        assert "gpt" not in said
        bodies, address = {}, ""
        for turns in asked["responses"]:
            place = f"/media/{token}/{turns[0]['parts'][0]['media']}"
            reply = client.get(place)
            bodies[reply.headers["content-type"]] = reply.content
            address = place if reply.content == sound else address
        assert bodies == {"audio/wav": sound, "audio/mpeg": other}
        part = client.get(address, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, sound[100:200])
        assert part.headers["content-range"] == f"bytes 100-199/{len(sound)}"
        assert client.get(address, headers={"Range": "bytes=-56"}).content == sound[-56:]
        assert client.get(address, headers={"Range": f"bytes={len(sound)}-"}).status_code == 416
        assert client.get(address.replace(token, "x" * 24)).status_code == 404
        for name in ("llama.wav", "..%2f..%2fetc%2fpasswd", "../rows.jsonl", "0" * 64):
            assert client.get(f"/media/{token}/{name}").status_code == 404


def test_a_ranking_holds_the_numbers_of_the_responses(tmp_path):
    four = {"afzal": 1, "id": "x", "prompt": "p", "responses": [{"turns": t} for t in "abcd"]}
    with opened(job(tmp_path, [four])) as folder:
        assert folder.task.mode == "rank"
        asked = folder.session.next("ann")
        texts = [turns[0]["parts"][0]["text"] for turns in asked["responses"]]
        places = {text: k for k, text in enumerate(texts)}
        line = answer(folder.session, "ann", folder, groups=[[places["c"]], [places["a"], places["d"]], [places["b"]]])
        assert line["groups"] == [[2], [0, 3], [1]]
        assert ["abcd"[k] for k in line["shown"]] == texts
    (read,) = data.read(tmp_path / "out").items
    (vote,) = read.votes
    assert isinstance(vote, Ranking)
    assert [sorted(group) for group in vote.groups] == [[2], [0, 3], [1]]


@pytest.mark.parametrize(
    "groups",
    [
        None,
        [],
        [[0, 1, 2]],
        [[0], [1], [2], [3], [3]],
        [[0], [], [1, 2, 3]],
        [[0.0], [1], [2], [3]],
        [["0"]],
        [[-1, 0, 1, 2]],
    ],
)
def test_a_ranking_must_name_every_place_once(tmp_path, groups):
    four = {"afzal": 1, "id": "x", "prompt": "p", "responses": [{"turns": t} for t in "abcd"]}
    with opened(job(tmp_path, [four])) as folder, pytest.raises(RequestError):
        answer(folder.session, "ann", groups=groups, values=None)


def test_ratings_are_in_the_order_of_the_screen(tmp_path):
    with opened(job(tmp_path, pairs(1), mode="rate")) as folder:
        asked = folder.session.next("ann")
        texts = [turns[0]["parts"][0]["text"] for turns in asked["responses"]]
        answer(folder.session, "ann", folder, values=[5 if text.startswith("good") else 2 for text in texts])
        assert folder.session.next("ann")["state"] == "done"
    (read,) = data.read(tmp_path / "out").items
    assert {(v.response, v.value) for v in read.votes if isinstance(v, Rating)} == {(0, 5), (1, 2)}


@pytest.mark.parametrize("values", [None, [5], [5, 6], [0, 1], [1.5, 2], [True, 1], ["1", "2"], [1, None]])
def test_a_rating_is_a_whole_number_of_the_scale(tmp_path, values):
    with opened(job(tmp_path, pairs(1), mode="rate")) as folder, pytest.raises(RequestError):
        answer(folder.session, "ann", values=values, groups=None)


def test_more_than_nine_responses_cannot_be_ranked_by_digits(tmp_path):
    many = {"afzal": 1, "id": "x", "prompt": "p", "responses": [{"turns": str(t)} for t in range(10)]}
    with pytest.raises(AfzalError, match="rank at most 9"), opened(job(tmp_path, [many])):
        pass


def test_a_script_ranks_and_rates_over_the_network(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(2))
    for mode, said in (("rank", {"groups": [[1], [0]]}), ("rate", {"values": [3, 5]})):
        arguments = ["rows.jsonl", "--mode", mode, "--annotators", "ann", "--out", mode]
        with served(*arguments, cwd=tmp_path) as ((address,), _):
            client = Client(address)
            asked = client.next()
            ident = new_id()
            once, twice = (client.vote(asked, id=ident, **said) for _ in range(2))
            assert once["saved"] == twice["saved"]
            assert client.vote(once["next"], **said)["next"]["state"] == "done"
