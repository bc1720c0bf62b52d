"""Policies that train under a constraint, beside whatever their objective is."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from .sections import ConstraintSettings
from .training import ReferenceConfig

# What each ready constraint must be given, and only it.
CONSTRAINT_NEEDS = {
    "unsafe_mass": "constraint_tokens",
    "unsafe_likelihood": "constraint_data",
    "black_box": "constraint_score",
}


class ConstrainedConfig(ConstraintSettings, ReferenceConfig, frozen=True):
    """Methods on data that is known beforehand, whose policy may be held to a constraint."""

    @property
    def constrained(self) -> ConstrainedConfig | None:
        return self if self.constraint is not None else None

    @model_validator(mode="after")
    def _constraint_parts(self) -> Self:
        own = CONSTRAINT_NEEDS.get(self.constraint or "")
        others = [key for key in CONSTRAINT_NEEDS.values() if key != own]
        if self.constraint is None:
            self._refuse(
                ("constraint_bound", "constraint_weight", "constraint_dual_lr", *others), "there is no constraint"
            )
            return self
        self._refuse(others, f"the constraint is {self.constraint}")
        if (self.constraint_weight is None) == (self.constraint_dual_lr is None):
            raise ValueError(
                "constraint needs constraint_weight (a penalty) or constraint_dual_lr (a multiplier), one of them"
            )
        if own and getattr(self, own) is None:
            raise ValueError(f"constraint {self.constraint} needs {own}")
        if not own and ":" not in self.constraint:
            known = ", ".join(CONSTRAINT_NEEDS)
            raise ValueError(
                f"constraint cannot be {self.constraint!r}; choose one of {known}, module:function or file.py:function"
            )
        return self
