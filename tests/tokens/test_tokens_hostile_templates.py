"""Templates are untrusted programs: they end in bounded time and memory, run no code, and do no harm."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_families import FAMILIES, template_of
from helpers_tokenizers import CHATML, GEMMA, LLAMA, PHI, byte_tokenizer

from afzal.errors import AfzalError
from afzal.records import Item, Message, Response, turns_to_json
from afzal.tokens import Speaker, encode, rendering
from afzal.tokens.render_child import MEMORY_BYTES, SECONDS

SAY = "{% for m in messages %}{{ m.content }}{% endfor %}"


def _grown(start: str, step: str) -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(64) %}}{{% set ns.x = {step} %}}{{% endfor %}}"


OVER = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "three loops that write": "{% for a in range(9999) %}{% for b in range(9999) %}ab{{ b }}{% endfor %}{% endfor %}",
    "product of a text": "{% set n = 10000000000 %}{{ 'x' * n }}",
    "product of a list": "{% set n = 1000000000 %}{{ ([0] * n) | length }}",
    "product of messages": "{% set n = 900000000 %}{{ (messages * n) | length }}",
    "join": "{% set long = 'x' * 9000000 %}{% for i in range(999) %}{{ range(99) | join(long) }}{% endfor %}",
    "center": "{% set n = 2000000000 %}{{ 'x' | center(n) }}",
    "ljust": "{% set n = 2000000000 %}{{ 'x'.ljust(n) }}",
    "zfill": "{% set n = 2000000000 %}{{ 'x'.zfill(n) }}",
    "format of a number": "{% set w = '%2000000000d' %}{{ w % 1 }}",
    "format of a text": "{{ '%*d' | format(2000000000, 1) }}",
    "indent": "{% set n = 2000000000 %}{{ 'x' | indent(n, true) }}",
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "two macros that call each other": "{% macro f() %}{{ g() }}{% endmacro %}"
    "{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a list that doubles": _grown("[0]", "ns.x + ns.x"),
    "a text that doubles": _grown("'ab'", "ns.x ~ ns.x"),
    "a number that squares": _grown("9", "ns.x * ns.x"),
    "a tower of powers": "{% set n = 9 %}{{ n ** (n ** n) }}",
    "replace that grows": _grown("'a'", "ns.x.replace('a', 'aa')"),
    "nested too deeply": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "blocks nested too deeply": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "loop without an end": "{% set ns = namespace(x=[0]) %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% if ns.x | length > 9 %}{% set ns.x = [0] %}{% else %}{% set ns.x = ns.x + [1] %}{% endif %}"
    "{% endfor %}{% endfor %}",
}

# sandbox escapes that would run code: each must be refused, or come out as plain text
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['os'].system('touch HERE') }}",
    "{{ cycler.__init__.__globals__.os.system('touch HERE') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ('{0.__class__}').format(messages) }}",
    "{{ strftime_now.__self__.__class__.__base__.__subclasses__() }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ dict.__call__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch HERE') }}",
    "{{ messages.append(1) }}",
)


def _item(answer: str = "An answer.") -> Item:
    return Item("x", (Message("user", "Hi there."),), (Response((Message("assistant", answer),)),), where="f.jsonl:1")


# each takes seconds to reach a limit that another one also tests
SLOW = ("loop without an end", "a number that squares", "replace that grows")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OVER])
def test_a_template_that_runs_on_ends_the_command(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(AfzalError, match=r"the chat template (exceeds its limits|does not parse)") as told:
        encode([_item()] * 3, byte_tokenizer(), max_tokens=99, chat_template=OVER[name] + SAY)
    assert "chat_template" in str(told.value)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2 * SECONDS + 4
    # the next template is unaffected
    assert len(encode([_item()], byte_tokenizer(template=CHATML), max_tokens=99).trees) == 1


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_reaches_out_of_its_sandbox(template: str, tmp_path: Path) -> None:
    escaped = tmp_path / "escaped"
    encoded = encode([_item()], byte_tokenizer(), max_tokens=999, chat_template=template.replace("HERE", str(escaped)))
    assert not escaped.exists()
    if encoded.trees:  # a missing attribute is an empty text
        assert "class" not in byte_tokenizer().decode(encoded.trees[0].prompt)
    else:
        assert encoded.counts("dropped") == {"template_refused": 1}


def test_long_tables_of_ranges_are_refused_by_the_sandbox() -> None:
    encoded = encode([_item()], byte_tokenizer(), max_tokens=99, chat_template="{{ range(10 ** 9) | list }}" + SAY)
    assert "Range too big" in encoded.drops[0].detail


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ {}['a'] + 1 }}", "{{ messages[9].content }}", "{{ 'a' + 1 }}"])
def test_what_an_operation_raises_is_a_refusal(template: str) -> None:
    encoded = encode([_item()], byte_tokenizer(), max_tokens=99, chat_template=template)
    assert encoded.counts("dropped") == {"template_refused": 1}
    assert encoded.drops[0].detail
    with pytest.raises(AfzalError, match="this prompt has no tokens: template_refused"):
        Speaker(byte_tokenizer(), template).encode_prompts([_item().prompt], max_tokens=99)


def test_a_tokenizers_own_template_that_does_not_compile_is_refused() -> None:
    tokenizer = byte_tokenizer()
    for template in ("{% for %}", "{{ x", "{% block a %}{% block a %}{% endblock %}{% endblock %}"):
        tokenizer.chat_template = template
        with pytest.raises(AfzalError, match="the chat template does not parse"):
            encode([_item()], tokenizer, max_tokens=99)
    for template in (3, ["{{ x }}"], {"default": 3}):
        tokenizer.chat_template = template
        with pytest.raises(AfzalError, match="is not text"):
            encode([_item()], tokenizer, max_tokens=99)


def test_rows_that_hand_nonsense_to_the_template_are_counted() -> None:
    tokenizer = byte_tokenizer(template=CHATML)
    for extra in ({"tools": "a text"}, {"tools": [1]}, {"chat_template_kwargs": [1]}, {"chat_template_kwargs": "x"}):
        item = Item("x", _item().prompt, _item().responses, extra=extra)
        assert encode([item], tokenizer, max_tokens=99).counts("dropped") == {"template_refused": 1}
    item = Item("x", _item().prompt, _item().responses, extra={"chat_template_kwargs": {"messages": [], "note": b"1"}})
    assert len(encode([item], tokenizer, max_tokens=99).trees) == 1  # the conversation is the row's


def test_a_rendering_is_what_transformers_makes_of_it() -> None:
    asked = (Message("system", 'A "system" <b>.'), Message("user", "Hi\n"), Message("assistant", "Yo", "Hm."))
    odd = (
        "{% generation %}{{ messages | tojson }}{% endgeneration %}\n"
        "    {% if tools is none %}\n  none\n  {% endif %}\n"
        "{{ dict(a=1) | tojson(indent=2) }}{{ namespace(a=1).a }}{{ dict.fromkeys([1]) }}{{ documents }}"
        "{% for i in range(9) %}{% if i == 3 %}{% continue %}{% elif i > 5 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ messages[-1].thinking }}{{ eos_token }}{{ bos_token }}{{ pad_token }}{{ unk_token is defined }}"
    )
    templates = [CHATML, GEMMA, LLAMA, PHI, odd, *map(template_of, FAMILIES)]
    for template in templates:
        tokenizer = byte_tokenizer(template=template)
        for n, generation in ((1, True), (2, False)):
            messages = asked[1 : 1 + n] if "raise_exception" in template else asked[: 1 + n]
            job: dict[str, Any] = {"tools": None, "documents": None, **tokenizer.special_tokens_map}
            job |= {"messages": turns_to_json(messages), "add_generation_prompt": generation}
            expected = tokenizer.apply_chat_template(
                turns_to_json(messages), tokenize=False, add_generation_prompt=generation
            )
            assert rendering.render(template, [job]) == [expected]


def test_the_process_stays_below_its_memory(tmp_path: Path) -> None:
    hungry = [OVER[name] for name in ("product of a text", "a list that doubles", "three loops that write", "join")]
    script = (
        "import resource, sys, json\nfrom afzal.errors import AfzalError\nfrom afzal.tokens.rendering import render\n"
        "told = 0\nfor template in json.loads(sys.argv[1]):\n    try:\n        render(template, [{'messages': []}])\n"
        "    except AfzalError:\n        told += 1\n"
        "print(told, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", script, json.dumps(hungry)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    told, kilobytes = map(int, done.stdout.split())
    assert told == len(hungry)
    assert kilobytes < MEMORY_BYTES >> 10


def test_the_process_ends_with_the_program(tmp_path: Path) -> None:
    script = (
        "import json\nfrom afzal.tokens.rendering import _CHILDREN, render\n"
        "render('{{ 1 }}', [{'messages': []}])\nprint(*(c.pid for c in _CHILDREN.values()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not Path(f"/proc/{int(done.stdout)}").exists()
