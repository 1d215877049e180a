"""What differs between families of vision-language models, with defaults that fit most of them.

To add a family, write a subclass of `Family` in a file of its own and list it in `FAMILIES` (`__init__.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tdrs.settings import check_number

# What to do with a transparent picture: as the family's own code does; drop the transparency; put it on white.
TRANSPARENCY = ("family", "drop", "white")


class ImagesOnly:
    """A mixin for processor classes: accepts that there is no video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def whole_number(name: str, value: object) -> None:
    """Raises SettingError unless a value is a whole number of at least 1."""
    check_number(name, value, 1, whole=True)


class Family:
    """The defaults.

    Attributes:
        model_type: the `model_type` of config.json.
        image_settings: how pictures can be prepared: the name of each setting and a check, which raises SettingError.
        transparency: what the family's own code does with a transparent picture; see `Picture.open`.
        image_opening: the special token that the chat template may put before the image token; "" for none.
        tokenizer_options: what loading the tokenizer needs.
        images_only: the processor class without video and its image processor class, for installations without
            torchvision; None if the family's processor does not need torchvision.
    """

    model_type: str = ""
    image_settings: Mapping[str, Callable[[str, object], None]] = {}
    transparency: str = "drop"
    image_opening: str = ""
    tokenizer_options: Mapping[str, Any] = {}
    images_only: tuple[Any, Any] | None = None

    def image_kwargs(self, processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
        """What calls of the processor receive for the image settings `image`."""
        return dict(image)

    def prepare_processor(self, processor: Any, source: str, revision: str | None, image: Mapping[str, Any]) -> None:
        """Change a loaded processor as the image settings ask for."""

    def processor_values(self, config: Any) -> dict[str, Any]:
        """Attributes that the processor must have for a model's configuration."""
        return {}

    def pack(self, embeddings: Sequence[torch.Tensor]) -> Any:
        """The image embeddings of a batch, (tokens, width) each, in the form that the model's forward takes."""
        return list(embeddings)
