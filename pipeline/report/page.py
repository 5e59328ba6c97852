"""What every page shares: templates that escape all text, and nothing on it that cannot be shown or stored."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.release_config import Language
from pipeline.report import view
from pipeline.report.language import sense, translator

_PICTURED = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
# Unpaired surrogates cannot be stored as UTF-8; direction overrides could make a text read as another one.
_UNSAFE = re.compile("[\x80-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def fill(template: str, language: Language = "en", **values: Any) -> str:
    """A template of this package with its values: escaped, control characters made visible, storable as UTF-8.

    Its own sentences are messages: ``tr("... {name} ...", name=value)`` gives one in ``language``, its values treated
    like all others. The message itself may hold markup and is therefore always a literal of the template.
    """
    return storable(_environment(language).get_template(template).render(**values))


def storable(text: str) -> str:
    """Text without what cannot be stored as UTF-8, or would make it read as another one."""
    return _UNSAFE.sub("\ufffd", text)


def visible(value: Any) -> str:
    """Text with its control characters replaced by their visible pictures; line breaks and tabs stay."""
    return str(value).replace("\r\n", "\n").translate(_PICTURED)


def _environment(language: Language) -> Environment:
    translate = translator(language)

    def tr(message: str, **values: Any) -> Markup:
        shown = {name: one if hasattr(one, "__html__") else visible(one) for name, one in values.items()}
        return Markup(translate(message)).format(**shown)

    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
    )
    environment.filters["number"] = view.number
    environment.globals |= {"tr": tr, "sense": sense, "language": language}
    return environment
