"""The page in a real browser, by keyboard alone. Skipped without playwright or Chromium (``CHROMIUM`` names one)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers_browser import CONTRAST, Person, person
from helpers_media import wav
from helpers_web import lines_of, pairs, served, write_rows


def shown(person: Person) -> list[str]:
    """The texts of the responses in the order on the screen."""
    return person.page.eval_on_selector_all("#responses article .text", "(all) => all.map((one) => one.textContent)")


def test_pairs_by_keyboard(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(8))
    (tmp_path / "guide.txt").write_text("Choose the good one.\n<b>Always.</b>")
    arguments = ["rows.jsonl", "--out", "out", "--guideline", "guide.txt"]
    with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("sign_in")
        one.page.keyboard.type("Dilnoza")
        one.press("Enter")
        one.phase("ask")
        assert one.page.text_content("[data-testid=guideline-text]") == "Choose the good one.\n<b>Always.</b>"
        one.press("1", "Enter")  # the digit key is inactive while the guideline is open
        assert not one.page.evaluate("document.getElementById('dialog').open")
        seen = [shown(one)]
        one.votes(1, "1", says="first")
        seen.append(shown(one))
        one.votes(2, "Shift+Digit2", says="second (clearly)")
        one.votes(3, "0", says="equal")
        one.votes(4, "9", says="both bad")
        one.votes(5, "ArrowRight", says="second")
        one.press("u")
        one.says("undone")
        one.phase("ask")
        one.press("u")
        one.phase("ask")
        one.page.wait_for_function("() => document.getElementById('count').textContent.startsWith('3 of')")
        one.press("s")
        one.votes(4, "2", says="skipped")
        one.press("n")
        one.page.keyboard.type("Oʻzbek, 1 2 0 9 s u")
        one.press("Enter", "f")
        one.votes(5, "ArrowLeft", says="first")
        one.press("?")
        assert one.page.is_visible("dl.keys")
        one.press("1", "Escape")
        assert lines_of(tmp_path / "out")[-1]["note"] == "Oʻzbek, 1 2 0 9 s u"
        for n in (6, 7, 8):
            one.votes(n, "2", says="second")
        assert one.phase("done") == "done"
        assert "7 answers, 1 skipped" in one.page.inner_text("#notice")
        one.press("u")
        one.votes(8, "1", says="first")
    lines = lines_of(tmp_path / "out")
    outcomes = [(line["outcome"], line["strength"]) for line in lines if line["kind"] == "pair"]
    assert outcomes == [
        ("first", 1),
        ("second", 2),
        ("tie", None),
        ("both_bad", None),
        ("second", 1),
        ("first", 1),
        *[("second", 1)] * 3,
        ("first", 1),
    ]
    rows = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    texts = {row["id"]: [response["turns"] for response in row["responses"]] for row in rows}
    assert [[texts[line["item"]][k] for k in line["shown"]] for line in lines[:2]] == seen
    assert {line["annotator"] for line in lines} == {"Dilnoza"}
    assert [line["reason"] for line in lines if line["kind"] == "skip"] == ["broken"]
    assert [line["flag"] for line in lines if line["kind"] == "pair"] == [False] * 5 + [True] + [False] * 4
    assert Counter(line["kind"] for line in lines) == {"pair": 10, "undo": 3, "skip": 1}


@pytest.mark.slow
def test_clearly_better_by_touch(chromium, tmp_path):
    """A phone has no Shift: the button is pressed first, applies to one question, and does not affect ties."""
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        one = Person(opened.new_page(), address)
        for n, (taps, says) in enumerate(
            [
                (("clearly", "vote-second"), "second (clearly)"),
                (("vote-first",), "first"),
                (("clearly", "vote-tie"), "equal"),
            ]
        ):
            one.phase("ask")
            assert one.page.get_attribute("[data-testid=clearly]", "aria-pressed") == "false"
            for name in taps:
                one.page.tap(f"[data-testid={name}]")
            one.says(f"saved {n + 1}: {says}")
        one.phase("done")
        opened.close()
        assert one.faults == []
    said = [(line["outcome"], line["strength"]) for line in lines_of(tmp_path / "out")]
    assert said == [("second", 2), ("first", 1), ("tie", None)]


HOSTILE = [
    "<script>document.title = 'owned'</script><img src=x onerror=\"alert(1)\"><svg onload=alert(2)>",
    "{{7*7}} ${7*7} <%= 7*7 %> javascript:alert(1)",
    "abc\u202edef\u2066ghi\u200b",
    "line\u2028separator\u2029paragraph\r\nwindows",
    "Oʻzbekiston, oʼqituvchi, ma'no, o‘zbek",
    "</div></article></main><style>*{display:none}</style>",
    "x" * 1_000_000,
    "true",
]


@pytest.mark.slow
def test_hostile_texts_are_shown_verbatim_and_run_nothing(chromium, tmp_path):
    rows = [
        {"afzal": 1, "id": str(k), "prompt": f"{k}: {text}", "responses": [{"turns": text}, {"turns": ""}]}
        for k, text in enumerate(HOSTILE)
    ]
    turns = [{"role": ("user", "assistant")[k % 2], "content": f"{k} {HOSTILE[0]}"} for k in range(18)]
    chat = {"afzal": 1, "id": "chat", "prompt": turns[:17], "responses": [{"turns": turns[17:]}, {"turns": turns[1:2]}]}
    for name, some in (("texts", rows), ("chat", [chat])):
        write_rows(tmp_path / f"{name}.jsonl", some)
        arguments = [
            f"{name}.jsonl",
            "--annotators",
            HOSTILE[0][:50].replace(",", ""),
            "--order",
            "file",
            "--out",
            name,
        ]
        with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
            for n, row in enumerate(some, start=1):
                one.phase("ask")
                prompt = one.page.eval_on_selector_all("#prompt .part", "(all) => all.map((one) => one.textContent)")
                if name == "texts":
                    assert sorted(shown(one)) == sorted(r["turns"] for r in row["responses"])
                    assert prompt == [row["prompt"]]
                else:
                    assert prompt == [turn["content"] for turn in turns[:17]]
                one.press("d")
                one.votes(n, "0", says="equal")
            assert one.page.evaluate("document.querySelectorAll('script, style, svg, #responses img').length") == 1
            assert one.page.title() == f"{name} · Afzal"


@pytest.mark.slow
def test_differences_are_marked_and_the_texts_stay(chromium, tmp_path):
    rows = [{"prompt": "p", "chosen": "The cat sat on the mat.", "rejected": "The dog sat on a mat."}]
    write_rows(tmp_path / "rows.jsonl", rows)
    with served("rows.jsonl", "--annotators", "ann", cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("ask")
        before = shown(one)
        one.press("d")
        marked = one.page.eval_on_selector_all("#responses mark", "(all) => all.map((one) => one.textContent)")
        assert sorted(marked) == ["a", "cat", "dog", "the"]
        assert shown(one) == before
        one.press("d")
        assert one.page.query_selector("#responses mark") is None
        assert shown(one) == before


@pytest.mark.slow
def test_keys_work_on_every_layout(chromium, tmp_path):
    """A French keyboard writes "&" with the key of "1", a Cyrillic one "г" with that of "u"."""
    write_rows(tmp_path / "rows.jsonl", pairs(4))
    press = "(key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, ...key }))"
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        one.phase("ask")
        for ignored in ({"ctrlKey": True}, {"metaKey": True}, {"altKey": True}, {"repeat": True}):
            one.page.evaluate(press, {"key": "1", "code": "Digit1", **ignored})
        assert one.phase("ask", "saving") == "ask"
        one.page.evaluate(press, {"key": "&", "code": "Digit1"})
        one.says("saved 1: first")
        one.phase("ask")
        one.page.evaluate(press, {"key": "г", "code": "KeyU"})
        one.says("undone")
        one.phase("ask")
        one.page.evaluate(press, {"key": "2", "code": "Numpad2"})
        one.says("saved 1: second")
    assert [line["kind"] for line in lines_of(tmp_path / "out")] == ["pair", "undo", "pair"]


@pytest.mark.slow
def test_markdown_is_built_of_known_elements(chromium, tmp_path):
    text = "# T\n\n**bold** <img src=x onerror=alert(1)> [l](https://e.example)\n\n- one\n- two"
    write_rows(tmp_path / "rows.jsonl", [{"prompt": text, "chosen": text, "rejected": "plain"}])
    arguments = ["rows.jsonl", "--annotators", "ann", "--markdown"]
    with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("ask")
        tags = one.page.eval_on_selector_all("#prompt .part *", "(all) => all.map((one) => one.tagName)")
        assert tags == ["H1", "P", "STRONG", "UL", "LI", "P", "LI", "P"]
        assert "<img src=x onerror=alert(1)> l (https://e.example)" in one.page.text_content("#prompt .part")
        one.press("d")
        one.says("cannot be compared")


@pytest.mark.slow
def test_a_page_outlives_its_server(chromium, tmp_path):
    """The server is killed while the page is open; the vote is kept, and saved by the next server at the same port."""
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    arguments = ["rows.jsonl", "--annotators", "ann", "--out", "out"]
    opened = chromium.new_context()
    with served(*arguments, cwd=tmp_path) as ((address,), process):
        one = Person(opened.new_page(), address)
        one.votes(1, "1", says="first")
        process.kill()
        process.wait()
        one.press("2")
        one.says("sent again", "banner")
    with served(*arguments, cwd=tmp_path) as ((again,), _):
        assert again == address
        one.says("saved 2: second")
        one.votes(3, "1", says="first")
        opened.close()
    assert [line["outcome"] for line in lines_of(tmp_path / "out")] == ["first", "second", "first"]


@pytest.mark.slow
def test_practice_shows_the_truth_before_the_next_question(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(2))
    write_rows(
        tmp_path / "gold.jsonl", [{"prompt": "known", "chosen": "good g", "rejected": "bad g", "feedback": "So."}]
    )
    arguments = ["rows.jsonl", "--annotators", "ann", "--gold", "gold.jsonl", "--practice", "1", "--out", "out"]
    with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("ask")
        assert one.page.inner_text("#ask").startswith("Practice")
        worse = "2" if shown(one)[0] == "good g" else "1"
        one.votes(1, worse, says="first" if worse == "1" else "second")
        assert "Not quite" in one.page.inner_text("#ask")
        framed = "[...document.querySelectorAll('article.chosen, article.better')].map((a) => a.className).join()"
        assert one.page.evaluate(framed) == "better"
        assert "So." in one.page.inner_text("#ask")
        one.press("1")
        one.phase("ask")
        assert not one.page.inner_text("#ask").startswith("Practice")
        assert len(lines_of(tmp_path / "out")) == 1


@pytest.mark.slow
def test_a_lost_connection_keeps_the_answer_and_sends_it_once(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context()
        one = Person(opened.new_page(), address)
        one.phase("ask")
        opened.set_offline(True)
        one.press("1")
        one.says("sent again", "banner")
        one.press("2")  # dead
        assert lines_of(tmp_path / "out") == []
        opened.set_offline(False)
        one.says("saved 1: first")
        assert one.page.is_hidden("#banner")
        one.phase("ask")
        assert [line["outcome"] for line in lines_of(tmp_path / "out")] == ["first"]
        lost = []

        def lose_the_first_reply(route):
            if not lost:
                lost.append(route.fetch().json())
                route.abort()
            else:
                route.continue_()

        one.page.route("**/api/undo", lose_the_first_reply)
        one.press("u")
        one.says("undone")
        one.phase("ask")
        assert [line["kind"] for line in lines_of(tmp_path / "out")] == ["pair", "undo"]
        opened.close()


@pytest.mark.slow
def test_paragraphs_have_their_own_direction(chromium, tmp_path):
    """An Arabic paragraph after an English one begins at the right, and its full stop is at the left."""
    mixed = "Sure, here it is:\n" + "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643."
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi", "chosen": mixed, "rejected": mixed + " 2"}])
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        one.phase("ask")
        left, right = one.page.evaluate("""() => {
          const part = document.querySelector("[data-testid=response-0] .part"), range = document.createRange();
          const text = part.firstChild, start = text.data.indexOf("\\n") + 1, box = part.getBoundingClientRect();
          range.setStart(text, start); range.setEnd(text, start + 1);
          const first = range.getBoundingClientRect();
          return [first.left - box.left, box.right - first.right];
        }""")
        assert right < 2 < left


@pytest.mark.slow
def test_a_second_tab_takes_the_work_when_it_is_told_to(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context()
        one = Person(opened.new_page(), address)
        one.phase("ask")
        two = Person(opened.new_page(), address)
        two.phase("elsewhere")
        two.press("Enter")
        two.phase("ask")
        one.page.bring_to_front()
        one.press("1")
        one.phase("elsewhere")
        assert lines_of(tmp_path / "out") == []
        two.page.bring_to_front()
        two.votes(1, "1", says="first")
        two.page.close()
        one.page.bring_to_front()
        one.press("Enter")
        one.votes(2, "2", says="second")
        opened.close()


@pytest.mark.slow
def test_a_duplicated_tab_is_another_tab_and_a_reloaded_one_is_not(chromium, tmp_path):
    """``window.open`` copies sessionStorage, as duplicating a tab does. Closing the copy frees no question."""
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    arguments = ["rows.jsonl", "--annotators", "ann,ben", "--order", "file", "--overlap", "1", "--out", "out"]
    with served(*arguments, cwd=tmp_path) as ((address, other), _):
        opened = chromium.new_context()
        one = Person(opened.new_page(), address)
        one.phase("ask")
        with one.page.expect_popup() as popup:
            one.page.evaluate("void window.open(location.href)")
        copy = popup.value
        copy.wait_for_selector("body[data-phase=elsewhere]")
        copy.close(run_before_unload=False)
        two = Person(chromium.new_context().new_page(), other)
        two.phase("ask")
        assert set(shown(two)).isdisjoint(shown(one))  # one's question is still reserved
        one.page.bring_to_front()
        one.page.reload()
        one.phase("ask")
        one.votes(1, "1", says="first")
        assert [line["annotator"] for line in lines_of(tmp_path / "out")] == ["ann"]
        opened.close()


@pytest.mark.slow
def test_time_without_input_is_counted_apart(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(2))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context()
        page = opened.new_page()
        page.clock.install()
        one = Person(page, address)
        one.phase("ask")
        page.clock.fast_forward(60_000)
        one.press("j")
        page.clock.fast_forward(600_000)
        one.press("1")
        page.clock.fast_forward(1000)
        one.says("saved 1")
        opened.close()
    (line,) = lines_of(tmp_path / "out")
    assert 180 <= line["seconds"] < 190
    assert 480 <= line["idle"] < 481


@pytest.mark.slow
def test_a_page_waits_for_others_and_goes_on_by_itself(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(1))
    with (
        served("rows.jsonl", "--annotators", "ann,bob", "--out", "out", cwd=tmp_path) as ((first, second), _),
        person(chromium, first) as ann,
    ):
        ann.phase("ask")
        with person(chromium, second) as bob:
            bob.phase("wait")
            ann.votes(1, "1", says="first")
            bob.phase("done")


def ranked(n: int) -> list[dict[str, Any]]:
    return [
        {"afzal": 1, "id": str(k), "prompt": f"prompt {k}", "responses": [{"turns": f"{k} {c}"} for c in "abcd"]}
        for k in range(n)
    ]


@pytest.mark.slow
def test_rankings_and_ratings_by_keyboard(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ranked(2))
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "rank", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        one.phase("ask")
        one.press("4", "2", "Backspace", "Backspace", "Enter")
        one.press("3", "1", "=", "4", "3", "2")
        assert one.page.text_content("#order") == "3  >  1 = 4  >  2"
        one.votes(1, "Enter", says="ranked, with ties")
        one.press("1", "=", "2", "=", "3", "=", "=", "4", "Backspace", "=", "4")
        one.votes(2, "Enter", says="ranked, all equal")
    first, second = lines_of(tmp_path / "rank")
    place = first["shown"]
    assert first["groups"] == [[place[2]], [place[0], place[3]], [place[1]]]
    assert [sorted(group) for group in second["groups"]] == [[0, 1, 2, 3]]
    arguments = ["rows.jsonl", "--annotators", "ann", "--out", "rate", "--mode", "rate"]
    with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("ask")
        one.press("4", "Enter", "9", "5", "Tab", "2", "1")  # the third is skipped, and rated at the end
        one.votes(1, "Enter", says="rated 4, 5, 1, 2")
        one.press("Tab", "3", "3", "3", "3", "Shift+Tab", "Shift+Tab", "1")
        one.press("Enter")
        one.says("saved 2")
    first = lines_of(tmp_path / "rate")[0]
    assert (first["kind"], first["values"]) == ("rate", [4, 5, 1, 2])


def sounds(folder: Path, shared: Path, n: int) -> Path:
    """Rows that compare the sounds of the shared data, and one with images."""
    shutil.copytree(shared / "data" / "media" / "mllm_demo_data", folder / "mllm_demo_data")

    def answer(kind: str, name: str) -> dict[str, Any]:
        return {"turns": [{"role": "assistant", "content": [{"type": kind, kind: f"mllm_demo_data/{name}"}]}]}

    names = ["1.mp3", "2.wav", "3.flac", "4.mp3"]
    ask = [{"role": "user", "content": "Which is better?"}]
    rows = [
        {
            "afzal": 1,
            "id": f"s{k}",
            "prompt": ask,
            "responses": [answer("audio", names[k % 4]), answer("audio", names[(k + 1) % 4])],
        }
        for k in range(n)
    ]
    rows.append(
        {"afzal": 1, "id": "i", "prompt": ask, "responses": [answer("image", "1.jpg"), answer("image", "2.jpg")]}
    )
    return write_rows(folder / "media.jsonl", rows)


def listen(one: Person, key: str, place: int) -> None:
    """Play a sound until it counts as heard."""
    one.press(key)
    one.page.wait_for_function(
        "(place) => { const sound = document.querySelectorAll('#responses audio')[place];"
        " return sound.ended || sound.currentTime > 3.4; }",
        arg=place,
        timeout=30_000,
    )


def sound_pairs(chromium: Any, folder: Path, shared: Path, n: int) -> list[dict[str, Any]]:
    """Listen to n pairs and compare two images; return the journal lines."""
    sounds(folder, shared, n)
    arguments = ["media.jsonl", "--annotators", "ann", "--out", "out", "--order", "file"]
    with served(*arguments, cwd=folder) as ((address,), _), person(chromium, address) as one:
        for k in range(1, n + 1):
            one.phase("ask")
            one.press("1")  # locked
            one.says("Listen", "lock")
            listen(one, "q", 0)
            one.press("2")  # still locked
            one.says("Listen", "lock")
            listen(one, "w", 1)
            one.page.wait_for_function("() => !document.body.classList.contains('locked')")
            one.press("e")
            one.votes(k, "2", says="second")
        one.phase("ask")
        one.page.wait_for_function(
            "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        )
        one.press("z")
        large = one.page.get_attribute("[data-testid=large]", "src")
        one.press("x")
        assert one.page.get_attribute("[data-testid=large]", "src") != large
        one.press("Escape")
        one.votes(n + 1, "1", says="first")
        assert not any("mllm" in url or "mp3" in url for url in one.asked)
    return lines_of(folder / "out")


@pytest.mark.shared
@pytest.mark.slow
def test_ten_sound_pairs(chromium, shared, tmp_path):
    lines = sound_pairs(chromium, tmp_path, shared, 10)
    assert len(lines) == 11
    for line in lines[:10]:
        assert len(line["heard"]) == 2
        assert min(line["heard"]) > 1
    assert lines[10]["heard"] is None


@pytest.mark.slow
def test_sounds_of_the_prompt_are_played_by_their_key_and_heard_before_an_answer(chromium, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(wav(400, 1.0))
    row = {"prompt": "<audio><audio>Which is higher?", "audios": ["a.wav", "b.wav"], "chosen": "Same", "rejected": "a"}
    write_rows(tmp_path / "rows.jsonl", [row])
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        one.phase("ask")
        one.says("Listen to every sound before you answer: a plays the prompt.", "lock")
        one.press("q")  # no response has a sound
        for place in (0, 1):
            one.press("1")
            one.says("Listen to every sound first", "lock")
            one.press("a")
            one.page.wait_for_function("(k) => document.querySelectorAll('#prompt audio')[k].ended", arg=place)
        one.page.wait_for_function("() => !document.body.classList.contains('locked')")
        one.votes(1, "1", says="first")
    assert lines_of(tmp_path / "out")[0]["heard"] is None


@pytest.mark.slow
def test_a_hundred_pairs_and_twenty_rankings(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(100))
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "pairs", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        for n in range(1, 101):
            one.phase("ask")
            better = shown(one)[0].startswith("good")
            one.votes(n, "1" if better else "Shift+Digit2", says="first" if better else "second (clearly)")
        one.phase("done")
    lines = lines_of(tmp_path / "pairs")
    assert len(lines) == 100
    assert all(line["shown"][line["outcome"] == "second"] == 0 for line in lines)
    assert sum(line["shown"][0] for line in lines) == 50
    write_rows(tmp_path / "rank.jsonl", ranked(20))
    with (
        served("rank.jsonl", "--annotators", "ann", "--out", "rank", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        for n in range(1, 21):
            one.phase("ask")
            texts = [text[-1] for text in shown(one)]
            keys = [str(texts.index(letter) + 1) for letter in "abcd"]
            one.press(keys[0], keys[1], "=", keys[2], keys[3])
            one.votes(n, "Enter", says="ranked, with ties")
    assert [line["groups"] for line in lines_of(tmp_path / "rank")] == [[[0], [1, 2], [3]]] * 20


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names_for_screen_readers(chromium, tmp_path, scheme):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with (
        served("rows.jsonl", "--annotators", "ann", "--title", "A study of answers " * 3, cwd=tmp_path) as (
            (address,),
            _,
        ),
        person(chromium, address, color_scheme=scheme, viewport={"width": 390, "height": 844}) as one,
    ):
        one.votes(1, "1", says="first")
        assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert one.page.evaluate(CONTRAST) == []
        assert one.page.get_attribute("#saved", "aria-live") == "polite"
        unnamed = "[...document.querySelectorAll('button')].filter((b) => !b.textContent.trim()).length"
        assert one.page.evaluate(unnamed) == 0
        one.press("Tab")
        width = one.page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2
