"""Judging rows with media: each medium in its position, and two images under one text are two questions."""

import base64
import json

import pytest
from helpers_media import png, sound, wav
from helpers_multimodal import made, picture
from helpers_runs import model_folder

from afzal import data
from afzal.config.judging import JudgeConfig
from afzal.errors import AfzalError
from afzal.judge.games import Game, pairs_of
from afzal.judge.prompting import PromptBuilder, PromptSettings, by_choices
from afzal.judging import judge_items, run_judges
from afzal.judging.judges import server_rewards
from afzal.media import in_row, media_part
from afzal.records import Item, Message, Response, media_of
from afzal.servers.cache import Reply
from afzal.servers.client import Server
from afzal.servers.messages import for_server

pytest.importorskip("PIL", reason="needs the extra vision")


def item(content, *answers):
    return Item("", (Message("user", content),), tuple(Response((Message("assistant", a),)) for a in answers))


def test_two_images_under_one_text_are_asked_apart():
    red, blue = (media_part(in_row("image", color)) for color in (b"red", b"blue"))
    which = {"type": "text", "text": "Which?"}
    prompts = [(red, which), (blue, which), (red, blue, which), "<image>Which?", "Which?"]
    builder = PromptBuilder(
        PromptSettings("", "{{ prompt }} A: {{ first }} B: {{ second }}", by_choices({"A": "first", "B": "second"}))
    )
    games = [Game(pairs_of([item(content, "a", "b")])[0], swapped=False) for content in prompts]
    asked = [builder.requests(game)[0].key for game in games]
    assert len(set(asked)) == len(asked)
    assert [game.pair.prompt for game in games] == ["<image>Which?"] * 2 + [
        "<image><image>Which?",
        "<image>Which?",
        "Which?",
    ]
    answers = pairs_of([item("Which?", (red,), (blue,))])[0].answers
    assert answers[0] != answers[1]


PROMPT = "Q: {{ prompt }} A: {{ first }} B: {{ second }}"
CHOICES = {"A": "first", "B": "second"}
IMAGE, SOUND = media_part(in_row("image", png())), media_part(in_row("audio", wav()))


def asking(prompt=PROMPT):
    return PromptSettings("", prompt, by_choices(CHOICES))


def test_media_are_in_the_question_where_the_row_has_them_and_marks_in_words_stay_words():
    content = ({"type": "text", "text": "Is <image> this? "}, IMAGE, {"type": "text", "text": " And "}, SOUND)
    (pair,) = pairs_of([item(content, "a [media 1 0]", "b")])
    for swapped, words in ((False, " A: a [media 1 0] B: b"), (True, " A: b B: a [media 1 0]")):
        (request,) = PromptBuilder(asking()).requests(Game(pair, swapped))
        (message,) = request.messages
        assert list(message["content"]) == [
            {"type": "text", "text": "Q: Is <image> this? "},
            IMAGE,
            {"type": "text", "text": " And "},
            SOUND,
            {"type": "text", "text": words},
        ]


def test_answers_that_are_images_are_shown_in_the_order_of_the_game():
    red, blue = (media_part(in_row("image", color)) for color in (b"red", b"blue"))
    (pair,) = pairs_of([item("Which?", (red,), (blue,))])
    for swapped, expected in ((False, [red, blue]), (True, [blue, red])):
        (request,) = PromptBuilder(asking()).requests(Game(pair, swapped))
        assert [part for part in request.messages[0]["content"] if "media" in part] == expected


def test_a_prompt_that_loses_an_image_is_refused():
    (pair,) = pairs_of([item((IMAGE, {"type": "text", "text": "Which?"}), "a", "b")])
    with pytest.raises(AfzalError, match="leaves out an image of the row"):
        PromptBuilder(asking("{{ prompt | truncate(5, True, '') }}")).requests(Game(pair, swapped=False))


def test_a_server_is_sent_data_addresses_and_wav_or_mp3():
    pytest.importorskip("soundfile", reason="needs the extra audio")
    flac, mp3 = (media_part(in_row("audio", sound(name, 0.2))) for name in ("FLAC", "MP3"))
    bmp = media_part(in_row("image", png(2, (3, 5), "BMP")))
    (sent,) = for_server([{"role": "user", "content": ({"type": "text", "text": "x"}, IMAGE, bmp, flac, mp3)}])
    text, image, other, lossless, lossy = sent["content"]
    assert text == {"type": "text", "text": "x"}
    address = image["image_url"]["url"]
    assert address.startswith("data:image/png;base64,")
    assert base64.b64decode(address.partition(",")[2]) == IMAGE["media"].read()
    assert other["image_url"]["url"].startswith("data:image/png;base64,")
    assert (lossless["input_audio"]["format"], lossy["input_audio"]["format"]) == ("wav", "mp3")
    assert base64.b64decode(lossless["input_audio"]["data"])[:4] == b"RIFF"
    assert base64.b64decode(lossy["input_audio"]["data"]) == mp3["media"].read()
    json.dumps(sent)


