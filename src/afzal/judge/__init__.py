"""Judges, people included: their verdicts, read from files or made, and how good they are.

A verdict is a vote. Verdicts on models, from other tools' files (:mod:`.formats`) and from Afzal's rows, become
leaderboards in :mod:`.model_board`.
"""

from afzal.judge.formats import FORMATS, has_known_format, read
from afzal.judge.judge_board import JudgeBoard, JudgeLine, judges_as_plain, rank_judges
from afzal.judge.labelled import read_labelled
from afzal.judge.model_board import (
    ModelBoard,
    length_controlled_as_plain,
    length_controlled_rates,
    models_as_plain,
    rank_correlation,
    rank_models,
)
from afzal.judge.reliability import weighed_as_plain
from afzal.judge.verdict_files import is_afzal_file, read_afzal_file, read_gold_verdicts, read_model_verdicts
from afzal.judge.verdicts import Verdict, Verdicts

__all__ = [
    "FORMATS",
    "JudgeBoard",
    "JudgeLine",
    "ModelBoard",
    "Verdict",
    "Verdicts",
    "has_known_format",
    "is_afzal_file",
    "judges_as_plain",
    "length_controlled_as_plain",
    "length_controlled_rates",
    "models_as_plain",
    "rank_correlation",
    "rank_judges",
    "rank_models",
    "read",
    "read_afzal_file",
    "read_gold_verdicts",
    "read_labelled",
    "read_model_verdicts",
    "weighed_as_plain",
]
