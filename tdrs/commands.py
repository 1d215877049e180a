"""Commands as text: written so that they run when pasted into a shell, and read.

A value passes two grammars: first Hydra's, where the program composes a configuration (`tdrs.sweep`, `tdrs.evaluate`,
…), then the shell's. `tdrs.study`, `tdrs.speed` and `tdrs.analysis.*` read `KEY=VALUE` literally (`parse`).
"""

import re
import shlex
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")  # means itself in Hydra's grammar, unless it is one of these words
_WORDS = ("null", "true", "false", "nan", "inf")


def parse(arguments: Sequence[str], known: Container[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Split a command's arguments into bare words and `KEY=VALUE` options. The last value of a key counts.

    Args:
        known: the keys of options; an argument with another key is a bare word. None is any key.
    """
    words: list[str] = []
    options: dict[str, str] = {}
    for argument in arguments:
        key, is_, given = argument.partition("=")
        if is_ and (known is None or key in known):
            options[key] = given
        else:
            words.append(argument)
    return words, options


def command(program: str, *words: str) -> str:
    """The command that runs a module, its words quoted for the shell."""
    return shlex.join(["python", "-m", program, *words])


def study_command(verb: str, name: str, output: Path | str, *options: str) -> str:
    """A command of `tdrs.study` on one study."""
    plain = "=" not in name and not name.startswith("-")
    return command("tdrs.study", verb, name if plain else f"study={name}", f"output={output}", *options)


def value(given: Any) -> str:
    """A value in Hydra's grammar, which reads it back unchanged: a text like a number or `${…}` stays text."""
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    if isinstance(given, str):
        return given if _BARE.fullmatch(given) and given.lower() not in _WORDS else _quoted(given)
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{_key(str(key))}: {value(one)}" for key, one in given.items()) + "}"
    if isinstance(given, Sequence):
        return "[" + ", ".join(value(one) for one in given) + "]"
    return repr(given)


def _quoted(text: str) -> str:
    """A text in Hydra's double quotes. A backslash means itself except before `${`, before a quote and at the end."""
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    text = re.sub(r'(\\*)"', lambda found: 2 * found[1] + r"\"", text)
    return '"' + re.sub(r"(\\*)\Z", lambda found: 2 * found[1], text, count=1) + '"'


def _key(text: str) -> str:
    """A key of a mapping, escaped: Hydra's grammar has no quotes for keys."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)


def changes(name: str, given: Any, usual: Any) -> list[str]:
    """The overrides, in Hydra's grammar, that turn the usual value into the given one."""
    if isinstance(given, Mapping) and isinstance(usual, Mapping):
        words = [f"~{name}.{key}" for key in usual if key not in given]
        for key, one in given.items():
            at = f"{name}.{key}"
            words += changes(at, one, usual[key]) if key in usual else [f"+{at}={value(one)}"]
        return words
    return [] if given == usual and type(given) is type(usual) else [f"{name}={value(given)}"]
