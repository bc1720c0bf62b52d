"""Files whose truth is in the words of their answers, mutated in ways that preserve it: never a flipped preference.

Every better answer contains GOOD and every worse one "poor". A mutated file may be refused; if it is read, no worse
answer must rank above a better one or be labelled good, and no judged answer must be read as one to be learned.
"""

import csv
import gzip
import io
import json
import random
from collections import Counter

import pytest

from afzal.cli import main
from afzal.data import FORMATS, read
from afzal.data.turns import answer_text
from afzal.errors import AfzalError
from afzal.quality import audit, clean
from afzal.records import labels, preferences

WORDS = [
    "sky",
    "sea",
    "why",
    "ok.",
    "é",
    "天空",
    "\U0001f468\u200d\U0001f680",
    "किताब",
    '"so"',
    "[{",
    "a,b",
    "1_0",
    "x\ty",
    "No.",
]
FAMILY = {entry.name: entry.family for entry in FORMATS}


def words(rng, n=6):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, n)))


def good(rng):
    return f"{words(rng)} GOOD {words(rng)}"


def bad(rng):
    return f"{words(rng)} poor {words(rng)}"


def ask(rng, k):
    return f"Q{k} {words(rng)}?"


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def shown(rng):
    """Two answers in any order, and whether the first is the better one."""
    first = rng.random() < 0.5
    return (good(rng), bad(rng), first) if first else (bad(rng), good(rng), first)


# --- each makes one row; the truth is in its text


def standard(rng, k):
    return {"prompt": ask(rng, k), "chosen": " " + good(rng), "rejected": " " + bad(rng)}


def conversational(rng, k):
    return {"prompt": [user(ask(rng, k))], "chosen": [bot(good(rng))], "rejected": [bot(bad(rng))]}


def dialogues(rng, k):
    asked = user(ask(rng, k))
    return {"chosen": [asked, bot(good(rng))], "rejected": [asked, bot(bad(rng))]}


def sharegpt(rng, k):
    turn = {"from": "human", "value": ask(rng, k)}
    sides = {"chosen": good(rng), "rejected": bad(rng)}
    if rng.random() < 0.5:
        sides = {name: {"from": "gpt", "value": text} for name, text in sides.items()}
    return {rng.choice(["conversations"]): [turn], **sides}


def question(rng, k):
    return {"system": "S", "question": ask(rng, k), "chosen": good(rng), "rejected": bad(rng)}


def transcript(rng, k):
    head = f"\n\nHuman: Q{k}?\n\nAssistant:"
    return {"chosen": f"{head} GOOD {k}", "rejected": f"{head} poor {k}"}


def ranking(rng, k):
    said = [bad(rng), good(rng), bad(rng)]
    return {"prompt": ask(rng, k), "responses": said, "scores": [0.1 + 0.8 * ("GOOD" in text) for text in said]}


def ratings(rng, k):
    said = [good(rng), bad(rng)]
    return {"instruction": ask(rng, k), "generations": said, "ratings": [5, 1]}


def nectar(rng, k):
    answers = [{"answer": bad(rng), "rank": 2}, {"answer": good(rng), "rank": 1}]
    return {"prompt": ask(rng, k), "answers": answers}


def choice(rng, k):
    right = rng.randrange(1, 5)
    options = {f"option_{n}": good(rng) if n == right else bad(rng) for n in range(1, 5)}
    return {"question": ask(rng, k), **options, "answer": right}


def helpsteer(rng, k):
    a, b, first = shown(rng)
    return {"context": ask(rng, k), "response1": a, "response2": b, "overall_preference": -2 if first else 2}


def shp(rng, k):
    a, b, first = shown(rng)
    return {"history": ask(rng, k), "human_ref_A": a, "human_ref_B": b, "labels": int(first)}


def arena(rng, k):
    a, b, first = shown(rng)
    asked = user(ask(rng, k))
    sides = {"conversation_a": [asked, bot(a)], "conversation_b": [asked, bot(b)]}
    return {**sides, "winner": "model_a" if first else "model_b"}


