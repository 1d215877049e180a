"""What the files of lmms-eval's tasks say; no data is read.

A task is a YAML file of the installed package. The functions that it names are code of that package alone.

Source: lmms-eval 0.7.3, https://github.com/EvolvingLMMs-Lab/lmms-eval, `api/task.py` and `evaluator.py`; MIT.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFile

from tdrs.file_hash import file_hash
from tdrs.settings import SettingError, first_line

ASKED = ("generate_until", "multiple_choice")
INSTALL = "needs lmms-eval: pip install lmms-eval==0.7.3"
_TASK = re.compile(r"^task:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
# Names in a module that asks a model behind an API for a score.
_JUDGES = {"API_KEY", "API_URL", "OPENAI_API_KEY", "OpenAI", "openai", "get_server", "get_chat_response"}


@lru_cache
def task_files() -> dict[str, Path]:
    """The file of each task, by the task's name; groups of tasks are not in it.

    Raises:
        SettingError: lmms-eval is not installed.
    """
    found = find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        raise SettingError("name", "lmms_eval", INSTALL)
    files: dict[str, Path] = {}
    for path in sorted((Path(found.submodule_search_locations[0]) / "tasks").rglob("*.yaml")):
        name = _TASK.search(path.read_text(encoding="utf-8", errors="replace"))
        if name:
            files.setdefault(name[1], path)
    return files


@contextmanager
def quiet(*functions: Any) -> Iterator[None]:
    """Hide the log messages of lmms-eval and of the modules of these functions for a while.

    Pillow is as strict afterwards as before: lmms-eval makes it accept pictures that are cut off.
    """
    from loguru import logger

    strict = ImageFile.LOAD_TRUNCATED_IMAGES
    names = {"lmms_eval", *(str(one.__globals__["__name__"]) for one in functions if hasattr(one, "__globals__"))}
    for name in names:
        logger.disable(name)
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = strict
        for name in names:
            logger.enable(name)


@dataclass(frozen=True)
class Definition:
    """What the file of a task says.

    Attributes:
        config: the content of the file, with the package's functions.
        aggregations: the function of each metric that makes one number of the values of all samples.
        lower: metrics of which a lower value is better.
        skipped: metrics that write a file for a server instead of giving a number.
        digest: a hash of the version of lmms-eval and of all files in the task's folder.
    """

    name: str
    config: Mapping[str, Any]
    aggregations: Mapping[str, Callable[..., Any]]
    lower: Sequence[str]
    skipped: Sequence[str]
    digest: str

    @property
    def models(self) -> list[str]:
        """The models for which the task has prompts of their own."""
        return sorted(self.config.get("lmms_eval_specific_kwargs") or {})

    @property
    def split(self) -> str:
        """The name of the split that is asked."""
        return str(self.config.get("test_split") or self.config.get("validation_split") or "")

    @property
    def rates(self) -> bool:
        """Whether the model rates given answers instead of answering in its own words."""
        return bool(self.config.get("output_type") == "multiple_choice")


@lru_cache(maxsize=64)
def definition(name: str) -> Definition:
    """The definition of a task.

    Raises:
        SettingError: lmms-eval is not installed, or there is no such task, or it cannot be asked here.
    """
    files = task_files()
    if name not in files:
        near = ", ".join(get_close_matches(name, files, 5)) or ", ".join(["pope", "gqa", "mmstar"])
        raise SettingError("task", name, f"must be one of the {len(files)} tasks of lmms-eval, such as {near}")
    path = files[name]
    try:
        with quiet():
            import lmms_eval.api.metrics  # noqa: F401 - it registers `mean` and others by name
            from lmms_eval import utils
            from lmms_eval.api.task import ConfigurableTask, TaskConfig

            config = utils.load_yaml_config(str(path), mode="full")
            kind = config.get("output_type", "generate_until")
            _check_kind(name, config, kind)
            task = ConfigurableTask.__new__(ConfigurableTask)
            task._config = TaskConfig(**config)
            task._prepare_metric_and_aggregation()
    except SettingError:
        raise
    except Exception as error:  # code of the package, and what it imports
        raise SettingError("task", name, f"cannot be loaded by lmms-eval ({first_line(error)})") from error
    aggregations = task._aggregation_list
    skipped = [metric for metric, function in aggregations.items() if "args" in _parameters(function)]
    judges = _judges([config.get("process_results"), *aggregations.values()])
    if judges:
        raise SettingError(
            "task", name, f"may ask a model behind an API for its scores ({judges}); no such task is run"
        )
    if len(skipped) == len(aggregations):
        raise SettingError("task", name, "has no score: it writes a file for a server")
    lower = [metric for metric, better in task._higher_is_better.items() if not better]
    return Definition(name, config, aggregations, lower, skipped, _digest(path))


def _check_kind(name: str, config: Mapping[str, Any], kind: str) -> None:
    """Raises SettingError unless a task is one of questions about pictures, each asked once."""
    why = ""
    if "class" in config:
        why = "is a class of Python, not a file"
    elif kind not in ASKED:
        why = f"is of type {kind}; those of type {' and '.join(ASKED)} can be asked"
    elif (config.get("dataset_kwargs") or {}).get("video") or (config.get("dataset_kwargs") or {}).get("From_YouTube"):
        why = "is about videos"
    elif config.get("doc_to_visual") is None and config.get("doc_to_messages") is None:
        why = "has no pictures"
    elif config.get("repeats", 1) != 1:
        why = f"asks each question {config['repeats']} times; greedy answers would be the same"
    elif config.get("full_docs"):
        why = "scores an answer by all rows"
    if why:
        raise SettingError("task", name, why)


def _parameters(function: Any) -> Sequence[str]:
    code = getattr(function, "__code__", None)
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()


def _judges(functions: Sequence[Any]) -> str:
    """The names that tell of a judge in the modules of these functions and of what they import from other tasks."""
    found: set[str] = set()
    for function in functions:
        spaces = [getattr(function, "__globals__", {})]
        for value in list(spaces[0].values()):
            if str(getattr(value, "__module__", "")).startswith("lmms_eval.tasks"):
                spaces.append(getattr(value, "__globals__", {}))
        found |= _JUDGES.intersection(*[set().union(*spaces)])
    return ", ".join(sorted(found))


def _digest(path: Path) -> str:
    """A hash of the version of lmms-eval and of the files in the folder of a task."""
    digest = hashlib.sha256(f"{version('lmms_eval')} {path.name}".encode())
    for file in sorted(path.parent.iterdir()):
        if file.suffix == ".py" or "yaml" in file.name:
            digest.update(f"{file.name} {file_hash(file)} ".encode())
    return digest.hexdigest()[:24]


def mean_function() -> Callable[..., Any]:
    """lmms-eval's own mean, by which it aggregates where a task says `mean`."""
    from lmms_eval.api.registry import get_aggregation

    function: Callable[..., Any] = get_aggregation("mean")
    return function
