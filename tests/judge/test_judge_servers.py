"""Replies of other kinds of servers: other field names, contents in parts, errors under status 200."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from afzal.errors import AfzalError
from afzal.servers.client import Server, TooLong, Unreachable

WHOLE = {"choices": [{"message": {"content": "VERDICT: A"}, "finish_reason": "stop"}]}
RENAMED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
TOO_MANY = (
    "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 300 tokens"
)
ASKED = [{"role": "user", "content": "?"}]


def server(answer: Callable[[dict[str, Any]], tuple[int, Any]], **given: Any) -> tuple[Server, list[dict[str, Any]]]:
    """A server with these replies, and the requests that it got."""
    seen: list[dict[str, Any]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        status, body = answer(seen[-1])
        return httpx2.Response(status, json=body) if not isinstance(body, str) else httpx2.Response(status, text=body)

    transport = httpx2.MockTransport(handle)
    return Server("http://x/v1", "m", sleep=lambda s: None, transport=transport, **given), seen


def says(content: Any, finish: str = "stop") -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]}


def test_a_model_that_wants_max_completion_tokens_gets_them_and_is_remembered():
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" in body:
            return 400, {"error": {"message": RENAMED, "param": "max_tokens", "code": "unsupported_parameter"}}
        return 200, WHOLE

    asker, seen = server(answer)
    for _ in range(2):
        assert asker.ask(ASKED, {"max_tokens": 512}).text == "VERDICT: A"
    limits = [{name: of for name, of in body.items() if name.startswith("max")} for body in seen]
    assert limits == [{"max_tokens": 512}, {"max_completion_tokens": 512}, {"max_completion_tokens": 512}]
    assert not asker.faults


def test_a_model_that_refuses_both_names_is_asked_twice_and_no_more():
    asker, seen = server(lambda body: (400, {"error": {"message": RENAMED}}))
    with pytest.raises(AfzalError, match="'max_tokens' is not supported"):
        asker.ask(ASKED, {"max_tokens": 512})
    assert len(seen) == 2


def test_a_limit_that_is_too_large_is_no_other_name_for_it():
    asker, seen = server(lambda body: (400, {"error": {"message": TOO_MANY}}))
    with pytest.raises(TooLong):
        asker.ask(ASKED, {"max_tokens": 512})
    assert len(seen) == 1


def test_a_model_of_one_temperature_says_so():
    said = (
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
    )
    asker, _ = server(lambda body: (400, {"error": {"message": said}}))
    with pytest.raises(AfzalError, match="accepts only one temperature, set that"):
        asker.ask(ASKED, {"temperature": 0})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "VERDICT"}, {"type": "text", "text": ": A"}], "VERDICT: A"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "B?"}]}, {"type": "text", "text": "A"}], "A"),
        ([], ""),
        (None, ""),
    ],
)
def test_a_content_in_parts_is_its_texts(content, text):
    asker, _ = server(lambda body: says(content))
    assert asker.ask(ASKED, {}).text == text


def test_a_message_without_content_is_a_reply_that_was_cut():
    asker, _ = server(lambda body: (200, {"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]}))
    reply = asker.ask(ASKED, {})
    assert (reply.text, reply.finish) == ("", "length")


def test_an_error_under_status_200_is_tried_again_and_reported_in_the_servers_words():
    error = {"error": {"message": "Provider returned error", "code": 502}}
    asker, seen = server(lambda body: (200, error), attempts=3)
    with pytest.raises(Unreachable, match="3 x status 502 in a reply of status 200; it says: Provider returned error"):
        asker.ask(ASKED, {})
    assert len(seen) == 3
    replies = [(200, {"error": "overloaded"}), (200, WHOLE)]
    asker, seen = server(lambda body: replies.pop(0))
    assert asker.ask(ASKED, {}).text == "VERDICT: A"


@pytest.mark.parametrize(("code", "kind"), [(401, AfzalError), (400, TooLong)])
def test_an_error_under_status_200_that_retries_cannot_fix_is_not_tried_again(code, kind):
    said = "User not found" if code == 401 else "maximum context length is 4096 tokens"
    asker, seen = server(lambda body: (200, {"error": {"message": said, "code": code}}))
    with pytest.raises(kind, match=said):
        asker.ask(ASKED, {})
    assert len(seen) == 1


def test_the_reason_why_a_server_gave_up_is_reported():
    said = "You exceeded your current quota, please check your plan and billing details."
    asker, _ = server(lambda body: (429, {"error": {"message": said}}), attempts=2)
    with pytest.raises(Unreachable, match="2 x status 429; it says: You exceeded your current quota"):
        asker.ask(ASKED, {})
    asker, _ = server(lambda body: (503, "<html>Bad gateway</html>"), attempts=2)
    with pytest.raises(Unreachable) as raised:
        asker.ask(ASKED, {})
    assert "html" not in str(raised.value)


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_a_reply_that_the_server_broke_off_is_tried_again(finish):
    replies = [says("VERDI", finish), (200, WHOLE)]
    asker, _ = server(lambda body: replies.pop(0))
    assert asker.ask(ASKED, {}).text == "VERDICT: A"
