"""Every format from a hand-made file, with its expected prompt, answers, and above all the winner."""

from pathlib import Path

import pytest

from afzal.data import FORMATS, read
from afzal.errors import AfzalError
from afzal.media import in_row, media_part
from afzal.records import Comparison, Message, Ranking, Rating, labels, preferences

FIXTURES = Path(__file__).parent.parent / "fixtures" / "formats"


def user(text):
    return Message("user", text)


def bot(text):
    return Message("assistant", text)


def system(text):
    return Message("system", text)


SKY = (user("Sky?"),)
BRIEF = (system("Be brief."), user("Sky?"))
BLUE, GREEN, RED, AZURE = (bot("Blue."),), (bot("Green."),), (bot("Red."),), (bot("Azure."),)
SKY_PNG = in_row("image", (FIXTURES / "sky.png").read_bytes())
FIRST = Comparison(0, 1, "first")
SECOND = Comparison(0, 1, "second")


# file, format, [(prompt, answers, votes)]
GOLDEN = [
    (
        "votes",
        "votes",
        [
            (
                SKY,
                (BLUE, GREEN),
                (Comparison(0, 1, "first", annotator="ann"), Comparison(0, 1, "tie", annotator="ben")),
            ),
            ((user("Grass?"),), (BLUE, GREEN), (Comparison(0, 1, "second", annotator="ann"),)),
            (SKY, (BLUE, RED), (Comparison(0, 1, "both_bad"),)),
        ],
    ),
    (
        "votes_wide",
        "votes_wide",
        [
            (
                SKY,
                (BLUE, GREEN),
                (Comparison(0, 1, "first", annotator="ann"), Comparison(0, 1, "tie", annotator="ben")),
            ),
            (
                (user("Grass?"),),
                (BLUE, GREEN),
                (
                    Comparison(0, 1, "second", annotator="ann"),
                    Comparison(0, 1, "first", strength=2.0, annotator="ben"),
                    Comparison(0, 1, "both_bad", annotator="eve"),
                ),
            ),
        ],
    ),
    (
        "prometheus",
        "prometheus",
        [
            (
                SKY,
                (BLUE, GREEN),
                (
                    Rating(0, 4.0, "score", annotator="gpt4_score 1"),
                    Rating(0, 5.0, "score", annotator="gpt4_score 2"),
                    Rating(1, 2.0, "score", annotator="gpt4_score 1"),
                ),
            )
        ],
    ),
    (
        "rated",
        "rated",
        [
            (
                SKY,
                (BLUE, GREEN),
                (
                    Rating(0, 4.0, "score", annotator="ann", seconds=3.0),
                    Rating(1, 1.5, "score", annotator="ann"),
                    Rating(0, 5.0, "score", annotator="ben"),
                ),
            )
        ],
    ),
    (
        "label_studio_ranker",
        "label_studio",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (
                    Ranking(((1,), (2,), (0,)), annotator="1", seconds=4.5, id="31", at="2026-03-09T22:16:08Z"),
                    Ranking(((1,), (0,)), annotator="b@example.org", id="32"),
                ),
            )
        ],
    ),
    (
        "argilla_records",
        "argilla_records",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (Ranking(((1,), (0, 2)), annotator="u1"), Ranking(((1,), (2,), (0,)), annotator="u2")),
            ),
            (
                (user("Grass?"),),
                (GREEN, BLUE),
                (
                    Comparison(0, 1, "first", annotator="u1", axis="better"),
                    Comparison(0, 1, "tie", annotator="u1", axis="clearer"),
                    Comparison(0, 1, "second", annotator="u2", axis="better"),
                ),
            ),
        ],
    ),
    (
        "argilla_flat",
        "argilla_flat",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (Ranking(((1,), (0,), (2,)), annotator="u1"), Ranking(((1,), (0, 2)), annotator="u2")),
            )
        ],
    ),
    (
        "argilla_version_1",
        "argilla_flat",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (Ranking(((1,), (0,), (2,)), annotator="u1"), Ranking(((1,), (0, 2)), annotator="u2")),
            )
        ],
    ),
    (
        "label_studio_flat",
        "label_studio_flat",
        [
            (
                SKY,
                (GREEN, BLUE),
                (
                    Comparison(0, 1, "second", annotator="1", seconds=4.5, id="31", at="2026-03-09T22:16:08.728353Z"),
                    Comparison(0, 1, "first", annotator="b@example.org", id="32", at="2026-03-09T22:16:08.728353Z"),
                ),
            ),
            (
                (user("Grass?"),),
                (GREEN, BLUE),
                (Comparison(0, 1, "first", annotator="1", seconds=4.5, id="33", at="2026-03-09T22:16:08.728353Z"),),
            ),
        ],
    ),
    (
        "label_studio_flat_ranker",
        "label_studio_flat",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (Ranking(((1,), (2,), (0,)), annotator="1", seconds=4.5, id="41", at="2026-03-09T22:16:08.728353Z"),),
            )
        ],
    ),
    (
        "potato",
        "potato",
        [
            (
                SKY,
                (GREEN, BLUE, RED),
                (
                    Ranking(((1,), (0, 2)), annotator="ann", seconds=72.0),
                    Comparison(1, 0, "first", annotator="ben", seconds=12.5),
                    Comparison(1, 2, "first", annotator="ben", seconds=12.5),
                    Comparison(0, 2, "first", annotator="ben", seconds=12.5),
                ),
            ),
            (
                (user("Grass?"),),
                (GREEN, BLUE),
                (
                    Comparison(0, 1, "first", annotator="ann", axis="preference"),
                    Comparison(0, 1, "second", strength=2.0, annotator="ann", axis="clear"),
                    Comparison(0, 1, "tie", annotator="ben"),
                ),
            ),
        ],
    ),
    (
        "standard",
        "standard",
        [
            ("The sky is", (" blue.", " green."), (FIRST,)),
            (
                "Grass is",
                (" green.", " blue."),
                (Comparison(0, 1, "first", strength=4.5, probability=0.75, weight=2.0),),
            ),
        ],
    ),
    ("standard_full", "standard_full", [("The sky is", (" blue.", " green."), (FIRST,))]),
    (
        "implicit",
        "implicit",
        [
            ("The sky is", (" blue.", " black."), (FIRST,)),
            ("Q: 2+2?\nA:", (" 4", " 5"), (FIRST,)),
            ("天空是", ("蓝色", "绿色"), (FIRST,)),
        ],
    ),
    (
        "conversational",
        "conversational",
        [
            (BRIEF, (BLUE, GREEN), (FIRST,)),
            (SKY, ((bot("Blue."), user("Sure?"), bot("Yes.")), GREEN), (FIRST,)),
        ],
    ),
    (
        "conversational_media",
        "conversational",
        [
            (
                (Message("user", (media_part(SKY_PNG), {"type": "text", "text": "Which?"})),),
                (BLUE, GREEN),
                (FIRST,),
            )
        ],
    ),
    (
        "ultrafeedback_binarized",
        "conversational",
        [(SKY, (BLUE, GREEN), (Comparison(0, 1, "first", strength=1.5),))],
    ),
    (
        "conversational_implicit",
        "conversational_implicit",
        [
            (
                (*SKY, bot("Blue."), user("Why?")),
                ((bot("Scattering."),), (bot("Magic."),)),
                (Comparison(0, 1, "first", strength=2.0),),
            )
        ],
    ),
    (
        "hh_rlhf",
        "hh_rlhf",
        [
            ((user("Hi"), bot("Hello"), *SKY), (BLUE, GREEN), (FIRST,)),
            ((user("Hi"), bot("One\n\nTwo"), *SKY), (BLUE, GREEN), (FIRST,)),
            (SKY, ((bot("Well,\n\nblue."),), (bot("Well,\n\ngreen."),)), (FIRST,)),
        ],
    ),
    (
        "unpaired",
        "unpaired",
        [
            ("The sky is", (" blue.",), (Rating(0, 1.0, "label"),)),
            ("The sky is", (" green.",), (Rating(0, 0.0, "label"),)),
            ("The sky is", (" grey.",), (Rating(0, 1.0, "label", weight=0.5),)),
        ],
    ),
    (
        "unpaired_messages",
        "unpaired_messages",
        [
            ((user("Hi"), bot("Hello"), *SKY), (BLUE,), (Rating(0, 1.0, "label"),)),
            (SKY, (GREEN,), (Rating(0, 0.0, "label"),)),
        ],
    ),
    (
        "unpaired_alpaca",
        "unpaired_alpaca",
        [
            ((user("Name a colour\nof the sky"),), (GREEN,), (Rating(0, 0.0, "label"),)),
            ((user("Name a colour"),), (BLUE,), (Rating(0, 1.0, "label"),)),
        ],
    ),
    ("openai", "openai", [(SKY, (BLUE, GREEN), (FIRST,))]),
    (
        "alpaca_ranking",
        "alpaca_ranking",
        [
            ((system("Be brief."), user("Hi"), bot("Hello"), user("Colour?\nsky")), (BLUE, GREEN), (FIRST,)),
            (SKY, (BLUE, GREEN), (FIRST,)),
        ],
    ),
    (
        "sharegpt",
        "sharegpt",
        [((system("Be brief."), user("Hi"), bot("Hello"), *SKY), (BLUE, GREEN), (FIRST,))],
    ),
    (
        "message_lists",
        "message_lists",
        [
            (SKY, (BLUE, GREEN), (FIRST,)),
            (SKY, ((bot("Blue!"),), (bot("Green!"),)), (Comparison(0, 1, "first", weight=0.5),)),
        ],
    ),
    (
        "ms_swift",
        "ms_swift",
        [
            (BRIEF, (BLUE, GREEN), (FIRST,)),
            (
                SKY,
                (BLUE, GREEN, RED),
                tuple(Comparison(0, k, "first", strength=1.5) for k in (1, 2)),
            ),
            (SKY, (BLUE, GREEN), (FIRST,)),
        ],
    ),
    ("argilla", "argilla", [(SKY, (BLUE, GREEN), (Comparison(0, 1, "first", strength=2.5),))]),
    (
        "distilabel_dpo",
        "ratings",
        [(SKY, (GREEN, BLUE, AZURE), tuple(Rating(k, v, "score") for k, v in enumerate((1.0, 5.0, 4.0))))],
    ),
    (
        "distilabel_orca",
        "ratings",
        [
            (BRIEF, (GREEN, BLUE), (Rating(0, 1.0, "score"), Rating(1, 9.0, "score"))),
            (BRIEF, (GREEN, BLUE), (Rating(0, 9.0, "score"), Rating(1, 9.0, "score"))),
            (BRIEF, (BLUE, GREEN), (FIRST,)),
        ],
    ),
    (
        "distilabel_chat",
        "ratings",
        [
            ((user("Hi"), bot("Hello"), *SKY), (GREEN, BLUE), (Rating(0, 1.0, "score"), Rating(1, 5.0, "score"))),
            ((user("Hi"), bot("Hello"), *SKY), (GREEN, BLUE), (Rating(0, 1.0, "score"),)),
        ],
    ),
    (
        "ratings",
        "ratings",
        [(SKY, (GREEN, BLUE, AZURE), tuple(Rating(k, v, "score") for k, v in enumerate((1.0, 5.0, 5.0))))],
    ),
    (
        "scored_responses",
        "scored_responses",
        [("The sky is", (" green.", " blue."), (Rating(0, 0.1, "score"), Rating(1, 0.9, "score")))],
    ),
    (
        "question_pair",
        "question_pair",
        [(BRIEF, (BLUE, GREEN), (FIRST,)), (SKY, (AZURE, RED), (FIRST,))],
    ),
    ("code_pair", "question_pair", [(SKY, (BLUE, GREEN), (FIRST,))]),
    ("stack_exchange", "stack_exchange", [(SKY, (BLUE, GREEN), (FIRST,))]),
    (
        "ultrafeedback",
        "ultrafeedback",
        [
            (
                SKY,
                (GREEN, BLUE),
                (
                    Rating(0, 1.0, "score", axis="helpfulness"),
                    Rating(1, 5.0, "score", axis="helpfulness"),
                    Rating(1, 4.0, "score", axis="honesty"),
                ),
            ),
            (
                (user("Sea?"),),
                (RED, BLUE),
                (Rating(0, 2.0, "score", axis="overall"), Rating(1, 8.0, "score", axis="overall")),
            ),
        ],
    ),
    (
        "nectar",
        "nectar",
        [(SKY, (BLUE, RED, GREEN), tuple(Rating(k, v, "rank") for k, v in enumerate((0.0, 2.0, 1.0))))],
    ),
    (
        "helpsteer3",
        "helpsteer3",
        [
            (SKY, (BLUE, GREEN), (Comparison(0, 1, "first", strength=3.0),)),
            (SKY, (RED, (bot("Blue!"),)), (Comparison(0, 1, "second", strength=1.0),)),
            (SKY, (AZURE, (bot("Blue?"),)), (Comparison(0, 1, "tie", strength=0.0),)),
        ],
    ),
    (
        "pku_saferlhf",
        "pku_saferlhf",
        [(SKY, (BLUE, GREEN), (Comparison(0, 1, "first", axis="better"), Comparison(0, 1, "second", axis="safer")))],
    ),
    (
        "shp",
        "shp",
        [
            (SKY, (BLUE, GREEN), (Comparison(0, 1, "first", strength=7.0),)),
            (SKY, (RED, (bot("Blue!"),)), (Comparison(0, 1, "second", strength=5.0),)),
        ],
    ),
    (
        "arena",
        "arena",
        [
            (SKY, (BLUE, GREEN), (Comparison(0, 1, outcome, annotator="j1"),))
            for outcome in ("first", "second", "tie", "both_bad")
        ]
        + [(SKY, ((*GREEN, *SKY, bot("Still green.")), (*BLUE, *SKY, bot("Still blue."))), (SECOND,))],
    ),
    (
        "arena_columns",
        "arena_columns",
        [(SKY, (GREEN, BLUE), (SECOND,)), (SKY, (BLUE, AZURE), (Comparison(0, 1, "tie"),))],
    ),
    (
        "summarize_from_feedback",
        "summarize_from_feedback",
        [
            (
                "SUBREDDIT: r/sky\n\nTITLE: Colour\n\nPOST: The sky is blue.\n\nTL;DR:",
                (" Green.", " Blue."),
                (Comparison(0, 1, "second", annotator="w9"),),
            ),
            ("Article: The sky is blue.\n\nTL;DR:", (" Blue.", " Green."), (FIRST,)),
        ],
    ),
    (
        "webgpt",
        "webgpt",
        [
            (SKY, (GREEN, BLUE), (Comparison(0, 1, "second", strength=1.0),)),
            (SKY, ((bot("Blue!"),), AZURE), (Comparison(0, 1, "tie", strength=0.0),)),
        ],
    ),
    (
        "alpaca_farm",
        "alpaca_farm",
        [((user("Colour?\nsky"),), (GREEN, BLUE), (SECOND,)), (SKY, (BLUE, GREEN), (FIRST,))],
    ),
    ("llmbar", "alpaca_farm", [(SKY, (GREEN, BLUE), (SECOND,))]),
    (
        "indexed",
        "indexed",
        [
            ("The sky is", (" green.", " blue.", " red."), (Comparison(1, 0, "first"),)),
            ("The sea is", (" green.", " blue.", " red."), (Comparison(1, 2, "first", probability=0.9),)),
        ],
    ),
    (
        "indexed_pairs",
        "indexed",
        [(SKY, (GREEN, BLUE, RED), (Comparison(1, 0, "first"), Comparison(1, 2, "first")))],
    ),
    (
        "anthropic_evals",
        "anthropic_evals",
        [("Is the sky blue?", (" Yes", " No"), (Comparison(0, 1, "first", probability=0.97),))],
    ),
    (
        "pandalm",
        "pandalm",
        [
            (
                (user("Colour?\nsky"),),
                (GREEN, BLUE),
                (
                    Comparison(0, 1, "second", annotator="annotator1"),
                    Comparison(0, 1, "tie", annotator="annotator2"),
                    Comparison(0, 1, "first", annotator="annotator3"),
                ),
            )
        ],
    ),
    (
        "multiple_choice",
        "multiple_choice",
        [
            (
                SKY,
                ((bot("Green"),), (bot("Blue"),), (bot("Red"),)),
                (
                    Comparison(1, 0, "first", axis="answer"),
                    Comparison(1, 2, "first", axis="answer"),
                    Rating(0, 3.0, "score", axis="voters"),
                    Rating(1, 9.0, "score", axis="voters"),
                ),
            )
        ],
    ),
    (
        "label_studio",
        "label_studio",
        [
            (
                SKY,
                (GREEN, BLUE),
                (
                    Comparison(0, 1, "second", annotator="1", seconds=4.5),
                    Comparison(0, 1, "first", annotator="b@example.org"),
                ),
            )
        ],
    ),
    (
        "oasst",
        "oasst",
        [
            (SKY, (GREEN, BLUE), (Rating(0, 1.0, "rank"), Rating(1, 0.0, "rank"))),
            (
                (*SKY, *BLUE, user("Why?")),
                ((bot("Scattering."),), (bot("Magic."),)),
                (Rating(0, 0.0, "rank"), Rating(1, 1.0, "rank")),
            ),
        ],
    ),
    (
        "messages",
        "messages",
        [
            ((system("Be brief."), user("Hi")), ((bot("Hello"), *SKY, *BLUE),), ()),
            ((user("Hi {{name}}"), bot("no"), *SKY), (BLUE,), ()),
        ],
    ),
    ("sharegpt_sft", "messages", [(SKY, (BLUE,), ())]),
    ("prompt_completion", "prompt_completion", [("The sky is", (" blue.",), ()), (SKY, (BLUE,), ())]),
    ("alpaca", "alpaca", [((user("Colour?\nsky"),), (BLUE,), ()), (SKY, (BLUE,), ())]),
    ("text", "text", [("", ("The sky is blue.",), ())]),
    ("prompts", "prompts", [("The sky is", (), ()), (SKY, (), ())]),
    (
        "afzal",
        "afzal",
        [
            (
                SKY,
                (BLUE, GREEN),
                (
                    Comparison(0, 1, "first", 2.0, annotator="ann", axis="helpful", shown_first=1, seconds=3.5),
                    Rating(1, 0.0, "label"),
                ),
            )
        ],
    ),
]


