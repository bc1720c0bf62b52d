"""Open models, adapters, configurations and tokenizers with libraries; no other module does.

Every ``from_pretrained`` call of Afzal is here, after an inspection of the folder, without code from the folder,
without pickles and without network access: hub models are downloaded first. A test of the source enforces this.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError, did_you_mean
from afzal.folders import voxtral
from afzal.folders.adapter_checks import enlarge_embedding, hold_saved_weights, refuse_adapter_misfit
from afzal.folders.classifiers import classifier_of, has_classifier, with_head
from afzal.folders.compatibility import (
    refuse_ids_without_rows,
    refuse_integer_weights,
    refuse_misfit,
    refuse_other_tokens,
)
from afzal.folders.config_checks import vocabulary_size
from afzal.folders.guard import guarded, no_bars, quiet_peft
from afzal.folders.inspection import (
    MODEL_FILES,
    TEXTS,
    holds_model,
    holds_tokenizer,
    inspect_model_folder,
    inspect_tokenizer_folder,
    local_folder,
    read_config,
)
from afzal.folders.kinds import (
    ADAPTER_CONFIG,
    adapter_config,
    base_of,
    is_adapter,
    is_reward_model,
    refuse_other_task,
    saved_rows,
    tensors_of,
)
from afzal.folders.lazy_weights import LazyWeights
from afzal.folders.limits import bounded_by
from afzal.folders.safetensors_header import TensorInfo

_TOWERS = ("vision_config", "audio_config")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")

_HEADS = frozenset({"score.weight", "lm_head.weight", "lm_head.bias", "embed_out.weight"})
_OTHER_INPUTS = re.compile(r"vision|visual|image|audio|speech|multi_modal")  # a model's inputs other than text


def model_folder(path: str) -> str:
    """The inspected local folder of a model or adapter; a hub id is downloaded first.

    Raises:
        AfzalError: it does not exist, or is hostile or broken (:func:`.inspection.inspect_model_folder`).
    """
    folder = _local(path)
    inspect_model_folder(folder)
    return str(folder)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id. If the folder also holds a model or adapter, that has a row for each token.

    Raises:
        AfzalError: there is none, the folder is hostile or broken, or the model there has too few rows.
    """
    from transformers import AutoTokenizer

    folder = _tokenizer_folder(path)
    with guarded(path):
        # mistral-common's tokenizer, used if it is installed, exposes neither its tokens nor their texts
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            mistral_format=False,
            **voxtral.names_of_tokens(folder),
        )
        tokenizer("a", add_special_tokens=True)
    rows = rows_of(folder)
    if rows is not None:
        refuse_ids_without_rows(tokenizer, rows, path)
    return tokenizer


def load_processor(path: str) -> Any:
    """The processor of a folder or hub id, with its tokenizer in ``tokenizer``; None for a text-only model.

    An adapter's folder without a processor uses its base model's. Without torchvision, processors of images and videos
    are opened without their video part.

    Raises:
        AfzalError: the folder is hostile or broken, or a library that the processor needs is missing.
    """
    from transformers import AutoFeatureExtractor, AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    folder = _tokenizer_folder(path)
    if not any((Path(folder) / name).exists() for name in _PROCESSORS):
        base = base_of(folder) if is_adapter(folder) else None
        return load_processor(base) if base is not None else None
    stated = _stated_processor(folder)
    with guarded(path), no_bars():
        if stated is not None and stated.__name__ == voxtral.PROCESSOR:
            tokenizer = load_tokenizer(path)
            sounds = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            processor = voxtral.with_sounds_in_text(stated)(sounds, tokenizer)
            processor.chat_template = tokenizer.chat_template or voxtral.TEMPLATE
        elif stated is None or is_torchvision_available():
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        else:
            images_alone = without_videos(stated)
            processor = images_alone.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if getattr(processor, "tokenizer", None) is None:
        return None
    tokenizer = processor.tokenizer
    if not tokenizer.chat_template:
        tokenizer.chat_template = processor.chat_template
    rows = rows_of(folder)
    if rows is not None:
        refuse_ids_without_rows(tokenizer, rows, path)
    return processor


def _stated_processor(folder: str) -> Any:
    """The `transformers` processor class that a folder names, or that belongs to its model type; None if there is no
    such class."""
    import transformers
    from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES

    configs = [read_config(f) for n in (*_PROCESSORS, "config.json") if (f := Path(folder) / n).exists()]
    stated = [c.get("processor_class") for c in configs]
    for name in [*stated, *(PROCESSOR_MAPPING_NAMES.get(str(c.get("model_type"))) for c in configs)]:
        kind = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, transformers.ProcessorMixin):
            return kind
    return None


def without_videos(kind: Any) -> Any:
    """The processor class without its video part, which needs torchvision."""
    parts = [name for name in kind.get_attributes() if "video" not in name]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: parts)})


