"""What every page shares: templates that escape all text, and nothing on it that cannot be shown or stored."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import view

_PICTURED = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
# Unpaired surrogates cannot be stored as UTF-8; direction overrides could make a text read as another one.
_UNSAFE = re.compile("[\x80-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def fill(template: str, **values: Any) -> str:
    """A template of this package with its values: escaped, control characters made visible, storable as UTF-8."""
    return _UNSAFE.sub("\ufffd", _environment().get_template(template).render(**values))


def visible(value: Any) -> str:
    """Text with its control characters replaced by their visible pictures; line breaks and tabs stay."""
    return str(value).replace("\r\n", "\n").translate(_PICTURED)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
    )
    environment.filters["number"] = view.number
    return environment
