"""Render HTML pages that need no network, from Jinja2 templates with autoescape."""

from typing import Any

from serving.errors import UsageRefused


def render_page(package: str, template: str, **values: Any) -> str:
    """Render a template of a package, which may extend `report_page.html` of this one.

    Raises:
        UsageRefused: Jinja2 is missing.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as err:
        raise UsageRefused("a page needs jinja2: pip install 'vae-pipeline[files]'") from err
    folders = [PackageLoader(name, ".") for name in (package, "serving.io")]
    environment = Environment(
        loader=ChoiceLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(values)
