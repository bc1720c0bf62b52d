"""From a data source to what a method trains on."""

from .recipe import Recipe, recipe_of
from .run import Prepared, prepare

__all__ = ["Prepared", "Recipe", "prepare", "recipe_of"]