@pytest.mark.parametrize(("name", "format", "expected"), GOLDEN, ids=[case[0] for case in GOLDEN])
def test_a_format_gives_the_expected_items(name, format, expected):
    dataset = read(FIXTURES / f"{name}.jsonl")
    assert dataset.format == format
    seen = [(item.prompt, tuple(r.turns for r in item.responses), item.votes) for item in dataset.items]
    assert seen == expected
    assert dataset.rows == dataset.kept + sum(drop.is_complete for drop in dataset.drops)


@pytest.mark.parametrize("name", ["tokenised", "stepwise"])
def test_a_refused_format_is_named_with_its_fields(name):
    with pytest.raises(AfzalError) as caught:
        read(FIXTURES / f"{name}.jsonl")
    assert f"'{name}'" in caught.value.what
    assert {"tokenised": "prompt_ids", "stepwise": "prompt, completions, labels"}[name] in caught.value.why


def test_every_format_of_the_table_has_a_fixture():
    covered = {format for _, format, _ in GOLDEN} | {"tokenised", "stepwise"}
    assert {entry.name for entry in FORMATS} == covered
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == {name for name, _, _ in GOLDEN} | {
        "tokenised",
        "stepwise",
    }


def winners(name):
    items = read(FIXTURES / f"{name}.jsonl").items
    return [[(item.responses[p.i].turns[0].content, p.p) for p in preferences(item)] for item in items]


