"""From the command line to a checked configuration. Hydra composes it; every error is one line.

The folder `conf/` is installed as `tdrs/conf`. A file of it says what differs from the defaults, which are in the
dataclass behind it (`kind_of`).
"""

import copy
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdrs import commands, schema
from tdrs.addresses import check_password, check_tracking
from tdrs.backbones import BackboneSettings
from tdrs.benchmarks import DATASETS
from tdrs.entry_point import run_command
from tdrs.environment import keep_memory
from tdrs.interventions import METHODS, TOGETHER, together
from tdrs.settings import SettingError, check_choice, defaults, first_line, folder_named

typed: list[str] = []  # the arguments of the command that `run` runs
_MAPPINGS = ("axes", "controls", "methods", "space")  # of `search`: null is none


def folder() -> Path:
    """The folder `conf`, in a checkout or installed."""
    return Path(str(files("tdrs.conf")))


def compose(entry: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command under command-line overrides.

    Args:
        entry: the name of a file in `conf`, such as `evaluate` or `sweep`.
        overrides: in Hydra's grammar, e.g. `backbone=mini_llava`, `dataset.gap=64`, `+experiment=sqa_ablation`.

    Raises:
        SettingError: an override does not parse, or names an unknown setting or an unknown choice of a group.
    """
    # The files are in Hydra's store. Hydra wants a module, too; its own has nothing that it does not see anyway.
    with _registered(), initialize_config_module("hydra.conf", version_base="1.3"):
        try:
            config = hydra_compose(entry, _replacing([_quoted(text) for text in overrides]))
            OmegaConf.to_container(config, resolve=True)  # raises where a reference leads nowhere
            _check_addresses("", plain(config))
            if "output" in config:
                config.output = str(folder_named("output", config.output))
        except (HydraException, OmegaConfBaseException) as error:
            raise _one_line(str(error), overrides) from error
    for name in _MAPPINGS:
        if OmegaConf.select(config, f"search.{name}", default={}) is None:
            config.search[name] = {}
    return config


def _quoted(override: str) -> str:
    """An override with quotes around a value that begins with `~`; Hydra refuses it without them."""
    name, is_, value = override.partition("=")
    escaped = value.replace("'", "\\'")
    return f"{name}{is_}'{escaped}'" if value.startswith("~") else override


def _check_addresses(name: str, value: object) -> None:
    """Raises SettingError if any setting has a password, or if `tracking.uri` has an unknown form."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_addresses(f"{name}.{key}" if name else str(key), inner)
    elif name == "tracking.uri":
        check_tracking(value)
    elif isinstance(value, str):
        check_password(name, value, "PGUSER and PGPASSWORD, or what its library reads")


def _replacing(overrides: Sequence[str]) -> list[str]:
    """The overrides, changed so that a mapping of `search` replaces the old one; Hydra would merge the two.

    Raises:
        SettingError: an empty mapping, which Hydra would merge, so that it would change nothing.
    """
    found: list[str] = []
    groups = {path.name for path in folder().iterdir() if path.is_dir()}
    for text in overrides:
        one = _parsed(text)
        key, value = one.key_or_group, one.value()
        if key == "intervention" and isinstance(value, list) and not one.is_delete():
            found[:0] = _together(value)
        elif key in groups and not one.is_delete() and not isinstance(value, str | list | dict):
            raise SettingError(key, value, f"must be one of {', '.join(choices(key))}")
        elif not isinstance(value, dict) or one.is_delete():
            found.append(text)
        elif key.startswith("search.") and not one.is_add():
            found += [f"{'++' if one.is_force_add() else ''}{key}=null", text]
        elif value:
            found.append(text)
        else:
            raise SettingError(key, {}, "an empty mapping changes nothing; give settings, or null where it may be off")
    return found


def _together(names: Sequence[Any]) -> list[str]:
    """The overrides that choose several methods: the settings of each are under its name.

    Raises:
        SettingError: a method is unknown, or is there twice.
    """
    if len(names) == 1:
        return [f"intervention={names[0]}"]
    chosen = together([str(name) for name in names], partial(choice, "intervention"))
    values = {key: value for key, value in chosen.items() if key != "name"}
    return [
        f"intervention={TOGETHER}",
        *(f"++intervention.{key}={commands.value(given)}" for key, given in values.items()),
    ]


def _parsed(text: str) -> Override:
    """Parse one override. The error for a bad one shows the quotes that would make it valid."""
    why = ""
    try:
        found = OverridesParser.create().parse_override(text)
    except HydraException as error:
        found, why = None, first_line(error)
    if found and found.key_or_group and not found.is_sweep_override():
        return found
    key, is_, value = text.partition("=")
    quoted = f"{key}={commands.value(value)}"
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        is_ = ""
    if not is_ or not key.strip("+~"):
        raise SettingError("command line", text, "must be SETTING=VALUE, without blanks around the sign, or ~SETTING")
    if value.startswith(("{", "[")) and not found:  # it is meant literally
        raise SettingError(key.lstrip("+~"), value, f"is no mapping or list in Hydra's grammar: {why}")
    what = "is a list of runs" if found else "does not stand for itself"
    raise SettingError(key.lstrip("+~"), value, f"{what} in Hydra's grammar; quoted it does:  {shlex.quote(quoted)}")


def choices(group: str) -> list[str]:
    """The names of a group's choices."""
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def choice(group: str, name: str) -> dict[str, Any]:
    """The settings of one choice of a group, such as `mini_pope` of `dataset`.

    Raises:
        SettingError: the group has no such choice.
    """
    check_choice(group, name, choices(group))
    return copy.deepcopy(_choice(group, name))


@lru_cache
def _choice(group: str, name: str) -> dict[str, Any]:
    """The settings of a choice, read once: studies ask for them at every trial."""
    return dict(plain(OmegaConf.create(_settings(group, folder() / group / f"{name}.yaml"))))


def kind_of(group: str, name: str) -> type[Any] | None:
    """The dataclass with the settings of a choice, or with group "" of a command; None if there is none."""
    if name == "none" or group == "backbone":
        return BackboneSettings if group == "backbone" else None
    kinds: dict[str, Mapping[str, type[Any]]] = {
        "": schema.COMMANDS,
        "dataset": DATASETS,
        "intervention": METHODS,
        "tracking": schema.TRACKING,
        "workers": schema.WORKERS,
    }
    return kinds.get(group, {}).get(name)


def _settings(group: str, path: Path) -> dict[str, Any]:
    """What a file of `conf` says, on top of the defaults of the dataclass behind it.

    Args:
        group: the folder of the file; "" is the configuration of a command.
    """
    said: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    kind = kind_of(group, str(said.get("name", path.stem)))
    first = {key: said[key] for key in ("defaults", "name") if key in said}
    return first | (defaults(kind) if kind else {}) | said


@lru_cache(maxsize=1)
def _repository() -> dict[str, Any]:
    """All files of `conf`, in the form that Hydra's ConfigStore has."""
    store = ConfigStore.instance()
    before, store.repo = store.repo, {}
    try:
        for path in sorted(folder().rglob("*.yaml")):
            group = "" if path.parent == folder() else path.parent.name
            package = re.match(r"# @package (\S+)", path.read_text(encoding="utf-8"))
            store.store(path.stem, _settings(group, path), group or None, package[1] if package else None)
        return store.repo
    finally:
        store.repo = before


class _Shared(dict[str, Any]):
    """Files that Hydra copies with its store in each composition; none needs a copy, since it copies what it loads."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


@contextmanager
def _registered() -> Iterator[None]:
    """Register the files of `conf` with Hydra for a while: a program with a Hydra application must not see them."""
    store = ConfigStore.instance()
    before, store.repo = store.repo, _Shared({**store.repo, **_repository()})
    try:
        yield
    finally:
        store.repo = before


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a plain configuration with some dotted keys set. A group (`backbone`) is set by the name of a choice.

    Raises:
        SettingError: the configuration has no such key, or the group no such choice.
    """
    result = copy.deepcopy(dict(config))
    for key, value in settings.items():
        part = next((other for other in settings if "." in key and other.startswith(f"{key}.")), None)
        if part is not None:
            raise SettingError("search", key, f"replaces {part}, which is set, too; take one away")
        if isinstance(result.get(key), dict):
            several = key == "intervention" and isinstance(value, list | tuple)
            result[key] = together(value, partial(choice, key)) if several else choice(key, value)
            continue
        *path, last = key.split(".")
        node: Any = result
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise SettingError("search", key, "no such setting in this configuration (is its stage off?)")
        node[last] = value
    return result


def _one_line(message: str, overrides: Sequence[str]) -> SettingError:
    """Hydra's error as a SettingError: which override is wrong, and what is allowed."""
    given = {text.lstrip("+~").partition("=")[0]: text.partition("=")[2] for text in overrides}
    found = re.search(r"Could not find '([\w/]+)/([^/']+)'", message)
    if found:
        options = GlobalHydra.instance().config_loader().get_group_options(found[1])
        return SettingError(found[1], found[2], f"must be one of {', '.join(options)}")
    found = re.search(r"Could not override '([\w./]+)'", message) or re.search(r"Key '(\w+)' is not in struct", message)
    if found:
        name = found[1]
        return SettingError(name, given.get(name), "no such setting; `--cfg` prints all of them")
    text = next((o for o in overrides if o in message), " ".join(overrides))
    referring = next((o for o in overrides if "${" in o), "")
    if referring and "nterpolation" in message:
        name, _, value = referring.partition("=")
        return SettingError(name.lstrip("+~"), value, message.strip().splitlines()[0])
    return SettingError("command line", text, message.strip().splitlines()[0])


def plain(config: DictConfig) -> Any:
    """A configuration as plain dicts and lists."""
    return OmegaConf.to_container(config, resolve=True)


def check(entry: str, values: Mapping[str, Any]) -> None:
    """Raises SettingError unless a plain configuration has every key, and each is known, of its type and in its range.

    The values of the backbone, the data set, the method and the protocol are checked elsewhere.
    """
    schema.check(entry, values)
    for group in ("backbone", "dataset", "intervention"):
        given = values.get(group)
        if given is not None and given.get("name") in choices(group):
            for key in _choice(group, given["name"]):
                if key not in given:
                    raise SettingError(f"{group}.{key}", None, "is required")
        elif given is not None and group != "backbone":  # a backbone's name is a label; its source decides
            check_choice(f"{group}.name", given.get("name"), choices(group))


def run(
    entry: str, function: Callable[[DictConfig], int | None], usage: str, arguments: Sequence[str] | None = None
) -> int:
    """Compose a configuration and call `function` with it; returns the exit code of `run_command`.

    `--help` and `--cfg` print, and call nothing.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    typed[:] = arguments

    def work() -> int | None:
        if "--help" in arguments or "-h" in arguments:
            print(usage.strip())
            for group in sorted(path.name for path in folder().iterdir() if path.is_dir() and path.name[0] != "_"):
                print(f"  {group:13} {', '.join(choices(group))}")
            return 0
        config = compose(entry, [argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            print(OmegaConf.to_yaml(config, resolve=True), end="")
            return 0
        check(entry, plain(config))
        keep_memory()
        return function(config)

    return run_command(work)
