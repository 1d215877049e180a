"""Which layers or heads are edited: `all`, a list, a range, or a share of the depth; heads of single layers: `L3H1`."""

import re
from collections.abc import Sequence

from tdrs.settings import SettingError

Selection = str | Sequence[int]
HeadSelection = str | Sequence[int] | Sequence[str]
ALLOWED = "must be 'all', a list of numbers from 0, a range like '4-17', or a share of the depth like '15%-60%'"


def check_selection(name: str, value: Selection) -> Selection:
    """Check a selection. Returns it, with a list turned into a tuple.

    Raises:
        SettingError: it selects nothing, or cannot be parsed.
    """
    if isinstance(value, str):
        ends = re.fullmatch(r"(\d+)(%?)-(\d+)(%?)", value)
        ordered = ends is not None and ends[2] == ends[4] and int(ends[1]) <= int(ends[3])
        if value != "all" and not (ordered and ends is not None and not (ends[2] and int(ends[3]) > 100)):
            raise SettingError(name, value, ALLOWED)
        return value
    numbers = tuple(value)
    if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise SettingError(name, value, ALLOWED)
    return numbers


def check_heads(name: str, value: HeadSelection) -> HeadSelection:
    """Check a selection of heads: as `check_selection`, or a list of heads of single layers.

    `L3H1` is head 1 of layer 3, both from 0. Numbers such as 3.10 would lose a digit.

    Raises:
        SettingError: it selects nothing, or cannot be parsed.
    """
    if not isinstance(value, str) and any(_pair(one) for one in value):
        for one in value:
            if not _pair(one):
                raise SettingError(name, list(value), f"{one!r} is not a head of a layer, such as L3H1")
        return tuple(str(one) for one in value)
    try:
        return check_selection(name, value)  # type: ignore[arg-type]
    except SettingError as error:
        shown = list(value) if isinstance(value, tuple) else value
        raise SettingError(name, shown, f"{error.allowed}, or a list of heads of layers like [L3H1, L5H0]") from None


def _pair(value: object) -> tuple[int, int] | None:
    found = re.fullmatch(r"L(\d+)H(\d+)", value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None


def heads_by_layer(
    layers: Selection, heads: HeadSelection, shape: tuple[int, int], where: str = ""
) -> dict[int, frozenset[int]]:
    """The heads that checked selections name in each layer; layers without one are not in it.

    Args:
        shape: the model's number of layers and of query heads.
        where: what errors put in front of the settings' names, such as "intervention.".

    Raises:
        SettingError: the model does not have a layer or a head, or a head's layer is not one of the layers.
    """
    edited = resolve(f"{where}layers", layers, shape[0])
    pairs = [] if isinstance(heads, str) else [_pair(one) for one in heads]
    if not any(pairs):
        everywhere = resolve(f"{where}heads", heads, shape[1])  # type: ignore[arg-type]
        return dict.fromkeys(sorted(edited), everywhere)
    found: dict[int, frozenset[int]] = {}
    for one, pair in zip(heads, pairs, strict=True):
        assert pair is not None, "check_heads lets no mixture pass"
        layer, head = pair
        if layer >= shape[0] or head >= shape[1]:
            raise SettingError(
                f"{where}heads", one, f"must be from L0H0 to L{shape[0] - 1}H{shape[1] - 1} in this model"
            )
        if layer not in edited:
            raise SettingError(f"{where}heads", one, f"layer {layer} is not one of the layers that are edited")
        found[layer] = found.get(layer, frozenset()) | {head}
    return found


def normal_form(heads: dict[int, frozenset[int]], shape: tuple[int, int]) -> dict[str, str | list[int] | list[str]]:
    """The selections `layers` and `heads` of `heads_by_layer`, equal for all that name the same heads."""
    if len(set(heads.values())) > 1:
        pairs = [f"L{layer}H{head}" for layer in sorted(heads) for head in sorted(heads[layer])]
        return {"layers": sorted(heads), "heads": pairs}
    (everywhere,) = set(heads.values())
    chosen = zip(("layers", "heads"), (heads.keys(), everywhere), shape, strict=True)
    return {name: "all" if len(some) == count else sorted(some) for name, some, count in chosen}


def names_numbers(value: HeadSelection) -> bool:
    """Whether a checked selection names numbers that a model may not have; `all` and shares of the depth do not."""
    return not isinstance(value, str) or (value != "all" and "%" not in value)


def resolve(name: str, value: Selection, count: int) -> frozenset[int]:
    """The numbers from 0 to count − 1 that a checked selection names.

    A range includes both ends. A share such as "28%-46%" contains each layer n whose middle, (n + ½) / count, lies in
    it, and at least the layer nearest to its centre. So one setting means the same depth in models of 4 and 32 layers.

    Raises:
        SettingError: a number is not below `count`.
    """
    if isinstance(value, str):
        if value == "all":
            return frozenset(range(count))
        first, last = (int(end.rstrip("%")) for end in value.split("-"))
        if value.endswith("%"):
            chosen = [n for n in range(count) if first <= 100 * (n + 0.5) / count <= last]
            centre = (first + last) / 200
            return frozenset(chosen or [min(range(count), key=lambda n: abs((n + 0.5) / count - centre))])
        numbers: Sequence[int] = range(first, last + 1)
    else:
        numbers = value
    if max(numbers) >= count:
        shown = value if isinstance(value, str) else list(value)
        raise SettingError(name, shown, f"must be from 0 to {count - 1} in this model")
    return frozenset(numbers)
