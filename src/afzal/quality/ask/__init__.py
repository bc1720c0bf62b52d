"""Choose which pairs to ask people about next, and tell whether the rule is worth it and when to stop.

Pure functions of rows, votes and numbers. Callers compute the scores of reward models and policies and pass them in.
"""

from .asking import AskOptions, AskReport, ScoredItems, ask, with_row_features
from .choose import HARMFUL, RULES, By, Question, RuleInputs, choose, next_questions, question_rows, words_of
from .curve import BestModel, Curve, LabelledPairs, best_model, learning_curve, model_curve
from .matches import matches_of
from .pool import Pool, Votes, join_answers, places_in, pool_of, refuse_nothing_to_ask, votes_of

__all__ = [
    "HARMFUL",
    "RULES",
    "AskOptions",
    "AskReport",
    "BestModel",
    "By",
    "Curve",
    "LabelledPairs",
    "Pool",
    "Question",
    "RuleInputs",
    "ScoredItems",
    "Votes",
    "ask",
    "best_model",
    "choose",
    "join_answers",
    "learning_curve",
    "matches_of",
    "model_curve",
    "next_questions",
    "places_in",
    "pool_of",
    "question_rows",
    "refuse_nothing_to_ask",
    "votes_of",
    "with_row_features",
    "words_of",
]
