"""The process that runs chat templates: it reads jobs as JSON lines from stdin and writes one JSON line per rendering.

:mod:`afzal.tokens.rendering` starts it as a separate script, with the folders of jinja2 and markupsafe as arguments; it
imports nothing else. A template is untrusted code: here its memory and CPU time are limited, and it can harm only this
process. The environment is that of ``transformers.apply_chat_template`` (globals, filters and tags), so both render the
same text; a test compares them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 512 << 20
MAX_CHARACTERS = 8_000_000  # of one rendering
SECONDS = 2.0  # CPU time for the first renderings of a process, and for any single one
SECONDS_PER_JOB = 0.02  # for each further one; rendering a typical conversation takes 0.0001
SECONDS_PER_CHARACTER = 1e-6


def main() -> None:
    """Answer requests until stdin ends."""
    sys.path += sys.argv[1:]
    environment = _environment()
    limits = _Limits()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        for answer in _answers(environment, request, limits):
            sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        sys.stdout.buffer.flush()


def _answers(environment: Any, request: Mapping[str, Any], limits: _Limits) -> Iterator[dict[str, str]]:
    """Per job ``{"text"}``, or why there is none: ``{"refused"}`` (this conversation) or ``{"limit"}`` (the template).

    A job holds the template's variables, among them ``messages``. A request without jobs asks whether the template
    compiles: the answer is ``{"text": ""}`` or ``{"fault", "line"}``.
    """
    limits.allow(len(request["template"]))
    environment.globals["strftime_now"] = datetime.fromisoformat(request["now"]).strftime
    try:
        template = _compiled(environment, request["template"])
    except Exception as error:
        fault = {"fault": _words(error), "line": str(getattr(error, "lineno", 1))}
        yield from [fault] * max(1, len(request["jobs"]))
        return
    if not request["jobs"]:
        yield {"text": ""}
    for job in request["jobs"]:
        limits.allow(job.pop("characters"))
        yield _rendered(template, job)


@lru_cache(maxsize=8)
def _compiled(environment: Any, text: str) -> Any:
    return environment.from_string(text)


def _rendered(template: Any, job: dict[str, Any]) -> dict[str, str]:
    job["messages"] = [_with_aliases(message) for message in job["messages"]]
    try:
        pieces, length = [], 0
        for piece in template.generate(**job):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_CHARACTERS:
                return {"limit": f"it writes more than {MAX_CHARACTERS:,} characters for one conversation"}
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"limit": f"it needs more than {MEMORY_BYTES >> 20} MB of memory for one conversation"}
    except RecursionError:
        return {"limit": "it recurses without end"}
    except Exception as error:  # anything that an operation in a template may raise, such as a division by zero
        return {"refused": _words(error)}


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY_BYTES >> 20} MB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


def _with_aliases(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its thoughts also under the name that gpt-oss templates read."""
    thoughts = message.get("reasoning_content")
    return message if thoughts is None else {"thinking": thoughts, **message}


class _Limits:
    """A CPU time limit that grows with the number and length of renderings; the kernel kills the process beyond it."""

    def __init__(self) -> None:
        self.seconds = SECONDS
        self.start = time.process_time()
        self.set: Callable[[float], None] = _no_limit
        try:
            import resource
        except ImportError:  # Windows has no resource limits
            return
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        self.set = lambda soft: resource.setrlimit(resource.RLIMIT_CPU, (int(soft) + 1, hard))
        for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            bound = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if bound == resource.RLIM_INFINITY else min(most, bound), bound))

    def allow(self, characters: int) -> None:
        """Extend the limit for one more rendering: the total allowance grows, and no single rendering may take much
        more than its share."""
        used = time.process_time() - self.start
        self.seconds += SECONDS_PER_JOB + SECONDS_PER_CHARACTER * characters
        single = used + SECONDS + SECONDS_PER_CHARACTER * characters
        self.set(self.start + min(self.seconds, single))


def _no_limit(seconds: float) -> None:
    del seconds


def _environment() -> Any:
    """Jinja2's sandbox, set up as in ``transformers`` for chat templates."""
    from jinja2 import nodes, utils
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks an assistant's text; here it only renders its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

        def _shown(self, caller: Any) -> str:
            return caller()

    class Namespace(utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                _refuse_private(name)
            utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    class Dictionary:
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def _refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no attribute that begins with an underscore: {name!r}")

    def raise_exception(message: Any) -> None:
        raise TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "dict": Dictionary(), "namespace": Namespace}
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main()
