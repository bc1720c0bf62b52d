"""``afzal annotate --order ask``: the most informative question comes first, live; nothing else changes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import wait

import numpy as np
import pytest
from helpers_web import answer, job, lines_of, opened

from afzal.errors import AfzalError
from afzal.quality import ask
from afzal.records import Comparison
from afzal.web.selection import REFRESH_EVERY, SELECTION_SIZE

WORDS = "bird cat dog egg fish good happy ill joy kite".split()  # noqa: SIM905


def rows(n: int = 80) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    say = lambda k: " ".join(rng.choice(WORDS, 5)) + f" {k}"  # noqa: E731
    return [{"prompt": f"prompt {k}", "chosen": say(f"a{k}"), "rejected": say(f"b{k}")} for k in range(n)]


def settled(session) -> None:
    """Wait for the running choice."""
    assert session._selector is not None
    if session._selector._running is not None:
        wait([session._selector._running])


def wanted(folder, lines, heard: int) -> list[str]:
    """The ids of the items that the rule would ask about first after these lines."""
    items = folder.task.items
    number = {item.id: k for k, item in enumerate(items)}
    votes = {number[v["item"]]: [Comparison(*v["shown"], v["outcome"])] for v in lines}
    chosen = ask.next_questions(ask.pool_of(items), votes, SELECTION_SIZE, seed=folder.task.rules.seed + heard)
    return [items[q.pair].id for q in chosen]


def test_the_first_questions_are_those_of_the_rule_and_the_journal_says_why(tmp_path):
    with opened(job(tmp_path, rows(), order="ask")) as folder:
        lines = [answer(folder.session, "ann") for _ in range(REFRESH_EVERY)]
        assert [v["item"] for v in lines] == wanted(folder, [], 0)[:REFRESH_EVERY]
        assert Counter(v["asked"] for v in lines) == {"d_optimal": 9, "random": 1}


def test_the_choice_is_made_anew_after_every_ten_answers(tmp_path):
    with opened(job(tmp_path, rows(), order="ask")) as folder:
        lines = [answer(folder.session, "ann", outcome="first" if k % 3 else "second") for k in range(REFRESH_EVERY)]
        folder.session.next("ann")
        settled(folder.session)
        known = folder.session.next("ann")  # the question on the screen stays
        lines.append(answer(folder.session, "ann"))
        assert (
            folder.session.task.questions[folder.session.queue.by_key[known["question"]]].item_id == lines[-1]["item"]
        )
        after = wanted(folder, lines[:REFRESH_EVERY], REFRESH_EVERY)
        settled(folder.session)
        then = [answer(folder.session, "ann")["item"] for _ in range(4)]
        assert then == [item for item in after if item != lines[-1]["item"]][:4]


@pytest.mark.parametrize("overlap", [1, 2])
def test_everything_is_asked_and_no_more_often_than_the_overlap(tmp_path, overlap):
    people = ("ann", "bob", "cem")
    with opened(job(tmp_path, rows(60), people, order="ask", overlap=overlap)) as folder:
        said = []
        while True:
            asked = [name for name in people if folder.session.next(name)["state"] == "ask"]
            if not asked:
                break
            said += [answer(folder.session, name) for name in asked if folder.session.next(name)["state"] == "ask"]
        assert Counter(v["item"] for v in said) == dict.fromkeys({i.id for i in folder.task.items}, overlap)
        assert len({(v["item"], v["annotator"]) for v in said}) == len(said) == 60 * overlap


def test_a_question_that_lacks_a_second_vote_comes_before_new_ones(tmp_path):
    with opened(job(tmp_path, rows(), ("ann", "bob"), order="ask", overlap=2)) as folder:
        ours = [answer(folder.session, "ann")["item"] for _ in range(REFRESH_EVERY + 1)]
        folder.session.next("ann")
        settled(folder.session)
        theirs = [answer(folder.session, "bob")["item"] for _ in range(REFRESH_EVERY)]
        assert set(theirs) <= set(ours)


def test_a_reopened_page_chooses_by_the_votes_on_the_disk(tmp_path):
    made = job(tmp_path, rows(), order="ask")
    with opened(made) as folder:
        for _ in range(REFRESH_EVERY + 3):
            answer(folder.session, "ann", folder)
            settled(folder.session)
    with opened(made) as folder:
        lines = lines_of(tmp_path / "out")
        assert answer(folder.session, "ann")["item"] == wanted(folder, lines, len(lines))[0]


def test_gold_is_asked_as_ever_and_teaches_the_choice(tmp_path):
    from helpers_web import write_rows

    gold = write_rows(tmp_path / "gold.jsonl", rows()[:3])
    with opened(job(tmp_path, rows(), order="ask", gold=str(gold), practice=3)) as folder:
        first = [answer(folder.session, "ann") for _ in range(3)]
        assert {v["item"] for v in first} == {i.id for i in folder.task.items if i.gold}
        assert [v["asked"] for v in first] == [None] * 3
        assert answer(folder.session, "ann")["item"] == wanted(folder, [], 0)[0]


def test_only_pairs_can_be_chosen(tmp_path):
    with (
        pytest.raises(AfzalError, match="questions can be chosen only among pairs"),
        opened(job(tmp_path, rows(4), order="ask", mode="rate")),
    ):
        pass


def test_other_orders_leave_no_trace_of_a_choice(tmp_path):
    with opened(job(tmp_path, rows(4))) as folder:
        assert "asked" not in answer(folder.session, "ann")


def test_repeats_and_skips_are_no_votes(tmp_path):
    with opened(job(tmp_path, rows(), order="ask", repeat=1.0)) as folder:
        lines = []
        while len(lines) < 30:
            lines.append(answer(folder.session, "ann", outcome="first"))
            settled(folder.session)
        assert any(v["repeat_of"] for v in lines)
        skipped = folder.session.next("ann")
        about = {"question": skipped["question"], "position": skipped["position"], "reason": "broken"}
        folder.session.skip("ann", {"id": "skip00000001", **about})
        answers = folder.session._answers()
        own = [v for v in lines if not v["repeat_of"]]
        ids = [folder.task.questions[k].item_id for k in folder.session._selector.select(answers, 77)]
        assert ids == wanted(folder, own, 77)
