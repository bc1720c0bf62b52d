"""Check that a folder fills the model it describes, and that a tokenizer fits a model; errors name what does not
fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.safetensors_header import TensorInfo

_MAX_NAMES = 3
_MEDIA_TOKENS = ("image_token", "audio_token", "video_token", "boi_token", "eoi_token", "boa_token", "eoa_token")
_UNQUANTISED_REMEDY = "take the unquantised model; quantize=4bit quantises it while it is loaded"


def refuse_misfit(
    folder: str,
    stored: Mapping[str, TensorInfo],
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]] = (),
) -> None:
    """Refuse weights that do not fill the model they are loaded into.

    Args:
        stored: the tensors of the folder's files.
        missing: names of the model's weights that no file contains.
        unexpected: names of tensors that the model has no place for.
        mismatched: name, shape in the file and shape in the model.

    Raises:
        AfzalError: any of these is not empty; names the first few.
    """
    remedy = "save or download it again completely, or correct its configuration"
    if mismatched:
        name, saved, expected = sorted(mismatched)[0]
        packed = any(t.packed for t in stored.values())
        dtype = stored[name].dtype if name in stored else ""
        raise AfzalError(
            f"{folder} does not fit its configuration: {name} is {_shape(saved)} in the file, {_shape(expected)} in "
            f"the model{_more_of_them(len(mismatched) - 1)}",
            why=f"the file holds packed or quantised weights ({dtype})" if packed else "",
            remedy=_UNQUANTISED_REMEDY if packed else remedy,
        )
    if missing:
        packed = any(t.packed for name, t in stored.items() if name in unexpected)
        raise AfzalError(
            f"{folder} lacks {_names(missing)}",
            why="the file holds packed or quantised weights in their place"
            if packed
            else "the model would start with random values there",
            remedy=_UNQUANTISED_REMEDY if packed else remedy,
        )
    if unexpected:
        raise AfzalError(
            f"{folder} holds {_names(unexpected)}, which its model has no place for",
            why="the configuration describes a different model from the one that was saved",
            remedy=remedy,
        )


def refuse_integer_weights(folder: str, weights: Mapping[str, TensorInfo]) -> None:
    """Refuse weights of an integer dtype, which a library would accept as weights.

    Raises:
        AfzalError: there is one; names the first.
    """
    for name, tensor in weights.items():
        if not tensor.dtype.startswith(("F", "BF")):
            raise AfzalError(
                f"{folder} holds {name} as integers ({tensor.dtype})",
                why="the file holds packed or quantised weights, or has been damaged",
                remedy=_UNQUANTISED_REMEDY,
            )


def refuse_ids_without_rows(tokenizer: Any, rows: int, folder: str) -> None:
    """Require an embedding row for every token that text can produce.

    Placeholders of images and sounds need none: no text produces them.

    Raises:
        AfzalError: a token has no row; names the first one and both numbers.
    """
    spare = {getattr(tokenizer, name, None) for name in _MEDIA_TOKENS}
    spare |= {v for k, v in _model_specific_tokens(tokenizer).items() if k in _MEDIA_TOKENS}
    missing = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and token not in spare)
    if missing:
        first, token = missing[0]
        raise AfzalError(
            f"the tokenizer of {folder} has {max(len(tokenizer), missing[-1][0] + 1)} tokens, and the model's "
            f"embedding {rows} rows",
            why=f"{token!r} (id {first}) has no row{_more_of_them(len(missing) - 1)}",
            remedy=f"resize the model and save it (model.resize_token_embeddings({missing[-1][0] + 1})), or use the "
            "model's original tokenizer",
        )


def refuse_other_tokens(tokenizer: Any, other: Any, subject: str) -> None:
    """Require that the ids of one tokenizer mean the same tokens in another.

    Args:
        subject: the name, in messages, of the model whose tokenizer is ``other``.

    Raises:
        AfzalError: a token has a different id in ``other``, or none.
    """
    other_ids = other.get_vocab()
    ids = tokenizer.get_vocab()
    differ = sorted((i, token) for token, i in ids.items() if other_ids.get(token) != i)
    if not differ:
        return
    i, token = differ[0]
    their_id = f"id {other_ids[token]}" if token in other_ids else "no token"
    raise AfzalError(
        f"{subject} has another tokenizer: {len(differ)} of {len(ids)} tokens differ",
        why=f"{token!r} is id {i} here and {their_id} there, so log-probs of the same ids are of different words",
        remedy="use a model with the same tokenizer",
    )


def refuse_other_size(rows: int, other_rows: int, subject: str) -> None:
    """Require vocabularies of the same size in two models that score the same ids.

    Raises:
        AfzalError: the sizes differ; ``subject`` names the second model.
    """
    if rows != other_rows:
        raise AfzalError(
            f"{subject} has a vocabulary of {other_rows}, the policy one of {rows}",
            why="log-probs of the same ids are of different words there",
            remedy="use a model with the same tokenizer and the same number of rows in its embedding",
        )


def _model_specific_tokens(tokenizer: Any) -> Mapping[str, Any]:
    """Model-specific special tokens, by name."""
    tokens = getattr(tokenizer, "init_kwargs", {}).get("model_specific_special_tokens")
    return {k: str(v) for k, v in tokens.items()} if isinstance(tokens, Mapping) else {}


def _more_of_them(n: int) -> str:
    return f", and {n} more like it" if n else ""


def _names(names: Collection[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - _MAX_NAMES} more tensors" if len(first) > _MAX_NAMES else ""
    return ", ".join(first[:_MAX_NAMES]) + more


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "a single number"
