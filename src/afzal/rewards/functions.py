"""A person's own Python functions, named by a setting as ``module:function`` or ``file.py:function``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from afzal.errors import AfzalError
from afzal.objectives import load_function


def own_function(spec: str, key: str, contract: str) -> Callable[..., Any]:
    """The function of ``module:function`` or ``file.py:function``.

    Args:
        key: the setting that names it.
        contract: what the function must be, for the error message.

    Raises:
        AfzalError: there is no such module, file or function, or its code fails while it is read.
    """
    try:
        return load_function(spec)
    except ValueError as error:
        remedy = f"write module:function or file.py:function, where {contract}"
        raise AfzalError(str(error), where=key, remedy=remedy) from error
