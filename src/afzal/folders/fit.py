"""Does a folder fill the model that it describes, and does a tokenizer fit a model? Whatever does not is named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.headers import Stored

_NAMED = 3
_OF_OTHER_INPUTS = ("image_token", "audio_token", "video_token", "boi_token", "eoi_token", "boa_token", "eoa_token")
_UNQUANTISED = "take the unquantised model; quantize=4bit quantises it while it is loaded"


def refuse_misfit(
    folder: str,
    stored: Mapping[str, Stored],
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]] = (),
) -> None:
    """Refuse weights that do not fill the model that they are loaded into.

    Args:
        stored: the tensors of the folder's files.
        missing: names of weights of the model that no file has.
        unexpected: names of tensors that the model has no place for.
        mismatched: name, shape in the file and shape in the model.

    Raises:
        AfzalError: there is any of them; names the first few.
    """
    again = "save or download it again, whole; or correct its configuration"
    if mismatched:
        name, held, wanted = sorted(mismatched)[0]
        packed = any(t.packed for t in stored.values())
        dtype = stored[name].dtype if name in stored else ""
        raise AfzalError(
            f"{folder} does not fit its configuration: {name} is {_shape(held)} in the file, {_shape(wanted)} in the "
            f"model{_more(len(mismatched) - 1)}",
            why=f"the file holds packed or quantised weights ({dtype})" if packed else "",
            remedy=_UNQUANTISED if packed else again,
        )
    if missing:
        packed = any(t.packed for name, t in stored.items() if name in unexpected)
        raise AfzalError(
            f"{folder} lacks {_names(missing)}",
            why="the file holds packed or quantised weights in their place"
            if packed
            else "the model would start there from random numbers",
            remedy=_UNQUANTISED if packed else again,
        )
    if unexpected:
        raise AfzalError(
            f"{folder} holds {_names(unexpected)}, which its model has no place for",
            why="the configuration describes another model than the one that was saved",
            remedy=again,
        )


def refuse_counts(folder: str, weights: Mapping[str, Stored]) -> None:
    """Refuse weights in a number format of whole numbers, which a library takes for weights all the same.

    Raises:
        AfzalError: there is one; names the first.
    """
    for name, tensor in weights.items():
        if not tensor.dtype.startswith(("F", "BF")):
            raise AfzalError(
                f"{folder} holds {name} as {tensor.dtype}, whole numbers",
                why="the file holds packed or quantised weights, or has been damaged",
                remedy=_UNQUANTISED,
            )


def refuse_ids_without_rows(tokenizer: Any, rows: int, folder: str) -> None:
    """Make sure that every token that texts can become has a row of the embedding.

    Placeholders of images and sounds need none: no text becomes them.

    Raises:
        AfzalError: there is one without; names the first, and both numbers.
    """
    spare = {getattr(tokenizer, name, None) for name in _OF_OTHER_INPUTS}
    spare |= {v for k, v in _specific(tokenizer).items() if k in _OF_OTHER_INPUTS}
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and token not in spare)
    if beyond:
        first, token = beyond[0]
        raise AfzalError(
            f"the tokenizer of {folder} has {max(len(tokenizer), beyond[-1][0] + 1)} tokens, and the model {rows} rows "
            "in its embedding",
            why=f"{token!r} (id {first}) has no row{_more(len(beyond) - 1)}",
            remedy=f"resize the model and save it (model.resize_token_embeddings({beyond[-1][0] + 1})), or take the "
            "tokenizer that the model came with",
        )


def refuse_other_tokens(tokenizer: Any, other: Any, what: str) -> None:
    """Make sure that ids of one tokenizer mean the same tokens in another.

    Args:
        what: the model whose tokenizer is ``other``, as messages name it.

    Raises:
        AfzalError: a token has another id there, or none.
    """
    theirs = other.get_vocab()
    ours = tokenizer.get_vocab()
    differ = sorted((i, token) for token, i in ours.items() if theirs.get(token) != i)
    if not differ:
        return
    i, token = differ[0]
    there = f"id {theirs[token]}" if token in theirs else "no token"
    raise AfzalError(
        f"{what} has another tokenizer: {len(differ)} of {len(ours)} tokens are not the same there",
        why=f"{token!r} is id {i} here and {there} there, so that log-probs of the same ids mean other words",
        remedy="take a model with the same tokenizer",
    )


def refuse_other_size(rows: int, other: int, what: str) -> None:
    """Make sure that two models that score the same ids have the same vocabulary.

    Raises:
        AfzalError: they have not; ``what`` is the second model.
    """
    if rows != other:
        raise AfzalError(
            f"{what} has a vocabulary of {other}, the policy one of {rows}",
            why="log-probs of the same ids mean other words there",
            remedy="take a model with the same tokenizer and as many rows in its embedding",
        )


def _specific(tokenizer: Any) -> Mapping[str, Any]:
    """Special tokens of this model alone, by name."""
    given = getattr(tokenizer, "init_kwargs", {}).get("model_specific_special_tokens")
    return {k: str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}


def _more(n: int) -> str:
    return f", and {n} more like it" if n else ""


def _names(names: Collection[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - _NAMED} more tensors" if len(first) > _NAMED else ""
    return ", ".join(first[:_NAMED]) + more


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "a single number"