def alpaca_farm(rng, k):
    a, b, first = shown(rng)
    return {"instruction": ask(rng, k), "output_1": a, "output_2": b, "preference": 1 if first else 2}


def pandalm(rng, k):
    a, b, first = shown(rng)
    return {"instruction": ask(rng, k), "response1": a, "response2": b, "annotator1": 1 if first else 2}


def safer(rng, k):
    a, b, first = shown(rng)
    return {"prompt": ask(rng, k), "response_0": a, "response_1": b, "better_response_id": 0 if first else 1}


def vote(rng, k):
    a, b, first = shown(rng)
    return {"prompt": ask(rng, k), "response_a": a, "response_b": b, "winner": "A" if first else "B"}


def unpaired(rng, k):
    is_good = k % 2 == 0
    return {"prompt": ask(rng, k), "completion": good(rng) if is_good else bad(rng), "label": is_good}


def unpaired_dialogue(rng, k):
    is_good = k % 2 == 0
    return {"messages": [user(ask(rng, k)), bot(good(rng) if is_good else bad(rng))], "kto_tag": is_good}


def unpaired_alpaca(rng, k):
    is_good = k % 2 == 0
    return {"instruction": ask(rng, k), "output": good(rng) if is_good else bad(rng), "label": is_good}


BASES = [
    *(standard, conversational, dialogues, sharegpt, question, transcript, ranking, ratings, nectar, choice, helpsteer),
    *(shp, arena, alpaca_farm, pandalm, safer, vote, unpaired, unpaired_dialogue, unpaired_alpaca),
]
OPINION = {"label", "kto_tag", "labels", "winner", "preference", "answer", "scores", "ratings", "annotator1"}
OPINION |= {"overall_preference", "better_response_id"}


# --- each changes rows in place; none changes the meaning of the text


def one(change):
    def mutation(rng, rows):
        row = rng.choice(rows)
        change(rng, row)

    return mutation


def every(change):
    def mutation(rng, rows):
        seed = rng.random()
        for row in rows:
            change(random.Random(seed), row)

    return mutation


def drop_field(rng, row):
    if len(row) > 1:
        del row[rng.choice(list(row))]


def odd_value(rng, row):
    name = rng.choice([name for name in row if name not in OPINION] or list(row))
    row[name] = rng.choice([None, "", " ", [], {}, 3.5, [1], {"a": 1}, True, [None], "[", "{"])


def odd_opinion(rng, row):
    for name in OPINION.intersection(row):
        row[name] = rng.choice([None, "", "1_0", "\uff11", "maybe", [], {}, "nan", "best", [[]], 7, -7])
        if name == "overall_preference" and row[name] in (7, -7):
            row[name] = "7_0"


def spell_opinion(rng, row):
    """The same opinion in another notation; on its own scale, the larger number is better."""
    way = rng.choice(["text", "float", "words", "scale", "centred"])
    for name in OPINION.intersection(row) - {"scores", "ratings"}:
        value = row[name]
        if isinstance(value, bool):
            said = {"text": str(value), "float": float(value), "words": ["bad", "good"][value]}
            row[name] = {**said, "scale": [2, 5][value], "centred": [-1, 1][value]}[way]
        elif isinstance(value, int):
            row[name] = {"text": str(value), "float": float(value)}.get(way, value)
        elif isinstance(value, str):
            row[name] = {"text": f" {value} ", "words": value.swapcase()}.get(way, value)


def rename_opinion(rng, row):
    new = rng.choice(["verdict", "is_good", "thumbsUp", "Label", "human_label", "score", "quality", "feedback", "rank"])
    for name in list(OPINION.intersection(row)):
        row[new] = row.pop(name)


