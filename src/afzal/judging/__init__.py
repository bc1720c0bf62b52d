"""Opening judges by name or file, and asking them about pairs of answers."""

from .judges import named
from .rewards import reward_or_judge, scoring_judge
from .run import judge_items, judged, read_items

__all__ = ["judge_items", "judged", "named", "read_items", "reward_or_judge", "scoring_judge"]
