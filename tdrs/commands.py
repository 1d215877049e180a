"""Commands as text that runs when it is pasted into a shell, whatever names, folders and values it has.

A value passes two grammars: Hydra's, where the program composes a configuration (`tdrs.sweep`, `tdrs.evaluate`, …), and
then the shell's. `tdrs.study` and `tdrs.analysis.*` read `KEY=VALUE` as it stands.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")  # means itself in Hydra's grammar, unless it is one of these words
_WORDS = ("null", "true", "false", "nan", "inf")


def command(program: str, *words: str) -> str:
    """A module's command, its words quoted for the shell."""
    return shlex.join(["python", "-m", program, *words])


def study_command(verb: str, name: str, output: Path | str, *options: str) -> str:
    """A command of `tdrs.study` on one study."""
    plain = "=" not in name and not name.startswith("-")
    return command("tdrs.study", verb, name if plain else f"study={name}", f"output={output}", *options)


def value(given: Any) -> str:
    """A value in Hydra's grammar. It is read back as it is, a text that looks like a number or `${…}` as a text."""
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
    """In Hydra's double quotes: a backslash means itself, but before `${`, before such a quote and at the end."""
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    text = re.sub(r'(\\*)"', lambda found: 2 * found[1] + r"\"", text)
    return '"' + re.sub(r"(\\*)\Z", lambda found: 2 * found[1], text, count=1) + '"'


def _key(text: str) -> str:
    """A key of a mapping, which Hydra's grammar does not let be quoted."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", text)


def changes(name: str, given: Any, usual: Any) -> list[str]:
    """Overrides in Hydra's grammar that make of a usual value the given one."""
    if isinstance(given, Mapping) and isinstance(usual, Mapping):
        words = [f"~{name}.{key}" for key in usual if key not in given]
        for key, one in given.items():
            at = f"{name}.{key}"
            words += changes(at, one, usual[key]) if key in usual else [f"+{at}={value(one)}"]
        return words
    return [] if given == usual and type(given) is type(usual) else [f"{name}={value(given)}"]
