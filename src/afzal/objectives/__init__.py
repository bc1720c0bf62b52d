"""Objectives: pure functions of log-probs, registered by name. Imports only torch."""

# The order of these lines is the order of the list.
# isort: off
from . import sigmoid
from . import shapes
from . import targets
from . import unpaired
from . import reference_free
from . import ranking
from . import ties
from . import logits
from . import media
from . import coupled
from . import groups
from . import likelihood
from . import reward
from . import inverse
from . import policy_gradient

# isort: on
from .functions import load_function, names_function, source_file
from .inline_functions import spec_of
from .inputs import Pairs, Scored, join_pairs, join_scored, pairs
from .likelihood import sft
from .margins import log_ratios, soft_label
from .mixture import Term, bind
from .registry import ALIASES, REGISTRY, Objective, get, objective, unit_weights
from .sigmoid import dpo
from .sources import own_sources
from .targets import ipo
from .unpaired import kto

__all__ = [
    "ALIASES",
    "REGISTRY",
    "Objective",
    "Pairs",
    "Scored",
    "Term",
    "bind",
    "coupled",
    "dpo",
    "get",
    "groups",
    "inverse",
    "ipo",
    "join_pairs",
    "join_scored",
    "kto",
    "likelihood",
    "load_function",
    "log_ratios",
    "logits",
    "media",
    "names_function",
    "objective",
    "own_sources",
    "pairs",
    "policy_gradient",
    "ranking",
    "reference_free",
    "reward",
    "sft",
    "shapes",
    "sigmoid",
    "soft_label",
    "source_file",
    "spec_of",
    "targets",
    "ties",
    "unit_weights",
    "unpaired",
]