def rename_answer(rng, row):
    new = rng.choice(["answer", "Response 1", "generation", "reply", "output", "text", "candidate"])
    names = [name for name in row if name not in OPINION and name not in ("prompt", "instruction", "question")]
    old = rng.choice(names or list(row))
    row[new] = row.pop(old)


def rename_prompt(rng, row):
    new = rng.choice(["context", "history", "query", "input", "Prompt", "dialogue", "messages", "text"])
    for name in ("prompt", "instruction", "question", "conversations", "context", "history"):
        if name in row:
            row[new] = row.pop(name)
            break


def add_field(rng, row):
    name, value = rng.choice(
        [
            *(("source", "web"), ("system", "S"), ("context", "C"), ("input", ""), ("id", 3), ("margin", 1.5)),
            *(("weight", 2), ("history", [["a", "b"]]), ("tools", "[]"), ("score_model", "j"), ("p", 0.9)),
            *(("note", None), ("images", [])),
        ]
    )
    row.setdefault(name, value)


def as_text(rng, row):
    spell = rng.choice([json.dumps, repr])
    for name in list(row):
        if isinstance(row[name], list | dict):
            row[name] = spell(row[name])


def missing_option(rng, row):
    for name in [n for n in row if n.startswith(("option_", "response", "answer", "output_"))]:
        if rng.random() < 0.3:
            row[name] = rng.choice([None, ""])


def reorder(rng, row):
    names = list(row)
    rng.shuffle(names)
    for name in names:
        row[name] = row.pop(name)


def mix_in_other(rng, rows):
    rows.insert(rng.randrange(len(rows) + 1), rng.choice(BASES)(rng, 2 * rng.randrange(50)))


def repeat_row(rng, rows):
    rows.append(dict(rng.choice(rows)))


MUTATIONS = {
    **{
        f"one {change.__name__}": one(change)
        for change in (drop_field, odd_value, odd_opinion, missing_option, add_field)
    },
    **{f"one {change.__name__}": one(change) for change in (reorder, as_text, rename_answer, spell_opinion)},
    **{
        f"all {change.__name__}": every(change) for change in (drop_field, spell_opinion, rename_opinion, rename_answer)
    },
    **{f"all {change.__name__}": every(change) for change in (rename_prompt, add_field, as_text, reorder, odd_value)},
    "mix_in_other": mix_in_other,
    "repeat_row": repeat_row,
}

# --- and each writes rows to bytes


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def document(rows):
    return json.dumps(rows, indent=1).encode()


def by_columns(rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    return json.dumps({name: [row.get(name) for row in rows] for name in names}).encode()


def table(separator):
    def write(rows):
        out = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.writer(out, delimiter=separator)
        writer.writerow(names)
        for row in rows:
            cells = (row.get(name, "") for name in names)
            writer.writerow([json.dumps(c) if isinstance(c, list | dict) else "" if c is None else c for c in cells])
        return out.getvalue().encode()

    return write


KINDS = {
    "a.jsonl": lines,
    "b.jsonl": lines,
    "a.json": document,
    "b.json": by_columns,
    "c.json": lines,
    "a.csv": table(","),
    "a.tsv": table("\t"),
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows), 1),
}


def damage(rng, data):
    """Bytes removed or inserted, or other line endings; never a character replaced by another."""
    at = rng.randrange(len(data))
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[:at] + b"\xff" + data[at:],
            lambda: data[:at] + b"\x00" + data[at:],
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\n\n"),
            lambda: data + data[: at // 2],
            lambda: data + b'{"prompt": "Q"}',
        ]
    )()


# --- the oracle


def is_good(response):
    """Whether the answer is good by its words; None if a mutation removed both words."""
    text = answer_text(response.turns)
    return True if "GOOD" in text else False if "poor" in text else None