def test_polarity_traps_reach_the_preferences_the_right_way_round():
    """In these files the answer that says blue (or azure) is the better one whenever there is an order."""
    assert winners("shp") == [[("Blue.", 1.0)], [("Blue!", 1.0)]]
    assert winners("helpsteer3") == [[("Blue.", 1.0)], [("Blue!", 1.0)], [("Azure.", 0.5)]]
    assert winners("arena") == [[("Blue.", 1.0)], [("Green.", 1.0)], [("Blue.", 0.5)], [], [("Blue.", 1.0)]]
    assert winners("nectar") == [[("Blue.", 1.0), ("Blue.", 1.0), ("Green.", 1.0)]]
    assert winners("ultrafeedback") == [[("Blue.", 1.0)], [("Blue.", 1.0)]]
    assert winners("ratings") == [[("Blue.", 1.0), ("Azure.", 1.0), ("Blue.", 0.5)]]
    orca = [[("Blue.", 1.0)], [("Green.", 0.5)], [("Blue.", 1.0)]]
    assert winners("distilabel_orca") == orca
    assert winners("distilabel_dpo") == [[("Blue.", 1.0), ("Azure.", 1.0), ("Blue.", 1.0)]]
    assert winners("oasst") == [[("Blue.", 1.0)], [("Scattering.", 1.0)]]
    assert winners("pku_saferlhf") == [[("Blue.", 0.5)]]
    sky = read(FIXTURES / "pku_saferlhf.jsonl").items[0]
    assert [(p.i, p.j) for p in preferences(sky, axis="better")] == [(0, 1)]
    assert [(p.i, p.j) for p in preferences(sky, axis="safer")] == [(1, 0)]
    choice = read(FIXTURES / "multiple_choice.jsonl").items[0]
    assert labels(choice) == (False, True, False)
    assert [(p.i, p.j) for p in preferences(choice, axis="voters")] == [(1, 0)]


