"""Published numbers: the paper's results, and scores of unedited models with which ours can be compared.

If a measured stock score is far from the published one, something differs: the prompt, the preparation of images, the
precision, the rule or the weights. Then everything that is measured with this set-up may be wrong.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdrs import benchmarks
from tdrs.benchmarks import DATASETS, Record
from tdrs.benchmarks.embedded import Embedded
from tdrs.configuration import choice
from tdrs.settings import SettingError
from tdrs.statistics import Interval, accuracy_interval
from tdrs.zoo.cards import known_scores

# T-DRS (arXiv 2511.09868), Tables 1 and 2: accuracy in per cent, on POPE F1. Stage 0 is the stock model, 3 all stages.
NAMESAKES = {"llava": "LLaVA-1.5-7B", "internvl": "InternVL2-8B", "qwen": "Qwen2.5-VL-7B"}
REPORTED = {
    ("llava", "scienceqa"): {0: 67.9, 1: 68.1, 2: 68.8, 3: 69.2},
    ("llava", "gqa"): {0: 62.0, 3: 63.1},
    ("llava", "textvqa"): {0: 58.2, 3: 59.0},
    ("llava", "pope"): {0: 85.7, 1: 85.8, 2: 86.0, 3: 86.1},
    ("internvl", "scienceqa"): {0: 96.6, 1: 96.9, 2: 97.1, 3: 97.3},
    ("internvl", "gqa"): {0: 62.6, 3: 62.8},
    ("internvl", "textvqa"): {0: 79.1, 3: 79.7},
    ("internvl", "pope"): {0: 87.0, 1: 86.8, 2: 87.2, 3: 87.4},
    ("qwen", "scienceqa"): {0: 79.4, 1: 79.8, 2: 80.4, 3: 80.7},
    ("qwen", "gqa"): {0: 57.9, 3: 58.3},
    ("qwen", "textvqa"): {0: 84.5, 3: 85.0},
    ("qwen", "pope"): {0: 86.4, 1: 86.6, 2: 86.9, 3: 87.3},
}
# The score by the model's own authors, where the paper's stock score is another model's: 79.1 is InternVL2.5-8B's.
STOCK = {("internvl", "textvqa"): (77.4, "InternVL2-8B's own report")}
REAL = {"llava_1_5_7b": "llava", "internvl2_8b": "internvl", "qwen2_5_vl_7b": "qwen"}
RE_WEIGHT = {"pope": 1.0, "other": 0.8}  # the paper's λ_re
POINTS = 3.0  # a larger difference is reported


class Published(NamedTuple):
    """A published score of an unedited model: `value`, from 0 to 1, of `metric`, and where it is published."""

    value: float
    metric: str
    where: str


class Comparison(NamedTuple):
    """A measured stock score beside the published one.

    Attributes:
        measured: the measured score, from 0 to 1, with its 95 % limits.
        n: how many samples it is of.
    """

    published: Published
    measured: Interval
    n: int

    @property
    def points(self) -> tuple[float, float, float]:
        """The measured score minus the published one, in points, with 95 % limits."""
        value, low, high = (100 * (number - self.published.value) for number in self.measured)
        return value, low, high

    @property
    def far(self) -> bool:
        """Whether the difference is larger than usual between two evaluations of one model."""
        return abs(self.points[0]) > POINTS + 1e-9

    @property
    def off(self) -> bool:
        """Whether the difference is that large and not by chance: the published score is outside the 95 % interval."""
        return self.far and not self.points[1] <= 0 <= self.points[2]

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        value, low, high = self.points
        text = (
            f"the stock model's {self.published.metric}, {100 * self.measured.value:.1f} %, is {value:+.1f} points off "
            f"the published {100 * self.published.value:.1f} % ({self.published.where}), "
            f"95 % interval [{low:+.1f}, {high:+.1f}], n = {self.n}"
        )
        return f"{text}: too few samples to tell" if self.far and not self.off else text


def published(backbone: Mapping[str, Any], dataset: Mapping[str, Any]) -> Published | str:
    """The published score of a backbone on a held-out split, from their configurations; or why there is none.

    For an embedded model it is the score in its card, at the card's distances; for a real one, the paper's.
    """
    name, kind = str(backbone["name"]), str(dataset["name"])
    embedded = str(backbone["source"]).startswith("embedded:")
    if embedded and backbone["source"] != f"embedded:{name}":
        return f"no score of {name} is known"
    family = REAL.get(name, "")
    known = REPORTED.get((family, kind))
    if known is None and not (embedded and issubclass(DATASETS[kind], Embedded)):
        return f"no score of {name} on {kind} is known"
    unlike = _unlike("backbone", backbone) + _unlike("dataset", dataset)
    if unlike:
        return f"none is made with {', '.join(unlike)}"
    if embedded:
        return _on_the_card(name, dataset) or f"the card of {name} has no score at this distance"
    if dataset["gap"] or dataset["blank"]:
        return "none is made with text between or blank pictures"
    assert known is not None
    metric = "F1" if DATASETS[kind].real == "pope" else "accuracy"
    value, where = STOCK.get((family, kind), (known[0], f"the paper's {NAMESAKES[family]}"))
    return Published(value / 100, metric, where)


def compare(config: Mapping[str, Any], records: Sequence[Record]) -> Comparison | str:
    """The comparison of the stock model's records with the published score; or why there is none."""
    known = published(config["backbone"], config["dataset"])
    if isinstance(known, str):
        return known
    if known.metric == "F1":
        measured = benchmarks.from_settings(config["dataset"]).intervals(records)["f1"]
    else:
        scores, images = [record.score for record in records], [record.image_id for record in records]
        measured = accuracy_interval(scores, images, [record.weight for record in records])
    return Comparison(known, measured, len(records))


