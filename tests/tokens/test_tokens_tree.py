"""The key of a prompt and a response: equal only for equal content, wherever the boundary is."""

from afzal.tokens.tree import tree


def test_the_border_between_prompt_and_response_is_part_of_the_key():
    """Six ids and one, or one and five: without their lengths both would be the same 29 bytes."""
    long = tree("a", [1, 2, 3, 4, 5, 6], [[0x01010101]])
    short = tree("b", [1], [[2, 3, 4, 5, 6]])
    assert long.key(0) != short.key(0)


def test_the_key_is_that_of_the_content():
    one, other = tree("a", [1, 2], [[3], [4, 5]]), tree("b", [1, 2], [[4, 5], [3]])
    assert one.key(0) == other.key(1)
    assert one.key(1) == other.key(0)
    assert one.key(0) != one.key(1)