def test_both_bad_is_no_tie():
    both_bad = read(FIXTURES / "arena.jsonl").items[3]
    assert both_bad.votes[0].p_first is None
    assert preferences(both_bad) == ()


def test_hh_rows_that_cannot_be_used_are_dropped_with_their_lines():
    drops = read(FIXTURES / "hh_rlhf.jsonl").drops
    assert [(drop.where.rsplit(":")[-1], drop.reason) for drop in drops] == [
        ("3", "empty_response"),
        ("4", "prefix_differs"),
    ]


def test_oasst_says_which_replies_have_no_rank():
    (drop,) = read(FIXTURES / "oasst.jsonl").drops
    assert (drop.reason, drop.unit) == ("unranked_replies", "response")
    assert "message f" in drop.detail


def test_other_fields_of_a_row_are_kept():
    chat = read(FIXTURES / "conversational.jsonl").items
    assert chat[0].extra == {"tools": [{"name": "look"}]}
    pandalm = read(FIXTURES / "pandalm.jsonl").items[0]
    assert pandalm.id == "4"
    arena = read(FIXTURES / "arena.jsonl").items[0]
    assert [r.source for r in arena.responses] == ["x", "y"]
    native = read(FIXTURES / "afzal.jsonl").items[0]
    assert (native.id, native.where, native.group, native.extra) == ("x1", "old.jsonl:9", "g1", {"lang": "en"})
    assert native.responses[0].source == "m1"


def test_dialogues_with_one_opening_share_a_group():
    items = read(FIXTURES / "oasst.jsonl").items
    assert {item.group for item in items} == {"T"}
    chat = read(FIXTURES / "ms_swift.jsonl").items
    assert len({item.group for item in chat}) == 1