def checked(compared: Sequence[Comparison | str]) -> str:
    """A sentence on how many conditions of a study were checked against a published score."""
    count = sum(isinstance(one, Comparison) for one in compared)
    return f"Weights, prompts and rules were checked against a published score at {count} of {len(compared)} conditions"


def reported(config: Mapping[str, Any]) -> tuple[float, str] | None:
    """What the paper reports for a configuration, in per cent, and for which model; None if it reports nothing.

    For an embedded model and a twin, it is the number of the real model and data set that they are named after, at any
    distance. For a real model, the conditions of `published` apply. The method must be none, or T-DRS at the paper's
    settings under either reading of `gain`.
    """
    backbone, dataset, method = config["backbone"], config["dataset"], config["intervention"]
    real = DATASETS[dataset["name"]].real
    stage = _stage(method, real)
    if stage is None or dataset["blank"] or _unlike("backbone", backbone) or _unlike("dataset", dataset):
        return None
    family = REAL.get(backbone["name"], "")
    if str(backbone["source"]).startswith("embedded:"):
        family = next((key for key in NAMESAKES if key in backbone["name"]), "")
    elif dataset["name"] != real or dataset["gap"]:
        return None
    value = REPORTED.get((family, real), {}).get(stage)
    return None if value is None else (value, NAMESAKES[family])


def _stage(method: Mapping[str, Any], real: str) -> int | None:
    """The row of the paper's Table 2 that has a method's settings on a benchmark; None if no row has them."""
    if method["name"] == "none":
        return 0
    if method["name"] != "tdrs":
        return None
    paper = choice("intervention", "tdrs") | {"gain": method["gain"]}
    paper["re"] |= {"weight": RE_WEIGHT.get(real, RE_WEIGHT["other"])}
    for stage, off in ((3, {}), (2, {"re": None}), (1, {"re": None, "dc": None})):
        if dict(method) == paper | off:
            return stage
    return None


# Settings that decide a stock score, in addition to the model and the data.
_DECISIVE = {
    "backbone": ("prompt_style", "max_new_tokens", "system", "transparency", "image", "adapter", "bits"),
    "dataset": ("rule", "prompt", "seed", "ocr_tokens", "held_out"),
}


def _unlike(group: str, values: Mapping[str, Any]) -> list[str]:
    """The settings that decide a score and differ from the choice's own, as `group.name=value`."""
    try:
        own = choice(group, str(values["name"]))
    except SettingError:
        return [f"{group}.name={values['name']}"]
    names = [name for name in _DECISIVE[group] if name in own and values.get(name, own[name]) != own[name]]
    source = str(values.get("source", ""))
    # a local folder may hold the same model; another hub id is another model
    if group == "backbone" and source != own["source"] and not Path(source).expanduser().is_dir():
        names.append("source")
    return [f"{group}.{name}={values[name]}" for name in names]


def _on_the_card(name: str, dataset: Mapping[str, Any]) -> Published | None:
    """The score in a model's card at the distance of a data set's settings; None if the card has none."""
    scores = known_scores()[name].get(dataset["name"])
    if scores is None:
        return None
    if dataset["blank"]:
        value = scores["blank"] if not dataset["gap"] else None
    else:
        placed = "before_image" if dataset["filler"] == "before_image" and dataset["gap"] else "between"
        value = scores.get(placed, {}).get(dataset["gap"], [None])[0]
    return None if value is None else Published(value, "accuracy", f"the card of {name}")