def refuse_another_tokenizer(tokenizer: Any, path: str, subject: str) -> None:
    """Require that the ids of a tokenizer mean the same tokens to the model at ``path``.

    A folder without a tokenizer is not checked.

    Args:
        subject: the name, in messages, of the model at ``path``.

    Raises:
        AfzalError: the model has another tokenizer.
    """
    if holds_tokenizer(Path(model_folder(path))):
        refuse_other_tokens(tokenizer, load_tokenizer(path), subject)


def rows_of(folder: str) -> int | None:
    """Number of embedding rows of the model in an inspected folder; None if unknown.

    For an adapter: the larger of its own saved embedding and its base's, if that is a local folder.
    """
    if is_adapter(folder):
        base = base_of(folder)
        counts = [saved_rows(folder), rows_of(base) if Path(base).is_dir() else None]
        return max((rows for rows in counts if rows is not None), default=None)
    config = Path(folder) / "config.json"
    return vocabulary_size(read_config(config)) if config.exists() else None


def load_config(folder: str) -> Any:
    """The configuration of an inspected model folder.

    Raises:
        AfzalError: transformers does not know the model type, or refuses the values.
    """
    from transformers import AutoConfig

    with guarded(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def hub_config(model: str) -> dict[str, Any]:
    """The configuration of a hub model as a mapping; only this file is downloaded.

    Raises:
        AfzalError: it cannot be reached, or is not a configuration.
    """
    return read_config(_local(model, ("config.json",)) / "config.json")


def load_generation_config(folder: str) -> Any:
    """The generation settings of an inspected folder.

    Raises:
        AfzalError: they cannot be read.
    """
    from transformers import GenerationConfig

    with guarded(folder):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def load_causal_model(folder: str, **settings: Any) -> Any:
    """The language model of an inspected folder, which must fill every weight.

    Args:
        settings: further keyword arguments of ``from_pretrained``: dtype, devices, quantisation.

    Raises:
        AfzalError: it is not a causal language model, cannot be read, lacks a tensor, or has an extra one or one of a
            different shape.
    """
    refuse_other_task(folder)
    return _read(_causal_class(folder), folder, tensors_of(folder), **settings)


def blank_causal_model(folder: str) -> tuple[Any, LazyWeights]:
    """The language model of an inspected folder without reading its weights, and their places in the files.

    Otherwise it equals the result of :func:`load_causal_model` in float32.

    Raises:
        AfzalError: as there; or the model is not made of the files' tensors as they are.
    """
    refuse_other_task(folder)
    return _blank(folder, _causal_class(folder), load_config(folder))


def _blank(folder: str, kind: Any, config: Any, fresh: frozenset[str] = frozenset()) -> tuple[Any, LazyWeights]:
    import torch
    from transformers import PreTrainedModel

    unread = LazyWeights(folder)
    if not issubclass(kind, PreTrainedModel):
        with guarded(folder), bounded_by(folder, unread.stored), torch.device("meta"):
            kind = type(kind.from_config(config))
    arguments = {"weights": unread.tensors, "config": config, "dtype": torch.float32}
    with unread.joining():
        model = _read(kind, folder, unread.stored, fresh=fresh, **arguments)
    unread.refuse_changed(model, fresh)
    model.config.name_or_path = model.name_or_path = folder  # as in a model that was loaded from there
    if (Path(folder) / "generation_config.json").exists():
        model.generation_config = load_generation_config(folder)
    return model, unread


def _causal_class(folder: str) -> Any:
    """The `transformers` class that opens the folder as a language model."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    return AutoModelForMultimodalLM if _has_towers(folder) else AutoModelForCausalLM


def _has_towers(folder: str) -> bool:
    """Whether `transformers` opens the folder as a language model with towers for images or sounds."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    config = read_config(Path(folder) / "config.json")
    reads_media = any(isinstance(config.get(name), dict) for name in _TOWERS)
    return reads_media and config.get("model_type") in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def _has_classifier(folder: str) -> bool:
    """Whether `transformers` has a sequence classifier for the folder's architecture."""
    return has_classifier(str(read_config(Path(folder) / "config.json").get("model_type")))


def load_classifier(folder: str, **settings: Any) -> Any:
    """The sequence classifier of an inspected folder; for a language model, its trunk with a head of random weights.

    Raises:
        AfzalError: there is no classifier for this architecture, it cannot be read, or it lacks a tensor other than the
            new head.
    """
    kind = _classifier_class(folder)
    if kind is None:
        return with_head(load_causal_model(folder, dtype=settings.get("dtype")), settings["num_labels"])
    return _read(kind, folder, tensors_of(folder), fresh=_fresh_heads(folder), **settings)


def blank_classifier(folder: str, num_labels: int) -> tuple[Any, LazyWeights]:
    """Like :func:`load_classifier` in float32, without reading the weights; also gives their places in the files.

    Raises:
        AfzalError: as there; or the model is not made of the files' tensors as they are.
    """
    kind = _classifier_class(folder)
    if kind is None:
        model, unread = blank_causal_model(folder)
        return with_head(model, num_labels), unread
    config = load_config(folder)
    config.num_labels = num_labels
    return _blank(folder, kind, config, _fresh_heads(folder))


def _fresh_heads(folder: str) -> frozenset[str]:
    """Names of heads that need not be read from the folder: for a language model, the new head and its own."""
    return frozenset() if is_reward_model(folder) else _HEADS


def _classifier_class(folder: str) -> Any:
    """The `transformers` class that opens the folder as a classifier; None if one must be made from a language
    model."""
    from transformers import AutoModelForSequenceClassification

    if _has_classifier(folder):
        return AutoModelForSequenceClassification
    return classifier_of(type(load_config(folder))) if is_reward_model(folder) else None


def _read(
    kind: Any,
    folder: str,
    stored: Mapping[str, TensorInfo],
    *,
    weights: Mapping[str, Any] | None = None,
    fresh: frozenset[str] = frozenset(),
    **settings: Any,
) -> Any:
    """Read the model of an inspected folder with a `transformers` class; the folder must fill every weight.

    Args:
        weights: tensors to use instead of the folder's files.
        fresh: as for :func:`_filled`.
        settings: further keyword arguments of ``from_pretrained``.
    """
    with guarded(folder), no_bars(), bounded_by(folder, stored):
        loaded = kind.from_pretrained(
            folder if weights is None else None,
            state_dict=weights,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they can be named
            **settings,
        )
    return _filled(folder, stored, loaded, fresh)


def _filled(
    folder: str, stored: Mapping[str, TensorInfo], loaded: tuple[Any, Mapping[str, Any]], fresh: frozenset[str]
) -> Any:
    """The model that `transformers` loaded with ``output_loading_info``, after a check that the folder fills it.

    Args:
        fresh: names of heads: the new one and the one that it replaces.
    """
    model, info = loaded
    unexpected = {name for name in info["unexpected_keys"] if not _OTHER_INPUTS.search(name)}
    refuse_misfit(
        folder,
        stored,
        missing=set(info["missing_keys"]) - fresh,
        unexpected=unexpected - fresh,
        mismatched=info["mismatched_keys"],
    )
    refuse_integer_weights(folder, {name: stored[name] for name, _ in model.named_parameters() if name in stored})
    return model


def load_peft(base: Any, folder: str, **settings: Any) -> Any:
    """The model with the adapter of an inspected folder, which must fill every adapter weight.

    A base with fewer embedding rows than the adapter's saved embedding is enlarged.

    Raises:
        AfzalError: the adapter does not fit the model, lacks a tensor, has an extra one, or cannot be read.
    """
    from peft import PeftModel, get_peft_model_state_dict

    if adapter_config(folder).get("task_type") == "SEQ_CLS":
        raise AfzalError(
            f"{folder} is the adapter of a reward model, not of a language model",
            where=ADAPTER_CONFIG,
            remedy="name the adapter of a language model",
        )
    stored = tensors_of(folder)
    enlarged = enlarge_embedding(base, folder)
    hold_saved_weights(base, stored)
    with guarded(folder), quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about misfits, which are refused by name below
        model = PeftModel.from_pretrained(base, folder, local_files_only=True, ignore_mismatched_sizes=True, **settings)
        adapter_state = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = {name: tuple(value.shape) for name, value in adapter_state.items()}
    refuse_adapter_misfit(folder, base, stored, shapes, enlarged=enlarged)
    return model


def _local(path: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    if Path(path).exists():
        return Path(path)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        remedy = did_you_mean(path) or "check the path; a hub id looks like org/name"
        raise AfzalError(f"model folder {path!r} does not exist", remedy=remedy)
    with guarded(
        path, f"there is no folder {path!r}, and no model of that name could be read from the hub", did_you_mean(path)
    ):
        return local_folder(path, patterns=patterns)


def find_folder(path: str) -> None:
    """Require that a folder or hub id exists; the text files of a hub model that is not cached are downloaded.

    Raises:
        AfzalError: there is none.
    """
    _local(path, TEXTS)


def _tokenizer_folder(path: str) -> str:
    """The inspected folder of a tokenizer. If it also holds a model, that must be sound, since it is likely to be
    loaded next."""
    folder = _local(path, TEXTS)
    if Path(path).is_dir() and holds_model(folder):
        inspect_model_folder(folder)
    try:
        inspect_tokenizer_folder(folder)
    except AfzalError:
        inspect_model_folder(folder)  # if more than the tokenizer is missing, report that instead
        raise
    return str(folder)
