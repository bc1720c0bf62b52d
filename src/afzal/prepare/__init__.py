"""Turn a data source into the training trees of a method."""

from .recipe import Recipe, recipe_of
from .run import Prepared, prepare

__all__ = ["Prepared", "Recipe", "prepare", "recipe_of"]
