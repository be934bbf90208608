"""The environment of the Jinja templates that reports are made of."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def template_environment(package: str, **options: Any) -> "jinja2.Environment":
    """An environment in which a name that is not there is an error, with filters for numbers and sizes.

    Args:
        package: Whose folder `templates` has them.
        options: Further ones of `jinja2.Environment`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "megabytes": lambda value: f"{value / 1e6:,.1f} MB" if value >= 50_000 else f"{value / 1e3:,.1f} kB",
    }
    return environment
