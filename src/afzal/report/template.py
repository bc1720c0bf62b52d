"""Fill a page template: self-contained, with the style sheet inside and every value escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal._version import __version__
from afzal.report import svg
from afzal.report.phone_layout import is_wide_of_two
from afzal.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: Any) -> str:
    """A page. Every value is escaped and made :func:`visible`; only ``markupsafe.Markup`` passes unchanged.

    Args:
        template: the name of a file next to this one.
        values: the template's values. The style, its hash for the content policy and the version are added.
    """
    from markupsafe import Markup

    style = svg.style() + Path(__file__).with_name("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    context = {"style": Markup(style), "style_hash": Markup(digest), "version": __version__, **values}
    return _environment().get_template(template).render(context)


@cache  # a template is compiled once, however many pages a comparison or a sweep writes
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def make_visible(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("afzal.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=make_visible,
    )
    environment.globals["is_wide"] = is_wide_of_two
    return environment
