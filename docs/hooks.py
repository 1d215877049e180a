"""Pages that MkDocs makes when it builds the site, so that no text or default stands twice.

The front page is README.md, and the pages on contributing and on changes are the files in the root of the project. The
settings come from the dataclasses that check them and the files in `conf`, the experiments from the comments of theirs.
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from omegaconf import OmegaConf

from tdrs import schema
from tdrs.backbones.backbone_settings import BackboneSettings
from tdrs.benchmarks import DATASETS
from tdrs.configuration import choices, folder
from tdrs.interventions import METHODS
from tdrs.sweeps.protocol import PROTOCOLS

ROOT_FILES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
HEAD = ("| setting | type | default | meaning |", "|---|---|---|---|")
WORDS: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null",
    list: "list", tuple: "list", Sequence: "list",
}  # fmt: skip
KINDS: dict[str, Mapping[str, type]] = {
    "dataset": DATASETS,
    "intervention": METHODS,
    "search": {name: getattr(import_module(f"tdrs.sweeps.{name}"), kind) for name, kind in PROTOCOLS.items()},
    "workers": schema.WORKERS,
    "tracking": schema.TRACKING,
}
SECTIONS = ("study", "attention", "preset", "backbone", "dataset", "intervention", "search", "workers", "tracking")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files in the root of the project to those of the documentation."""
    for page, name in ROOT_FILES.items():
        files.append(File.generated(config, page, content=from_root(name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made of the code behind the text of two pages."""
    made = {"reference/settings.md": settings, "reference/experiments.md": experiments}
    name = page.file.src_uri
    return f"{markdown}\n\n{made[name]()}" if name in made else markdown


def from_root(name: str) -> str:
    """A Markdown file in the root of the project, with its links as they are from the folder of the documentation."""
    text = (Path(__file__).parents[1] / name).read_text().replace("](docs/", "](")
    for page, other in ROOT_FILES.items():
        text = text.replace(f"]({other})", f"]({page})")
    return re.sub(r"\[([^]]+)\]\((examples/[^)]+)\)", r"\1 (`\2`)", text)  # notebooks are no pages of the site


def described(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each setting, by its name."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for section in Docstring(vars(one).get("__doc__") or "").parse("google", warnings=False):
            if section.kind is DocstringSectionKind.parameters:
                for parameter in section.value:
                    for name in parameter.name.split(","):
                        found[name.strip()] = " ".join(parameter.description.split())
    return found


def commented(path: str) -> dict[str, str]:
    """The comment behind each key of a configuration file."""
    lines = (folder() / path).read_text().splitlines()
    matches = (re.match(r"( *)(\w+):.* # (.*)", line) for line in lines)
    return {match[2]: match[3] for match in matches if match}


def type_name(hint: Any) -> str:
    """A type in words."""
    origin = typing.get_origin(hint) or hint
    if is_dataclass(origin) or origin is dict:
        return "group"
    if origin in WORDS:
        return WORDS[origin]
    return " or ".join(dict.fromkeys(type_name(one) for one in typing.get_args(hint)))


def shown(value: Any) -> str:
    """A value as it is typed on a command line."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!s}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"


def rows(kind: type, prefix: str, file: str = "") -> dict[str, str]:
    """The rows of a settings class's table, by setting.

    A file in `conf` is what a command starts from, so its values go before those of the class.
    """
    given: Any = OmegaConf.to_container(OmegaConf.load(folder() / file)) if file else {}
    return dict(_rows(kind, prefix, given, commented(file) if file else {}))


def _rows(kind: type, prefix: str, given: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    meanings = {**comments, **described(kind)}
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = given.get(field.name, default)
        nested = field.default if is_dataclass(field.default) else None
        deep = isinstance(default, Mapping) and any(isinstance(value, Mapping) for value in default.values())
        value = "" if default is MISSING or deep else f"`{shown(default)}`"
        meaning = meanings.get(field.name, "").replace("|", r"\|")
        if not prefix and field.name in SECTIONS:
            value, meaning = "", f"see [{field.name}](#{field.name})"
        name = prefix + field.name
        yield name, f"| `{name}` | {type_name(hints[field.name])} | {value} | {meaning} |"
        if nested is not None and (prefix or field.name not in SECTIONS):
            yield from _rows(type(nested), f"{name}.", {**vars(nested), **given.get(field.name, {})}, {})


def table(found: Iterable[str]) -> str:
    """A table of settings."""
    lines = list(found)
    return "\n".join([*HEAD, *lines]) if lines else "No settings of its own."


def kinds_tables(group: str, kinds: Mapping[str, type]) -> Iterator[str]:
    """Tables of a group whose choices have classes of their own: what all have, then what each one has."""
    each = {name: rows(kind, f"{group}.", f"{group}/{name}.yaml") for name, kind in kinds.items()}
    common = set.intersection(*(set(found.values()) for found in each.values()))
    yield f"### Every {group}"
    yield table(row for row in next(iter(each.values())).values() if row in common)
    for name, found in each.items():
        yield f"### {group}={name}"
        yield table(row for row in found.values() if row not in common)


def choice_rows(group: str) -> Iterator[str]:
    """The choices of a group, each with what its file says of it and what it sets."""
    yield f"| `{group}=` | what | sets |"
    yield "|---|---|---|"
    for name in choices(group):
        path = folder() / group / f"{name}.yaml"
        given: Any = OmegaConf.to_container(OmegaConf.load(path))
        header = " ".join(line[1:].strip() for line in leading_comment(path.read_text()))
        values = ", ".join(f"`{key}={shown(value)}`" for key, value in given.items() if key != "name")
        yield f"| `{name}` | {header} | {values} |"


def leading_comment(text: str) -> list[str]:
    """The lines of the comment that a configuration file opens with."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]


def settings() -> str:
    """The tables of all settings."""
    parts = []
    for command, kind in schema.COMMANDS.items():
        parts += [f"## Command `{command}`", table(rows(kind, "", f"{command}.yaml").values())]
    for group, kind in (("study", schema.StudySettings), ("attention", schema.AttentionSettings)):
        parts += [f"## {group}", table(rows(kind, f"{group}.").values())]
    for group, kind in (("preset", schema.Preset), ("backbone", BackboneSettings)):
        parts += [f"## {group}", table(rows(kind, f"{group}.").values()), "\n".join(choice_rows(group))]
    for group, kinds in KINDS.items():
        parts += [f"## {group}", *kinds_tables(group, kinds)]
    return "\n\n".join(parts)


def experiments() -> str:
    """What each file in `conf/experiment` says of itself."""
    parts = []
    for name in choices("experiment"):
        comment = leading_comment((folder() / "experiment" / f"{name}.yaml").read_text())
        parts += [f"## {name}", "", *(line[2:] for line in comment), ""]
    return "\n".join(parts)