def test_a_server_that_reads_no_images_is_named_in_the_refusal():
    import httpx2

    transport = httpx2.MockTransport(lambda request: httpx2.Response(400, text="no images, please"))
    server = Server("http://judge/v1", "m", transport=transport)
    with pytest.raises(AfzalError, match="status 400") as caught:
        server.ask(for_server([{"role": "user", "content": (IMAGE,)}]), {})
    assert "which its model must be able to read" in str(caught.value.remedy)


@pytest.mark.parametrize("kind", ["rule", "function", "debate"])
def test_judges_of_words_refuse_answers_that_are_images(kind, tmp_path):
    rows = [item("Which?", (IMAGE,), (media_part(in_row("image", png(9))),))]
    spec = {"rule": "rule:longest", "function": "len.py:f"}.get(kind, str(tmp_path / "judge.yaml"))
    inner = "kind: function\n  function: x.py:f"
    (tmp_path / "judge.yaml").write_text(f"kind: debate\njudge:\n  {inner}\ndebater:\n  {inner}\n")
    with pytest.raises(AfzalError, match="reads only text, and"):
        judge_items(spec, rows, cache=tmp_path / "replies.sqlite")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    model, processor = made("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_local_judge_sees_the_image_and_its_rows_can_be_read_again(llava, tmp_path):
    (tmp_path / "data").mkdir()
    rows = []
    for k in range(2):
        (tmp_path / "data" / f"{k}.png").write_bytes(picture(k))
        content = [{"type": "image", "path": f"{k}.png"}, {"type": "text", "text": "Which?"}]
        prompt = [{"role": "user", "content": content}]
        rows.append({"prompt": prompt, "chosen": [said("red")], "rejected": [said("blue and long")]})
    source = tmp_path / "data" / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = data.read(str(source)).items
    (tmp_path / "judge.yaml").write_text(f"kind: model\nmodel: {llava}\nverdict:\n  choices: {{A: first, B: second}}\n")
    run_judges(items, ["rule:longest", str(tmp_path / "judge.yaml")], tmp_path / "out", resamples=10)
    lines = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    p_first = [line["p_first"] for line in lines if line["judge"] == "judge"]
    assert p_first[0] != p_first[2]  # the same words under another image
    again = data.read(str(tmp_path / "out" / "rows.jsonl")).items
    assert [m.sha256 for i in again for m in media_of(i)] == [m.sha256 for i in items for m in media_of(i)]


def test_text_only_models_refuse_images(tmp_path):
    folder = model_folder(tmp_path / "text")
    rows = [item((IMAGE, {"type": "text", "text": "Which?"}), "a", "b")]
    (tmp_path / "judge.yaml").write_text(
        f"kind: model\nmodel: {folder}\nverdict:\n  choices: {{A: first, B: second}}\n"
    )
    with pytest.raises(AfzalError, match="reads only text"):
        judge_items(str(tmp_path / "judge.yaml"), rows, cache=tmp_path / "replies.sqlite")


def said(text):
    return {"role": "assistant", "content": text}


def test_a_reward_of_a_server_sees_the_image_of_its_prompt(tmp_path):
    asked = []

    class Scores(Server):
        def ask(self, messages, sampling):
            asked.append(messages)
            return Reply("SCORE: 7")

    scored = {"kind": "http", "url": "http://127.0.0.1:9/v1", "model": "m", "verdict": {"score": {}}}
    settings = JudgeConfig.model_validate(scored | {"prompt": "Q: {{ prompt }} A: {{ answer }}"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("afzal.judging.judges.server_from", lambda settings, caller: Scores("u", "m"))
        rewards = server_rewards(settings, "j", tmp_path / "replies.sqlite")
        assert rewards([(Message("user", (IMAGE,)),)], ["a"]) == [7.0]
    assert [part["type"] for part in asked[0][-1]["content"]] == ["text", "image_url", "text"]
