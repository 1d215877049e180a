"""What a request of lmms-eval asks, in the terms of a sample, for its tasks as a data set and for its own evaluator."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from tdrs.benchmarks.sources import BadRow, check_places
from tdrs.settings import check_number

LONGEST = 1024  # tokens of an answer where a request names no limit, as in lmms-eval's model classes
ENDS = ("until", "stop_sequences")  # settings of generation that name texts which end an answer
# Settings of generation that change nothing when answers are greedy.
_WITHOUT_EFFECT = {"do_sample", "image_aspect_ratio", "seed", "top_k", "top_p"}


class Question(NamedTuple):
    """What one request asks: the text in front of the images, the text behind them, and the images."""

    before: str
    prompt: str
    images: tuple[Image.Image, ...]


def question_of(messages: Any) -> Question:
    """The question that messages of lmms-eval ask.

    Raises:
        BadRow: it is not one turn of the user with texts and pictures, or text stands between two pictures.
    """
    if not isinstance(messages, list) or len(messages) != 1 or messages[0].get("role") != "user":
        roles = [one.get("role") for one in messages] if isinstance(messages, list) else messages
        raise BadRow(f"turns of {roles}, not one turn of the user")
    parts = messages[0]["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    other = [part["type"] for part in parts if part["type"] not in ("text", "image")]
    at = [number for number, part in enumerate(parts) if part["type"] == "image"]
    if other or not at:
        raise BadRow(f"a part of type {other[0]}" if other else "no picture")
    images = tuple(parts[number]["url"] for number in at)
    for image in images:
        if not isinstance(image, Image.Image):
            raise BadRow(f"a picture of type {type(image).__name__}")
    before, between, behind = (
        "".join(part["text"] for part in some if part["type"] == "text")
        for some in (parts[: at[0]], parts[at[0] : at[-1]], parts[at[-1] :])
    )
    if between.strip():
        raise BadRow(f"text between its {len(at)} pictures, which must stand together")
    check_places(before + behind, len(at))
    return Question(before, behind, images)


def encode(image: Image.Image) -> bytes:
    """A picture as bytes from which exactly its pixels are read again; RGB without compression, which takes time."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP" if image.mode == "RGB" else "PNG")
    return buffer.getvalue()


def length_of(generation: Mapping[str, Any]) -> int:
    """The most tokens of an answer under settings of generation. Raises SettingError if it is no whole number."""
    length = generation.get("max_new_tokens")
    if length is None:
        return LONGEST
    check_number("max_new_tokens", length, 1, whole=True)
    return int(length)


def cut(text: str, generation: Mapping[str, Any]) -> str:
    """An answer up to the first of the texts at which settings of generation end it."""
    for name in ENDS:
        until = generation.get(name) or ()
        for end in (until,) if isinstance(until, str) else until:
            text = text.split(end)[0] if end else text
    return text


def not_greedy(generation: Mapping[str, Any]) -> str:
    """What settings of generation ask for that greedy answers do not have; "" if nothing."""
    known = {*_WITHOUT_EFFECT, *ENDS, "max_new_tokens"}
    usual = {"temperature": 0, "num_beams": 1, "repetition_penalty": 1}
    asked = {name: value for name, value in generation.items() if name not in known and value is not None}
    return ", ".join(f"{name}={value}" for name, value in asked.items() if value != usual.get(name))
