"""Configurations of other trainers as Afzal's settings: TRL, axolotl and LLaMA-Factory.

Every key of a file is either carried over, changed in meaning, without a counterpart, or unknown, and each is named
with its reason. What the file leaves to the other trainer's defaults is written out where Afzal's differ.
"""

from .reading import PEERS, Imported, import_config
from .translation import FATES, Fate, Remark
from .writing import as_yaml, mixture_yaml, summary

__all__ = ["FATES", "PEERS", "Fate", "Imported", "Remark", "as_yaml", "import_config", "mixture_yaml", "summary"]