def flips(dataset, judged):
    """Contradictions between a data set and the words of its answers; ``judged``: every answer has an opinion."""
    for item in dataset.items:
        for pair in preferences(item):
            better, worse = item.responses[pair.i], item.responses[pair.j]
            if pair.p > 0.5 and is_good(worse) and is_good(better) is False:
                yield f"{item.where}: {answer_text(worse.turns)!r} below {answer_text(better.turns)!r}"
        if dataset.format.startswith("unpaired"):
            for response, label in zip(item.responses, labels(item), strict=True):
                truth = is_good(response)
                if label is not None and truth is not None and label != truth:
                    yield f"{item.where}: {answer_text(response.turns)!r} labelled {label}"
        if judged and FAMILY[dataset.format] == "plain" and any(is_good(r) is False for r in item.responses):
            yield f"{item.where}: read as {dataset.format}, to be learned: {answer_text(item.responses[0].turns)!r}"


def run(folder, files, seed, capsys):
    """Counts of the mutated files by outcome; fails at the first flip and at any incorrect error."""
    rng, became = random.Random(seed), Counter()
    for n in range(files):
        base = BASES[n % len(BASES)]
        rows = [base(rng, k) for k in range(rng.randint(2, 14))]
        names = rng.choices(list(MUTATIONS), k=rng.choice([0, 1, 1, 1, 2, 3]))
        for name in names:
            MUTATIONS[name](rng, rows)
        # Without its opinion field a file has no order, and an odd value can turn a prompt into an answer.
        judged = not any(
            word in name
            for name in names
            for word in ("drop_field", "odd_", "mix_in", "rename_answer", "rename_prompt")
        )
        kind = rng.choice(list(KINDS))
        data = KINDS[kind](rows)
        path = folder / kind
        path.write_bytes(damage(rng, data) if rng.random() < 0.2 and data else data)
        for on_error in ("raise", "drop"):
            try:
                dataset = read(path, on_error=on_error)
            except AfzalError:
                became["refused"] += 1
                continue
            became["read"] += 1
            assert dataset.rows == dataset.kept + sum(drop.is_complete for drop in dataset.drops)
            wrong = list(flips(dataset, judged))
            assert not wrong, (n, base.__name__, names, kind, on_error, dataset.format, wrong[:3])
            clean(dataset.items)
            if n % 4 == 0:
                audit(dataset)
        if n % 10 == 0:
            code = main(["check", str(path)])
            said = capsys.readouterr()
            assert code in (0, 1, 2), said.err
            assert "Traceback" not in said.err
    return became


def test_every_sound_file_is_read_and_right(tmp_path):
    rng = random.Random(0)
    for base in BASES:
        rows = [base(rng, k) for k in range(12)]
        (tmp_path / "a.jsonl").write_bytes(lines(rows))
        dataset = read(tmp_path / "a.jsonl")
        assert FAMILY[dataset.format] != "plain"
        assert list(flips(dataset, judged=True)) == []
        ordered = sum(bool(preferences(item)) for item in dataset.items) + sum(
            label is not None for item in dataset.items for label in (labels(item) if not preferences(item) else ())
        )
        assert ordered == 12, base.__name__


def test_the_oracle_sees_a_flip(tmp_path):
    rows = [{"prompt": f"Q{k}", "chosen": "poor", "rejected": "GOOD"} for k in range(3)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert len(list(flips(read(tmp_path / "a.jsonl"), judged=True))) == 3
    rows = [{"prompt": f"Q{k}", "completion": "poor"} for k in range(3)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert len(list(flips(read(tmp_path / "a.jsonl"), judged=True))) == 3


def test_hundreds_of_changed_files_flip_nothing(tmp_path, capsys):
    became = run(tmp_path, 400, seed=0, capsys=capsys)
    assert min(became["read"], became["refused"]) > 200


@pytest.mark.slow
def test_ten_thousand_changed_files_flip_nothing(tmp_path, capsys):
    """``pytest tests/data/test_data_polarity.py -m slow``."""
    became = run(tmp_path, 10_000, seed=1, capsys=capsys)
    assert min(became["read"], became["refused"]) > 5000
