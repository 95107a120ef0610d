"""The pages' templates: everything put into one is escaped, and a name it does not know is an error."""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A template of this package by its file name."""
    environment = Environment(
        loader=PackageLoader("distuda.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
