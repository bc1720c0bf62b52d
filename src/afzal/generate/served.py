"""Answers that a server writes: each a request of its own, with its own seed, asked once and kept on disk.

A seed depends on the seed of the run, the prompt's number and the sample's number, and not on what else is asked, so a
stopped command asks only what has no reply yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afzal import config
from afzal.config.serving import POLICY, ServerConfig
from afzal.errors import AfzalError
from afzal.generate import Sampling, answer_limits
from afzal.generate.draw import row_keys
from afzal.records import Turns, media_of, turns_to_json
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.client import Server, key_from
from afzal.servers.requests import Request, answered, counter
from afzal.tokens import Speaker

_MOST_STOPS = 4  # texts that a server of OpenAI's kind takes as ``stop``
_STOPS = {"stop": "eos", "length": "length"}
# what a folder's generation_config.json would otherwise bend: transformers takes it where a request says nothing
_PLAIN: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "begin_suppress_tokens": [],
    "suppress_tokens": [],
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer number ``sample`` of prompt number ``prompt_index``.

    Attributes:
        text: without its end marker.
        tokens: with it, as the server counts; None where it does not say.
        stop: ``eos``, ``length``, or the server's own word where the answer ended in another way.
    """

    prompt_index: int
    sample: int
    text: str
    tokens: int | None
    stop: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a server is asked: the prompts, how answers are drawn, and the tokens as the model's own folder makes them.

    Attributes:
        ids: token ids of each prompt; None where no folder is known.
        speaker: of the folder; None where none is known.
    """

    prompts: Sequence[Turns]
    n: int
    sampling: Sampling
    seed: int
    speaker: Speaker | None = None
    ids: Sequence[Sequence[int]] | None = None


def read_server(path: str) -> ServerConfig:
    """The settings in a server's file.

    Raises:
        AfzalError: there is no such file, or it is not one of a server.
    """
    return config.build(ServerConfig, config.read_file(Path(path)))


def follower(path: str, several: str = "", *, why: str, instead: str) -> ServerConfig:
    """The settings of a server that answers for policies which the command itself names.

    Args:
        several: what it would write with the same weights, where it is to answer for several policies; else empty.
        why, instead: why that would be wrong, and what to do in place of naming the policy.

    Raises:
        AfzalError: it would answer with the same weights for all of them, or for another folder.
    """
    found = read_server(path)
    if found.folder is not None:
        what = "folder has no effect: the server answers for the policies that are named to it"
        raise AfzalError(what, where=path, remedy="leave it out")
    if several and not follows(found):
        raise AfzalError(
            f"the server would write {several} with the same weights",
            where=path,
            why=why,
            remedy=f"name {POLICY} in model, or in a reload command; or {instead}",
        )
    return found


def answers_from(settings: ServerConfig, asked: Asked, policy: str, cache: Path) -> list[Answer]:
    """``n`` answers to every prompt, ordered by prompt and then by number of the sample; progress goes to stderr.

    Args:
        policy: the folder whose weights answer, which ``{policy}`` stands for.
        cache: file of the replies.

    Raises:
        AfzalError: the server cannot be told what is asked, refuses, answers with another model, or reads prompts in
            other tokens than the folder; or it does not answer, and earlier replies are in the cache.
    """
    _refuse_unheard(settings, asked)
    server = Server(
        settings.url,
        settings.named(policy),
        key_from(settings.key_env),
        timeout=settings.timeout,
        attempts=settings.attempts,
        whose="generator",
        exact=settings.kind != "openai",
    )
    about = {"kind": settings.kind, "url": settings.url, "model": server.model, "answers": True}
    made = _requests(settings, asked, about)

    def ask(messages: Sequence[Mapping[str, str]], fields: Mapping[str, Any]) -> Reply:
        if messages:
            return server.ask(messages, fields)
        return server.complete(fields["prompt"], {key: value for key, value in fields.items() if key != "prompt"})

    with Cache(cache) as replies:
        heard = counter(len(made), lambda line: print(line, file=sys.stderr))
        known = answered(
            list(made.values()), ask, replies, name=server.model, concurrency=settings.concurrency, heard=heard
        )
    found = {place: known[request.key] for place, request in made.items()}
    _refuse_other_tokens(found, asked, settings)
    if _all_alike(found, asked):
        print(
            f"note: all {asked.n} answers to each prompt are the same at temperature {asked.sampling.temperature:g}: "
            "the server may not sample (transformers serve does so only for kind: transformers)",
            file=sys.stderr,
        )
    return [
        Answer(index, number, reply.text, reply.tokens_out or None, _STOPS.get(reply.finish, reply.finish))
        for (index, number), reply in found.items()
    ]


def reload(settings: ServerConfig, policy: str) -> None:
    """Have the server load the weights of ``policy``, where the settings name a program that does it.

    Raises:
        AfzalError: the program cannot be started, or fails.
    """
    if settings.reload is None:
        return
    words = [word.replace(POLICY, policy) for word in settings.reload]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise AfzalError(f"the program {words[0]} cannot be started", where="reload", why=str(error)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise AfzalError(
            f"the program {words[0]} ended with {done.returncode}, so that the server may hold other weights",
            where="reload",
            why=said[-1] if said else "",
            remedy="resume when it works",
        )


def follows(settings: ServerConfig) -> bool:
    """Whether the server can answer for more than one folder: it is named in each request, or loaded before."""
    return settings.reload is not None or POLICY in settings.model


def _refuse_unheard(settings: ServerConfig, asked: Asked) -> None:
    """What the server could not be told, or could not say."""
    if any(media_of(prompt) for prompt in asked.prompts):
        raise AfzalError("a server is given texts alone, and a prompt shows images or sounds", remedy="a model folder")
    unknown = {"top_k": asked.sampling.top_k, "min_new_tokens": asked.sampling.min_new_tokens}
    if settings.kind == "openai" and (given := [name for name, value in unknown.items() if value]):
        raise AfzalError(
            f"{', '.join(given)}: a server of kind openai has no such field",
            remedy="leave it out, or name the server's kind: vllm or transformers",
        )
    if settings.kind != "openai" and asked.speaker is None:
        raise AfzalError(
            f"a server of kind {settings.kind} must be told the ids that end an answer, and no folder says them",
            where="folder",
            remedy="name the model's folder, or kind: openai",
        )
    plain = any(isinstance(prompt, str) and prompt for prompt in asked.prompts)
    if settings.kind == "transformers" and plain and asked.speaker is not None and asked.speaker.drops_blank():
        raise AfzalError(
            "transformers serve would leave out the blank between a plain prompt and its answer",
            where=settings.url,
            why="it decodes an answer without its prompt, and this tokenizer then drops a blank at the beginning",
            remedy="serve the model with vLLM (kind: vllm), or name its folder in place of the server",
        )


def _requests(settings: ServerConfig, asked: Asked, about: Mapping[str, Any]) -> dict[tuple[int, int], Request]:
    """The request for each (prompt, sample)."""
    limits = [asked.sampling.max_new_tokens] * len(asked.prompts)
    if asked.speaker is not None and asked.ids is not None:
        limits = answer_limits([len(ids) for ids in asked.ids], asked.sampling.max_new_tokens, asked.speaker.context)
    made = {}
    for index, (prompt, limit) in enumerate(zip(asked.prompts, limits, strict=True)):
        numbers = np.arange(asked.n)
        keys = row_keys(asked.seed, np.full(asked.n, index), numbers) >> np.uint64(33)
        for number, seed in enumerate(keys.tolist()):
            messages, fields = _request(settings.kind, asked, index, prompt, limit)
            fields |= {"seed": seed} if asked.sampling.temperature > 0 else {}
            # two equal prompts are two questions
            key = key_of({**about, "messages": list(messages), "fields": fields, "place": [index, number]})
            made[index, number] = Request(messages, fields, key)
    return made


def _request(
    kind: str, asked: Asked, index: int, prompt: Turns, limit: int
) -> tuple[tuple[Mapping[str, str], ...], dict[str, Any]]:
    """Messages, or none and the prompt among the fields; and the fields, without a seed."""
    how, chat = asked.sampling, not isinstance(prompt, str)
    ends = asked.speaker.ends(chat=chat) if asked.speaker is not None else []
    fields: dict[str, Any] = {"max_tokens": limit, "temperature": how.temperature, "top_p": how.top_p}
    if kind == "vllm":
        assert asked.ids is not None
        fields |= {
            "prompt": [int(i) for i in asked.ids[index]],
            "top_k": how.top_k or -1,
            "min_tokens": how.min_new_tokens,
        }
        # a marker within an answer stands in its text, as in Afzal's own; that which ends it does not
        fields |= {"stop_token_ids": ends, "ignore_eos": True, "skip_special_tokens": False}
        # what a folder's own generation settings would otherwise bend
        return (), fields | {"repetition_penalty": 1.0, "min_p": 0.0}
    if kind == "transformers":
        settings: dict[str, Any] = {**_PLAIN, "max_new_tokens": limit, "do_sample": how.temperature > 0}
        settings |= {"eos_token_id": ends, "pad_token_id": ends[0]} if ends else {}
        if how.temperature > 0:
            settings |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        settings |= {"min_new_tokens": how.min_new_tokens}
        fields = {"generation_config": json.dumps(settings)}
    elif asked.speaker is not None:
        fields |= {"stop": asked.speaker.end_texts(chat=chat)[:_MOST_STOPS]}
    if isinstance(prompt, str):
        return (), {"prompt": prompt, **fields}
    written = turns_to_json(prompt)
    assert not isinstance(written, str)
    return tuple(written), fields


def _all_alike(found: Mapping[tuple[int, int], Reply], asked: Asked) -> bool:
    """Whether answers that were to be drawn are one and the same for every prompt: two prompts at least."""
    if asked.sampling.temperature == 0 or asked.n < 2 or len(asked.prompts) < 2:
        return False
    texts = [{found[index, number].text for number in range(asked.n)} for index in range(len(asked.prompts))]
    return all(len(of) == 1 for of in texts)


def _refuse_other_tokens(found: Mapping[tuple[int, int], Reply], asked: Asked, settings: ServerConfig) -> None:
    """The server's template and tokenizer must be those of the folder: then prompts have as many tokens there."""
    if asked.ids is None:
        return
    for (index, _), reply in found.items():
        if reply.tokens_in and reply.tokens_in != len(asked.ids[index]):
            raise AfzalError(
                f"the server reads prompt {index} as {reply.tokens_in} tokens, and the model's folder makes "
                f"{len(asked.ids[index])} of it",
                where=settings.url,
                why="another chat template, tokenizer or model is behind it",
                remedy="serve this very folder; a chat_template of the settings must stand in the folder too",
            )
