"""The templates of 27 families: tokens equal to the template's own rendering, one BOS, one end, scored = said."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers_families import FAMILIES, Family, template_of
from helpers_tokenizers import CHATML, bpe_tokenizer, byte_tokenizer, llama_tokenizer

from afzal.records import Item, Message, Response, turns_to_json
from afzal.tokens import Encoded, Speaker, encode, resolve_template
from afzal.tokens.template import renderer

TOOLS = [{"type": "function", "function": {"name": "clock", "description": "the time", "parameters": {}}}]
SYSTEM = Message("system", "Be kind, be brief.")
ASKED = Message("user", "What colour has the sky?")
HISTORY = (Message("user", "Hello!"), Message("assistant", "Hello, you."))
THOUGHTS = "Light scatters.\nShort waves most."
ANSWER = "It is blue.\nMostly."


def _cases(family: Family) -> list[tuple[tuple[Message, ...], Message, dict[str, Any]]]:
    """Prompt, answer and template options of the row: with and without system, history, tools, thoughts."""
    leads = [(), (SYSTEM,)] if family.has_system else [()]
    tools = [{}, {"tools": TOOLS}] if family.has_tools else [{}]
    thoughts = ["", THOUGHTS] if family.thinks else [""]
    cases = []
    for lead, past, given, thought, options in product(leads, [(), HISTORY], tools, thoughts, family.options):
        if thought and options.get("enable_thinking") is False:
            continue
        extra = {**given, **({"chat_template_kwargs": options} if options else {})}
        cases.append(((*lead, *past, ASKED), Message("assistant", ANSWER, thought), extra))
    return cases


def _tokenizer(name: str, build: Any = byte_tokenizer) -> Any:
    family = FAMILIES[name]
    return build(template=template_of(name), bos=family.bos or "<bos>", eos=family.eos, pad="<pad>")


def _rendered(tokenizer: Any, messages: tuple[Message, ...], extra: dict[str, Any], **flags: bool) -> str:
    """By transformers itself."""
    options = {**extra.get("chat_template_kwargs", {}), **({"tools": extra["tools"]} if "tools" in extra else {})}
    return tokenizer.apply_chat_template(turns_to_json(messages), tokenize=False, **options, **flags)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("build", [byte_tokenizer, bpe_tokenizer], ids=["bytes", "bpe"])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_templates_own_rendering(name: str, build: Any) -> None:
    family = FAMILIES[name]
    tokenizer = _tokenizer(name, build)
    cases = _cases(family)
    items = [Item(str(k), p, (Response((a,)),), extra=extra) for k, (p, a, extra) in enumerate(cases)]
    encoded = encode(items, tokenizer, max_tokens=9999)
    assert encoded.drops == []
    prompts = Speaker(tokenizer).encode_prompts(items, max_tokens=9999)
    for (prompt, answer, extra), tree, fed in zip(cases, encoded.trees, prompts, strict=True):
        (branch,) = tree.branches
        opened = _rendered(tokenizer, prompt, extra, add_generation_prompt=True)
        whole = _rendered(tokenizer, (*prompt, answer), extra)
        ids = tree.prompt.tolist() + branch.ids.tolist()
        assert tree.prompt.tolist() == _ids(tokenizer, opened) == fed.tolist()
        if whole.startswith(opened):
            end = tokenizer.decode([Speaker(tokenizer).turn_end()])
            at = whole.rindex(ANSWER) + len(ANSWER)
            written = whole[: at + len(family.end)] if whole[at:].startswith(family.end) else whole[:at] + family.end
            assert written.endswith(end)
            assert tokenizer.decode(ids) == written
            # if one token would span the prompt's end and the answer's start, the prompt stays as the model gets it
            one_text = _ids(tokenizer, written)
            assert ids == one_text or one_text[: len(tree.prompt)] != tree.prompt.tolist()
        said = tokenizer.decode(branch.ids[branch.scored])
        assert said.endswith(ANSWER + family.end)
        if answer.reasoning:
            assert said == tokenizer.decode(branch.ids)
            assert THOUGHTS in said
        else:
            assert said == ANSWER + family.end
        bos = tokenizer.bos_token_id
        if family.bos and family.bos != family.eos:
            assert ids.count(bos) == (1 if name != "llama2" else 1 + len([m for m in prompt if m == HISTORY[0]]))
            assert ids[0] == bos
        assert branch.ids.tolist().count(Speaker(tokenizer).turn_end()) == 1
        assert branch.ids[-1] == Speaker(tokenizer).turn_end()
        assert branch.scored[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizers_that_put_a_space_before_every_text(name: str) -> None:
    """SentencePiece-like ones do, after every marker too; so a marker is followed by a space where its ids are read."""
    family = FAMILIES[name]
    tokenizer = llama_tokenizer(template=template_of(name))
    tokenizer.add_special_tokens({"additional_special_tokens": [family.eos]})
    tokenizer.eos_token = family.eos
    cases = _cases(family)
    items = [Item(str(k), p, (Response((a,)),), extra=extra) for k, (p, a, extra) in enumerate(cases)]
    encoded = encode(items, tokenizer, max_tokens=9999)
    assert encoded.drops == []
    for (prompt, answer, extra), tree in zip(cases, encoded.trees, strict=True):
        (branch,) = tree.branches
        ids = tree.prompt.tolist() + branch.ids.tolist()
        whole = _ids(tokenizer, _rendered(tokenizer, (*prompt, answer), extra))
        if whole[: len(tree.prompt)] == tree.prompt.tolist():
            assert ids[:-1] == whole[: len(ids) - 1]
        assert ids[-1] == Speaker(tokenizer).turn_end()
        said = tokenizer.decode(branch.ids[branch.scored])
        end = tokenizer.decode([Speaker(tokenizer).turn_end()])
        if answer.reasoning:
            assert THOUGHTS in said
            assert said.endswith(ANSWER + end)
        else:
            assert said.strip().removesuffix(end).strip() == ANSWER


def test_an_answer_reads_back_as_it_was_said_right_after_a_marker() -> None:
    """Otherwise answers that a policy wrote in a round would be trained on with an extra space."""
    for build in (byte_tokenizer, bpe_tokenizer, llama_tokenizer):
        tokenizer = build(template=template_of("phi4"))
        for text in ("It is blue.", " It is blue.", "  two"):
            (tree,) = encode([Item("x", (ASKED,), (Response((_said(text),)),))], tokenizer, max_tokens=999).trees
            ids = tree.branches[0].ids[:-1].tolist()
            assert Speaker(tokenizer).continuation(tree.prompt.tolist(), ids) == text


def _branch(name: str, prompt: tuple[Message, ...], *said: Message, **extra: Any) -> tuple[str, list[str], Encoded]:
    """The prompt, the runs of the only branch (scored ones in brackets), and the full result."""
    tokenizer = _tokenizer(name)
    encoded = encode([Item("x", prompt, (Response(said),), extra=extra)], tokenizer, max_tokens=9999)
    (tree,) = encoded.trees
    (branch,) = tree.branches
    edges = np.flatnonzero(np.diff(branch.scored.astype(int))) + 1
    runs = zip(np.split(branch.ids, edges), np.split(branch.scored, edges), strict=True)
    shown = [f"[{tokenizer.decode(ids)}]" if scored[0] else tokenizer.decode(ids) for ids, scored in runs]
    return tokenizer.decode(tree.prompt), shown, encoded


def _said(text: str, thoughts: str = "") -> Message:
    return Message("assistant", text, thoughts)


def test_an_empty_block_of_thoughts_is_not_scored() -> None:
    blocks = {
        "qwen3": ["<think>\n\n</think>\n\n", "[Blue.<|im_end|>]"],
        "glm4.5": ["\n<think></think>\n", "[Blue.<|user|>]"],
        "gpt_oss": ["<|channel|>final<|message|>", "[Blue.<|return|>]"],
        "qwen3_thinking": ["\n</think>\n\n", "[Blue.<|im_end|>]"],
    }
    for name, expected in blocks.items():
        assert _branch(name, (ASKED,), _said("Blue."))[1] == expected
    off = {"enable_thinking": False}
    for name in ("qwen3", "smollm3"):
        prompt, shown, encoded = _branch(name, (ASKED,), _said("Blue."), chat_template_kwargs=off)
        assert prompt.rstrip().endswith("</think>")
        assert (shown, encoded.notes) == (["[Blue.<|im_end|>]"], ())


def test_thoughts_are_scored_with_their_tags_however_they_are_stated() -> None:
    written = "[<think>\nLight.\n</think>\n\nBlue.<|im_end|>]"
    for said in (
        _said("Blue.", "Light."),
        _said("<think>\nLight.\n</think>\n\nBlue."),
        _said("<think>Light.</think>Blue."),  # the template spells them with line breaks
    ):
        assert _branch("qwen3", (ASKED,), said)[1] == [written]
    prompt, shown, _ = _branch("qwen3_thinking", (ASKED,), _said("Blue.", "Light."))
    assert prompt.endswith("<think>\n")
    assert shown == ["[Light.\n</think>\n\nBlue.<|im_end|>]"]
    channels = (
        "[<|channel|>analysis<|message|>Light.<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|return|>]"
    )
    assert _branch("gpt_oss", (ASKED,), _said("Blue.", "Light."))[1] == [channels]


def test_tags_of_thoughts_that_are_special_tokens_are_tokens_in_an_assistants_turn_alone() -> None:
    for build in (byte_tokenizer, llama_tokenizer):
        tokenizer = build(template=template_of("qwen3"))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        trees = [
            encode([Item("x", (ASKED,), (Response((said,)),))], tokenizer, max_tokens=999)
            for said in (_said("<think>\nLight.\n</think>\n\nBlue."), _said("Blue.", "Light."))
        ]
        assert [t.notes for t in trees] == [(), ()]
        first, second = (t.trees[0].branches[0] for t in trees)
        assert first.ids.tolist() == second.ids.tolist()
        assert [first.ids.tolist().count(tag) for tag in tags] == [1, 1]
        assert first.scored.all()
        typed = Item("x", (Message("user", "What is <think>?"),), (Response((_said("A tag."),)),))
        encoded = encode([typed], tokenizer, max_tokens=999)
        assert encoded.trees[0].prompt.tolist().count(tags[0]) == 0
        assert encoded.notes == ("a special token is spelled out in the text of 1 item: read as plain characters",)


def test_a_prompt_that_opens_thoughts_is_continued_as_the_model_is_prompted() -> None:
    end = "<｜end▁of▁sentence｜>"
    prompt, shown, encoded = _branch("deepseek_r1", (ASKED,), _said("<think>\nLight.\n</think>\n\nBlue."))
    assert prompt.endswith("<｜Assistant｜><think>\n")
    assert shown == [f"[Light.\n</think>\n\nBlue.{end}]"]  # the template itself would leave the thoughts out
    assert encoded.notes == ("the template would write an answer of 1 item differently: trained on as it was written",)
    assert _branch("deepseek_r1", (ASKED,), _said("Blue.", "Light."))[1] == shown
    _, shown, encoded = _branch("deepseek_r1", (ASKED,), _said("Blue."))
    assert shown == ["\n</think>\n\n", f"[Blue.{end}]"]
    assert encoded.notes == (
        "the prompt opens thoughts that an answer of 1 item does not have: closed before it, not scored",
    )


def test_thoughts_of_earlier_turns_that_a_template_strips_are_no_part_of_the_prompt() -> None:
    past = (Message("user", "Hello!"), _said("Hello.", "A greeting."))
    for name in ("qwen3", "glm4.5", "gpt_oss"):
        prompt, shown, _ = _branch(name, (*past, ASKED), _said("Blue.", "Light."))
        assert "A greeting." not in prompt
        assert "Light." in shown[-1]
    inline = (Message("user", "Hello!"), _said("<think>\nA greeting.\n</think>\n\nHello."))
    notes = _branch("qwen3", (*inline, ASKED), _said("Blue."))[2].notes
    assert notes == ("the template leaves out the thoughts of earlier turns of 1 item",)


def test_every_turn_of_a_response_is_scored_as_the_model_is_prompted_for_it() -> None:
    again = Message("user", "And grass?")
    turns = (_said("Blue."), again, _said("Green."))
    expected = {
        "qwen3": [
            "[Blue.<|im_end|>]",
            "\n<|im_start|>user\nAnd grass?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ],
        "glm4": ["\n", "[Blue.<|user|>]", "\nAnd grass?<|assistant|>\n"],
        # <|end|> is not what ends an answer, <|return|> is: it is written after the last one alone
        "gpt_oss": [
            "<|channel|>final<|message|>",
            "[Blue.]",
            "<|end|><|start|>user<|message|>And grass?<|end|><|start|>assistant<|channel|>final<|message|>",
        ],
    }
    for name, runs in expected.items():
        end = FAMILIES[name].end
        assert _branch(name, (ASKED,), *turns)[1] == [*runs, f"[Green.{end}]"]
    # a turn whose thoughts are gone once another follows is no answer to its prompt, and not scored
    _, shown, encoded = _branch("qwen3", (ASKED,), _said("Blue.", "Light."), again, _said("Green.", "Leaves."))
    assert shown[-1] == "[<think>\nLeaves.\n</think>\n\nGreen.<|im_end|>]"
    assert shown[0].startswith("Blue.<|im_end|>")
    assert encoded.notes == ("the template leaves out the thoughts of earlier turns of 1 item",)


def test_a_begun_turn_is_continued_where_the_row_says_so() -> None:
    prompt = (ASKED, _said("The colour is"))
    says = {"continue_final_message": True}
    for name in ("qwen2.5", "gemma3", "llama3", "glm4", "qwen3", "gpt_oss", "falcon"):
        text, shown, _ = _branch(name, prompt, _said(" blue."), chat_template_kwargs=says)
        assert text.endswith("The colour is")
        assert text.count("The colour is") == 1
        end = FAMILIES[name].end
        assert shown == [f"[ blue.{end}]"]
        tokenizer = _tokenizer(name)
        item = Item("x", prompt, (Response((_said(" blue."),)),))
        encoded = encode([item], tokenizer, max_tokens=999)
        assert [(d.reason, d.unit) for d in encoded.drops] == [("begun_turn", "item")]
        assert "continue_final_message" in encoded.drops[0].detail


def test_a_template_that_wants_a_system_message_is_asked_with_one() -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
    tokenizer = byte_tokenizer(template=CHATML)
    item = Item("x", (SYSTEM, ASKED), (Response((_said("Blue."),)),))
    encoded = encode([item], tokenizer, max_tokens=999, chat_template=template)
    assert tokenizer.decode(encoded.trees[0].branches[0].ids) == "Blue.<|im_end|>"
    assert encoded.notes == ()


def test_what_ends_an_answer() -> None:
    for name, family in FAMILIES.items():
        tokenizer = _tokenizer(name)
        assert tokenizer.decode([Speaker(tokenizer).turn_end()]) == family.end.strip(), name
        ending = renderer(tokenizer, resolve_template(tokenizer)[0]).ending
        assert ending.text == (family.end if family.end != "<eos>" else ""), name
