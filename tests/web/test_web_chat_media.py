"""Images and sounds in a chat, attached in the terminal or on the page, and stored next to the votes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers_browser import person
from helpers_chat import Words, blind
from helpers_multimodal import picture, tone
from helpers_web import raw
from starlette.requests import Request
from test_web_chat import answered, page, typed

from afzal import data
from afzal.errors import AfzalError
from afzal.media import in_row, media_in
from afzal.records import media_of
from afzal.web.chat.app import Page
from afzal.web.chat.attachments import attachment, read_attachment
from afzal.web.chat.conversation import Conversation
from afzal.web.chat.session import Session

pytest.importorskip("PIL", reason="needs the extra vision")


def seeing(name: str, *kinds: Any) -> Words:
    return Words(name, reads=kinds or ("image", "audio"))


def test_media_come_before_the_text_of_one_message():
    session = Session(Conversation([seeing("m")], ""))
    image, sound = attachment(picture(1), "cat.png"), attachment(tone(440), "a.wav")
    session.attach(image)
    session.attach(sound)
    session.attach(image)  # once
    answered(session, "What is this?")
    content = session.conversation.rounds[0].prompts[0][-1].content
    assert list(media_in(content)) == [sound.media, image.media]
    assert content[-1] == {"type": "text", "text": "What is this?"}
    answered(session, "And now?")
    assert session.conversation.rounds[1].prompts[0][-1].content == "And now?"
    assert session.conversation.rounds[1].prompts[0][0].content == content  # the conversation keeps its image


def test_an_image_alone_is_a_message_and_nothing_is_not():
    session = Session(Conversation([seeing("m")], ""))
    with pytest.raises(AfzalError, match="nothing to answer"):
        session.say(" ")
    session.attach(attachment(picture(1), "cat.png"))
    answered(session, "")
    assert [part["type"] for part in session.conversation.rounds[0].prompts[0][-1].content] == ["image"]


def test_a_new_conversation_and_detaching_send_nothing():
    session = Session(Conversation([seeing("m")], ""))
    image = attachment(picture(1), "cat.png")
    session.attach(image)
    session.detach(image.media.sha256)
    assert session.attached == []
    session.attach(image)
    session.begin()
    assert session.attached == []


def test_a_turn_without_an_answer_gives_its_image_back():
    class Broken(Words):
        def answer(self, *a: Any) -> Any:
            raise AfzalError("no position is left")

    session = Session(Conversation([Broken("m", reads=("image",))], ""))
    session.attach(attachment(picture(1), "cat.png"))
    assert "no position is left" in typed(session, "hello")
    assert [one.media.name for one in session.attached] == ["cat.png"]
    # attached again while the models answered, it is not there twice
    session.say("hello")
    session.attach(attachment(picture(1), "again.png"))
    session.drop_round()
    assert [one.media.name for one in session.attached] == ["again.png"]


def test_a_file_that_cannot_be_stored_is_not_attached(tmp_path):
    session = Session(Conversation([seeing("eye", "image")], ""))
    (tmp_path / "media").write_text("in the way")
    routes = Page(session, "secret", {}, tmp_path)

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": picture(1), "more_body": False}

    request = Request({"type": "http", "method": "POST", "query_string": b"name=cat.png", "headers": []}, body)
    with pytest.raises(AfzalError, match=r"cat\.png"):
        asyncio.run(routes.attach(request))
    assert session.attached == []


def test_media_that_a_model_does_not_read_are_refused():
    session = Session(Conversation([seeing("eye", "image"), seeing("ear", "audio")], ""))
    with pytest.raises(AfzalError, match="ear cannot read images"):
        session.attach(attachment(picture(1), "cat.png"))
    with pytest.raises(AfzalError, match="eye cannot read sounds"):
        session.attach(attachment(tone(440), "a.wav"))
    with pytest.raises(AfzalError, match="ear cannot read images"):
        session.conversation.say("hello", [in_row("image", picture(1))])
    assert session.conversation.rounds == []


def test_a_blind_refusal_names_no_model(tmp_path):
    session = blind(tmp_path / "v", seeing("eye", "image"), Words("deaf"))
    with pytest.raises(AfzalError, match=r"^one of the models cannot read images"):
        session.attach(attachment(picture(1), "cat.png"))
    with pytest.raises(AfzalError, match=r"^the models cannot read sounds"):
        session.attach(attachment(tone(440), "a.wav"))
    session.votes.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cat.png is empty"),
        (b"just text", "neither an image nor a sound"),
        (picture(1)[:60], "broken png"),
        (tone(440)[:60], "cut off"),
    ],
)
def test_a_file_that_nobody_can_see_is_refused(content, message):
    with pytest.raises(AfzalError, match=message):
        attachment(content, "cat.png")


def test_votes_on_answers_to_an_image_are_data(tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(picture(1))
    session = blind(tmp_path / "v", seeing("ours"), seeing("theirs"))
    session.attach(read_attachment(str(file)))
    file.unlink()  # it has been read
    answered(session, "What is this?")
    session.judge("first", 1.0)
    answered(session, "Are you sure?")
    session.judge("second", 1.0)
    session.votes.close()
    sha = hashlib.sha256(picture(1)).hexdigest()
    assert [path.name for path in (tmp_path / "v/media").iterdir()] == [f"{sha}.png"]
    rows = [json.loads(line) for line in (tmp_path / "v/items.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"][0]["content"][0] == {"type": "image", "image": f"media/{sha}.png", "sha256": sha}
    (tmp_path / "v").rename(tmp_path / "moved")
    items = data.read(tmp_path / "moved").items
    assert [[m.read() for m in media_of(item)] for item in items] == [[picture(1)]] * 2
    assert sum(len(item.votes) for item in items) == 2


def test_attaching_in_the_terminal(tmp_path):
    (tmp_path / "my cat.png").write_bytes(picture(1))
    (tmp_path / "a.wav").write_bytes(tone(440))
    (tmp_path / "notes.txt").write_text("hello")
    session = Session(Conversation([seeing("m")], ""))
    output = typed(
        session,
        "/attach",
        f"/attach {tmp_path}/none.png",
        f"/attach {tmp_path}/notes.txt",
        f"/attach {tmp_path}/my cat.png",
        "/detach",
        f"/attach '{tmp_path}/my cat.png' {tmp_path}/a.wav",
        "What is this?",
    )
    assert "/attach sends images and sounds." in output
    assert "/attach needs a file" in output
    assert f"cannot read {tmp_path}/none.png" in output
    assert "notes.txt is neither an image nor a sound" in output
    assert "nothing is attached" in output
    assert output.count("my cat.png (png, ") == 2
    assert "a.wav (wav, " in output
    media = [medium.name for medium in media_in(session.conversation.rounds[0].prompts[0][-1].content)]
    assert media == ["my cat.png", "a.wav"]


def test_attaching_over_http(tmp_path):
    sha = hashlib.sha256(tone(440)).hexdigest()
    with page(tmp_path / "v") as address:
        token = urlsplit(address).path.split("/")[2]
        headers = {"X_Afzal_Token": token, "Content_Type": "application/octet-stream"}
        status, _, reply = raw(address, "POST", "/api/attach?name=my%20tone.wav", tone(440), **headers)
        assert status == 200
        (attached,) = json.loads(reply)["attached"]
        assert attached["media"] == sha
        assert attached["name"] == "my tone.wav"
        assert raw(address, "POST", "/api/attach?name=x.png", b"text", **headers)[0] == 409
        assert raw(address, "POST", "/api/attach", tone(440), **headers | {"X_Afzal_Token": "wrong"})[0] == 401
        assert raw(address, "POST", "/api/attach", tone(440), **headers | {"Content_Type": "text/plain"})[0] == 415
        status, sent, content = raw(address, "GET", f"/media/{token}/{sha}")
        assert (status, sent["content-type"], content) == (200, "audio/wav", tone(440))
        status, _, content = raw(address, "GET", f"/media/{token}/{sha}", Range="bytes=0-3")
        assert (status, content) == (206, b"RIFF")
        assert raw(address, "GET", f"/media/wrong/{sha}")[0] == 404
        assert raw(address, "GET", f"/media/{token}/{'0' * 64}")[0] == 404


def test_an_image_on_the_page(chromium, tmp_path):
    (tmp_path / "cat.png").write_bytes(picture(1))
    with page(tmp_path / "v") as address, person(chromium, address) as one:
        one.phase("say")
        one.page.set_input_files("#file", tmp_path / "cat.png")
        one.says("cat.png (png,", where="attached")
        assert one.page.evaluate("document.activeElement.id") == "text"
        one.press("Shift+Tab", "Shift+Tab", "Enter")  # the button that removes it
        one.page.wait_for_selector("#attached", state="hidden")
        one.page.set_input_files("#file", tmp_path / "cat.png")
        one.says("cat.png (png,", where="attached")
        one.page.keyboard.type("What is this?")
        one.press("Enter")
        one.phase("vote")
        assert (
            one.page.eval_on_selector("main .media img", "(image) => image.naturalWidth > 0 && image.alt") == "cat.png"
        )
        one.press("1")
        one.says("saved 1: first is better")
        one.page.reload()
        one.phase("say")
        assert one.page.eval_on_selector_all("main .media img", "(all) => all.length") == 1
    (row,) = [json.loads(line) for line in (tmp_path / "v/items.jsonl").read_text().splitlines()]
    assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]
