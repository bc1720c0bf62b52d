"""Which template is used, and the notes about it."""

from pathlib import Path

import pytest
from helpers_tokenizers import CHATML, GEMMA, LLAMA, bpe_tokenizer, byte_tokenizer, llama_tokenizer

from afzal.errors import AfzalError
from afzal.records import Item, Message, Response
from afzal.tokens import Speaker, encode, resolve_template, template_hash
from afzal.tokens.template import PLAIN, renderer


def _render(tokenizer, template: str, *turns: tuple[str, str], generation: bool = False) -> str:
    speaker = renderer(tokenizer, template)
    messages = [Message(role, text) for role, text in turns]
    return speaker.prompt(messages, {}) if generation else speaker.full_text(messages, {})


def test_the_tokenizers_own_template_is_used_in_silence() -> None:
    assert resolve_template(byte_tokenizer(template=GEMMA)) == (GEMMA, None)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "other"}
    assert resolve_template(tokenizer) == (CHATML, None)


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": "a", "tool_use": "b"}
    with pytest.raises(AfzalError, match="rag, tool_use"):
        resolve_template(tokenizer)


def test_without_a_template_it_is_plain_and_said_so() -> None:
    template, notice = resolve_template(byte_tokenizer())
    assert template == PLAIN
    assert notice == "the tokenizer has no chat template: using the built-in 'plain'"


def test_plain_is_a_transcript() -> None:
    tokenizer = byte_tokenizer()
    turns = (("system", "Be nice."), ("user", "Hi\n"), ("assistant", " Yo"), ("user", "{{x}}"))
    assert _render(tokenizer, PLAIN, *turns, generation=True) == (
        "System:\nBe nice.\n\nHuman:\nHi\n\n\nAssistant:\n Yo\n\nHuman:\n{{x}}\n\nAssistant:\n"
    )
    assert _render(tokenizer, PLAIN, *turns[1:3]) == "Human:\nHi\n\n\nAssistant:\n Yo"


def test_a_conversation_without_turns_is_counted() -> None:
    item = Item("x", (), (Response((Message("assistant", "A"),)),))
    encoded = encode([item], byte_tokenizer(), max_tokens=99)
    assert encoded.counts("dropped") == {"template_refused": 1}
    with pytest.raises(AfzalError, match="prompt 1: this prompt has no tokens"):
        Speaker(byte_tokenizer()).encode_prompts(["a", ()], max_tokens=99)


def test_built_in_templates_begin_as_the_tokenizer_begins_a_text() -> None:
    for name in ("plain", "chatml"):
        with_bos, _ = resolve_template(llama_tokenizer(), name)
        without, _ = resolve_template(bpe_tokenizer(), name)
        assert with_bos == "{{ bos_token }}" + without
        assert _render(llama_tokenizer(), with_bos, ("user", "Q")).startswith("<s>")


def test_chatml_by_name_says_when_its_markers_are_unknown() -> None:
    template, notice = resolve_template(byte_tokenizer(), "chatml")
    assert notice == (
        "chat template: the built-in 'chatml' (<|im_start|> and <|im_end|> are not single tokens of this tokenizer)"
    )
    assert resolve_template(byte_tokenizer(template=CHATML), "chatml")[1] == "chat template: the built-in 'chatml'"
    # then the marker is text like any other, and the EOS follows it
    item = Item("x", (Message("user", "Q"),), (Response((Message("assistant", "A"),)),))
    tokenizer = byte_tokenizer()
    (tree,) = encode([item], tokenizer, max_tokens=99, chat_template=template).trees
    assert tokenizer.decode(tree.branches[0].ids) == "A<|im_end|><eos>"
    assert len(tree.branches[0].ids) == 1 + len("<|im_end|>") + 1


def test_a_template_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(LLAMA, encoding="utf-8")
    assert resolve_template(byte_tokenizer(template=CHATML), str(path)) == (LLAMA, f"chat template: {path}")
    assert resolve_template(byte_tokenizer(), LLAMA)[0] == LLAMA


def test_no_such_template_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(AfzalError, match=r"no chat template 'alpaca'(?s:.*)plain, chatml, or the path"):
        resolve_template(byte_tokenizer(), "alpaca")
    with pytest.raises(AfzalError, match="no chat template"):
        resolve_template(byte_tokenizer(), str(tmp_path))


def test_a_template_that_does_not_parse_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}", encoding="utf-8")
    with pytest.raises(AfzalError, match=r"broken\.jinja:2: the chat template does not parse"):
        resolve_template(byte_tokenizer(), str(path))


def test_templates_with_generation_blocks_parse() -> None:
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    assert resolve_template(byte_tokenizer(), template)[0] == template


def test_the_resolved_template_saved_with_the_tokenizer_changes_nothing(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    item = Item("x", (Message("user", "Q"),), (Response((Message("assistant", "A b"),)),))
    for tokenizer in (llama_tokenizer(), bpe_tokenizer()):
        before = encode([item], tokenizer, max_tokens=99).trees[0]
        tokenizer.chat_template = resolve_template(tokenizer)[0]
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert encode([item], loaded, max_tokens=99).trees[0].key(0) == before.key(0)
        asked = loaded.apply_chat_template(
            [{"role": "user", "content": "Q"}], add_generation_prompt=True, return_dict=False
        )
        assert asked == before.prompt.tolist()


def test_the_hash_is_of_the_text() -> None:
    assert template_hash(CHATML) == template_hash(str(CHATML))
    assert template_hash(CHATML) != template_hash(CHATML + " ")
    assert len(template_hash(CHATML)) == 16


def test_stop_token_without_any_eos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert Speaker(tokenizer).turn_end() is None
    with pytest.raises(AfzalError, match="no EOS token"):
        encode([Item("x", "Q", (Response("A"),))], tokenizer, max_tokens=9)
    assert encode([Item("x", "Q", (Response("A"),))], tokenizer, max_tokens=9, eos=0).trees[0].branches[0].ids[-1] == 0
