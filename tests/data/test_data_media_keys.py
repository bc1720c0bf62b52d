"""A medium is identified by its bytes: hashes and comparisons distinguish two images under the same text."""

import hashlib
import json

import pytest

from afzal.data.dataset import fingerprint
from afzal.data.grouping import group_by_content
from afzal.data.native import to_row
from afzal.data.splitting import split
from afzal.data.turns import stripped_key
from afzal.media import Media, in_row, media_part
from afzal.quality.clean import duplicate_key, merge_identical
from afzal.quality.item_facts import ItemTable
from afzal.records import Comparison, Item, Message, Response, media_of, prompt_key, turns_to_json, turns_to_row

RED, BLUE = in_row("image", b"red"), in_row("image", b"blue")
SOUND = in_row("audio", b"red")


def asked(*media, text="What is it?"):
    return (Message("user", (*map(media_part, media), {"type": "text", "text": text})),)


def item(prompt, *answers):
    answers = answers or ((Message("assistant", "A dot."),), (Message("assistant", "A line."),))
    return Item("", prompt, tuple(map(Response, answers)), (Comparison(0, 1, "first"),))


def answer(media):
    return (Message("assistant", (media_part(media),)),)


KEYS = {
    "prompt_key": prompt_key,
    "fingerprint": lambda x: fingerprint([x]),
    "duplicate_key": duplicate_key,
    "stripped": lambda x: stripped_key(x.prompt),
    "group": group_by_content,
    "json": lambda x: json.dumps(turns_to_json(x.prompt)),
    "row": lambda x: json.dumps(to_row(x)),
}


@pytest.mark.parametrize("name", KEYS)
def test_two_media_under_one_text_never_share_a_key(name):
    prompts = asked(RED), asked(BLUE), asked(SOUND), asked(), asked(RED, BLUE), asked(BLUE, RED), asked(RED, RED)
    texts = asked(text="<image>What is it?"), asked(text=f"\0image:{RED.sha256}\0What is it?")
    keys = [KEYS[name](item(prompt)) for prompt in (*prompts, *texts)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", [n for n in KEYS if n != "row"])
def test_the_same_bytes_under_another_name_are_the_same_medium(name):
    named = Media("image", RED.sha256, "a/red.png", "/data/a/red.png")
    assert KEYS[name](item(asked(named))) == KEYS[name](item(asked(RED)))
    assert named == RED
    assert len({named, RED}) == 1


def test_answers_that_differ_only_in_their_picture_are_two_answers():
    two = item(asked(), answer(RED), answer(BLUE))
    assert merge_identical(two) is two
    assert len(merge_identical(item(asked(), answer(RED), answer(RED))).responses) == 1
    assert duplicate_key(two) != duplicate_key(item(asked(), answer(RED), answer(RED)))
    assert fingerprint([two]) != fingerprint([item(asked(), answer(BLUE), answer(RED))])


def test_the_audit_sees_other_prompts():
    table = ItemTable()
    table.add([table.read(item(asked(media))) for media in (RED, BLUE, RED)])
    assert len(set(table.groups)) == 2


def test_a_split_keeps_rows_of_one_image_on_one_side_and_parts_others():
    items = [item(asked(in_row("image", bytes([n // 2])))) for n in range(40)]
    train, held = split(items, 0.5, 0)
    assert train
    assert held
    assert not {media_of(x)[0].sha256 for x in train} & {media_of(x)[0].sha256 for x in held}


def test_media_are_in_reading_order_of_prompt_then_answers():
    prompt = (*asked(RED, SOUND), Message("assistant", "Yes."), *asked(BLUE))
    told = item(prompt, answer(BLUE), answer(RED))
    assert media_of(prompt) == (RED, SOUND, BLUE)
    assert media_of(told) == (RED, SOUND, BLUE, BLUE, RED)
    assert media_of("plain <image> text") == ()


def test_json_names_kind_and_bytes_and_rows_hold_what_reads_them_again(tmp_path):
    content = turns_to_json(asked(RED))[0]["content"]
    assert content == [{"type": "image", "sha256": RED.sha256}, {"type": "text", "text": "What is it?"}]
    named = Media("audio", SOUND.sha256, "a/s.wav", str(tmp_path / "s.wav"))
    assert turns_to_row(asked(named))[0]["content"][0] == {"type": "audio", "audio": "a/s.wav", "sha256": SOUND.sha256}
    assert turns_to_row(asked(SOUND))[0]["content"][0]["audio"] == "data:audio/*;base64,cmVk"


def test_a_file_that_changed_is_another_medium(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"red")
    medium = Media("image", hashlib.sha256(b"red").hexdigest(), "x.png", str(path))
    assert medium.read() == RED.read() == b"red"
    path.write_bytes(b"blue")
    with pytest.raises(ValueError, match="has changed since it was read"):
        medium.read()
