"""Files of chosen heads, which `python -m tdrs.calibrate` writes and `intervention.heads=FILE` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdrs import checked_file
from tdrs.checked_file import Damaged
from tdrs.settings import SettingError

ENDING = ".yaml"
KEYS = ("heads", "score", "keep", "backbone", "dataset", "split", "n", "scores")


def is_file_name(value: object) -> bool:
    """Whether a value of `heads` names a file of chosen heads."""
    return isinstance(value, str) and value.endswith(ENDING)


def write_heads(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of chosen heads, with a checksum.

    Raises:
        SettingError: another file is there, or the file cannot be written.
    """
    if path.exists() or path.is_symlink():
        read_heads(path, "file")  # nothing but such a file is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checked_file.write_yaml(path, values)
    except OSError as error:
        raise SettingError("file", str(path), f"cannot be written: {error.strerror}") from None


def read_heads(path: str | Path, name: str = "heads") -> dict[str, Any]:
    """What a file of chosen heads says: `heads`, the list for a method's setting, and how they were chosen.

    Args:
        name: the setting that names the file, for errors.

    Raises:
        SettingError: there is no such file, it was changed by hand, or it holds something else.
    """
    try:
        found = checked_file.read_yaml(Path(path).expanduser())
    except FileNotFoundError:
        raise SettingError(name, str(path), "no such file; python -m tdrs.calibrate writes one") from None
    except (Damaged, RuntimeError) as error:
        raise SettingError(name, str(path), f"is no file of tdrs.calibrate: {error}") from None
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise SettingError(name, str(path), f"is no file of tdrs.calibrate: it has no {missing[0]}")
    return found


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings with the heads of the file that `heads` names, if it names one."""
    if not is_file_name(values.get("heads")):
        return dict(values)
    return dict(values) | {"heads": read_heads(values["heads"])["heads"]}


def check_weights(values: Mapping[str, Any], weights: str, model: str, name: str) -> str:
    """Check that heads from a file are those of a model. Returns a note on them.

    Args:
        values: a method's settings, whose `heads` name a file.
        weights, model: the fingerprint of the model's weights, and its name.
        name: of the setting `heads`, for errors.

    Raises:
        SettingError: they were chosen in another model.
    """
    found = read_heads(values["heads"], name)
    if found["backbone"]["weights"] != weights:
        chosen = f"its heads were chosen in {found['backbone']['name']}, with other weights than those of {model}"
        raise SettingError(name, values["heads"], chosen)
    heads, dataset = ", ".join(found["heads"]), found["dataset"]["name"]
    return f"{name}: {heads}, chosen by {found['score']} on {dataset}, {found['split']} split, n = {found['n']}"
