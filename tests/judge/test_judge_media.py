"""What a judge reads of rows with media: two images under one text are two questions, so no cached reply is shared."""

from afzal.judge.games import pairs_of
from afzal.media import in_row, media_part
from afzal.records import Item, Message, Response


def item(content, *answers):
    return Item("", (Message("user", content),), tuple(Response((Message("assistant", a),)) for a in answers))


def test_two_images_under_one_text_are_asked_apart():
    red, blue = (media_part(in_row("image", color)) for color in (b"red", b"blue"))
    words = {"type": "text", "text": "Which?"}
    prompts = [(red, words), (blue, words), (red, blue, words), "<image>Which?", "Which?"]
    asked = [pairs_of([item(content, "a", "b")])[0].prompt for content in prompts]
    assert len(set(asked)) == len(asked)
    assert asked[3:] == ["<image>Which?", "Which?"]
    answers = pairs_of([item("Which?", (red,), (blue,))])[0].answers
    assert answers[0] != answers[1]
