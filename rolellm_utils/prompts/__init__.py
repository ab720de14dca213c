"""Prompt templates as versioned data, one YAML file a language."""

from functools import cache
from pathlib import Path
from string import Template

import yaml


@cache
def templates(language):
    """All prompt templates of a language (`en`, `zh`) by name; `version` says which edition they are."""
    return yaml.safe_load(Path(__file__).with_name(f"{language}.yaml").read_text(encoding="utf-8"))


def render(language, name, **values):
    """The named template with its `$placeholders` filled; KeyError names one that is missing."""
    return Template(templates(language)[name]).substitute(values).strip()


def with_example(language, name, **values):
    """Chat messages: the worked example of a template (`<name>_example`) as one exchange, then the real question."""
    example = dict(templates(language)[f"{name}_example"])
    reply = example.pop("reply")
    return [
        {"role": "user", "content": render(language, name, **(values | example))},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": render(language, name, **values)},
    ]
