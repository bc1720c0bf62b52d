"""Translate configurations of TRL, axolotl and LLaMA-Factory into Afzal's settings.

Every key of a file is carried over, changed in meaning, without a counterpart, or unknown, and is listed with the
reason. The other trainer's defaults are written out if Afzal's differ.
"""

from .reading import PEERS, Imported, import_config
from .translation import FATES, Fate, Remark
from .writing import as_yaml, mixture_yaml, summary

__all__ = ["FATES", "PEERS", "Fate", "Imported", "Remark", "as_yaml", "import_config", "mixture_yaml", "summary"]
