"""Jinja templates of the pages, in one environment that escapes whatever is put into them."""

from pathlib import Path
from typing import Any

from medmo_core.notice import RESEARCH_ONLY
from medmo_core.optional import import_optional

TEMPLATES = Path(__file__).with_name("templates")


def page_template(name: str, page: str) -> Any:
    """Return a template, which escapes what it is given and refuses names that it is not given.

    Args:
        name: file name in `TEMPLATES`.
        page: name of the page for the message, such as "the report".

    Raises:
        ImportError: jinja2 is missing; names the extra.
    """
    jinja2 = import_optional("jinja2", "demo", page)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals["notice"] = RESEARCH_ONLY
    return environment.get_template(name)
