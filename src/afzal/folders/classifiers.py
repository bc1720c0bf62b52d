"""Sequence classifiers for families without one in `transformers`: models with towers, Granite, Cohere.

The class is the generic one of `transformers`: the trunk in ``model``, a linear head without bias in ``score``. Saved
folders name it after the family (``LlavaForSequenceClassification``), a name that `transformers` does not know.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from afzal.errors import AfzalError


def has_classifier(model_type: str) -> bool:
    """Whether `transformers` has a sequence classifier for a model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


@cache
def classifier_of(config_class: Any) -> Any:
    """The sequence classifier class for a configuration class, in the form that `transformers` uses.

    Raises:
        AfzalError: the family has no trunk for a head.
    """
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    trunk: Any = MODEL_MAPPING.get(config_class, None)
    parents = [] if trunk is None else [k for k in trunk.__mro__[1:] if issubclass(k, PreTrainedModel)]
    if trunk is None or not parents or parents[0] is PreTrainedModel:
        raise _no_trunk(config_class)
    name = trunk.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, parents[0]), {"__module__": __name__})


def _no_trunk(config_class: Any) -> AfzalError:
    return AfzalError(
        f"{config_class.__name__} has no trunk for a reward head",
        remedy="a model of another family, or a judge",
    )


def with_head(model: Any, num_labels: int) -> Any:
    """A classifier with a language model's trunk, which is shared, not copied, and a head with random weights.

    Raises:
        AfzalError: as for :func:`classifier_of`.
    """
    import torch

    kind = classifier_of(type(model.config))
    if not hasattr(model, "model"):
        raise _no_trunk(type(model.config))
    model.config.num_labels = num_labels
    with torch.device("meta"):  # the trunk's weights already exist
        classifier = kind(model.config)
    classifier.model = model.model
    head = torch.nn.Linear(classifier.score.in_features, num_labels, bias=False, dtype=model.dtype)
    classifier.score = head
    return classifier
