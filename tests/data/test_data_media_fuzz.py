"""A thousand mutated rows with media: each is read or refused by row and reason, and nothing hangs."""

import base64
import json
import random
from collections import Counter

import pytest
from helpers_media import png, sound, wav

from afzal.data import read, write
from afzal.quality import audit
from afzal.records import media_of

REASONS = {
    *("media_count", "media_missing", "media_outside", "media_address", "media_broken", "media_wrong_type"),
    *("media_too_large", "media_changed", "media", "wrong_type", "missing_field", "bad_value", "empty_response"),
    *("prefix_differs", "not_json", "not_utf8", "message_field"),
}
FILES = {
    **{f"{name.lower()}.img": ("image", png(200, (33, 21), name)) for name in ("PNG", "JPEG", "GIF", "WEBP", "BMP")},
    "w.snd": ("audio", wav()),
    **{f"{name.lower()}.snd": ("audio", sound(name, 0.2)) for name in ("FLAC", "OGG", "MP3")},
}
VALUES = [
    *(None, True, 0, -1.5, "", " ", "<image>", [], {}, [[]], [None], [{}], {"bytes": None}, {"path": 3}, {"url": []}),
    *(
        "../x",
        "/",
        "//",
        ".",
        "a/../../b",
        "\0",
        "~",
        "CON",
        "x" * 10000,
        "http://a/b.png",
        "file:///etc/passwd",
        "data:,",
    ),
    *(
        "data:image/png;base64",
        "data:image/png;base64,!!",
        "data:image/png;base64,AAAA",
        {"array": [1]},
        {"bytes": "AAAA"},
    ),
    *(
        {"array": [], "sampling_rate": 8000},
        {"array": [1, "a"], "sampling_rate": 8000},
        {"array": [[]], "sampling_rate": 1},
    ),
    *({"array": [1e400], "sampling_rate": 8000}, {"array": [0.0], "sampling_rate": 0}, "<image><audio>" * 50),
]
KEYS = ("image", "audio", "images", "type", "bytes", "path", "sha256", "index", "video")
SPREAD = ("\x00", "é", "\ud800", "<image>", "<audio>", "</image>", "<|image|>")


def bent(content, rng):
    """The bytes of a file, damaged in one to three places."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content) + 1) if content else 0
        match rng.randrange(5):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + rng.randbytes(rng.randint(1, 40)) + content[at:]
            case 2:
                content = content[:at] + content[at + rng.randint(1, 60) :]
            case 3 if content:
                spots = bytearray(content)
                for _ in range(rng.randint(1, 9)):
                    spots[rng.randrange(min(len(spots), rng.choice((40, len(spots)))))] = rng.randrange(256)
                content = bytes(spots)
            case _:
                content = content[:8] + rng.randbytes(max(0, len(content) - 8))
    return content


def sound_row(rng, folder, n):
    """A readable row, or one whose file is damaged."""
    name, (kind, content) = rng.choice(sorted(FILES.items()))
    if rng.random() < 0.6:
        content = bent(content, rng)
        name = f"bent{n}.{kind}"
        (folder / name).write_bytes(content)
    answers = {"chosen": f"Yes, {n}.", "rejected": f"No, {n}."}
    address = f"data:{kind}/x;base64,{base64.b64encode(content).decode()}"
    held = rng.choice((name, address, {"path": name, "bytes": None}))
    if rng.random() < 0.5:
        return {"prompt": f"<{kind}>Row {n}?", **answers, f"{kind}s": [held]}
    part = {"type": kind, kind: held}
    return {"prompt": [{"role": "user", "content": [part, {"type": "text", "text": f"Row {n}?"}]}], **answers}


def places(value, path=()):
    """Every position in nested lists and objects."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            yield from places(inner, (*path, k))


def mutated(row, rng):
    """The row with a value changed, a key removed, or a text changed, somewhere inside."""
    row = json.loads(json.dumps(row))
    path = rng.choice([p for p in places(row) if p])
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    match rng.randrange(4):
        case 0 if isinstance(inner, dict):
            inner[rng.choice(("image", "audio", "images", "type", "bytes", "path", "sha256", "index", "video"))] = (
                rng.choice(VALUES)
            )
        case 1:
            del inner[path[-1]]
        case 2 if isinstance(inner[path[-1]], str):
            words = inner[path[-1]]
            at = rng.randrange(len(words) + 1)
            inner[path[-1]] = words[:at] + rng.choice(SPREAD) + words[at:]
        case _:
            inner[path[-1]] = rng.choice(VALUES)
    return row


def check(folder, seed, n):
    rng = random.Random(seed)
    for name, (_, content) in FILES.items():
        (folder / name).write_bytes(content)
    whole = {"prompt": [{"role": "user", "content": "Fine?"}], "chosen": "Yes.", "rejected": "No.", "images": []}
    rows = [whole]
    for k in range(n):
        row = sound_row(rng, folder, k)
        rows.append(mutated(row, rng) if rng.random() < 0.5 else row)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read(path, format="conversational", on_error="drop")
    assert made.rows == n + 1 == made.kept + sum(drop.is_complete for drop in made.drops)
    assert set(made.drop_counts) <= {*REASONS, *(f"{reason} (part)" for reason in REASONS)}, made.drop_counts
    assert all(drop.where.startswith(f"{path}:") and drop.detail for drop in made.drops)
    for item in made.items:
        for media in media_of(item):
            assert media.read()
    audit(made)
    write(made.items, folder / "out.jsonl", "afzal")
    assert read(folder / "out.jsonl").fingerprint == made.fingerprint
    return Counter(made.drop_counts)


def test_mutated_rows_are_read_or_refused(tmp_path):
    told = check(tmp_path, 1, 200)
    assert sum(told.values()) > 50
    assert {"media_broken", "media_count", "media_wrong_type"} <= set(told)


@pytest.mark.slow
def test_a_thousand_mutated_rows_are_read_or_refused(tmp_path):
    told = check(tmp_path, 2, 1000)
    assert 200 < sum(told.values()) < 900
    assert len(told) >= 8
