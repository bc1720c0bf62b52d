"""Opening judges by name or file, and asking them about pairs of answers."""

from .judges import resolve_judge
from .rewards import reward_or_judge, scoring_judge
from .run import judge_items, read_items, run_judges

__all__ = ["judge_items", "read_items", "resolve_judge", "reward_or_judge", "run_judges", "scoring_judge"]
