"""What differs between families of vision-language models, with defaults that fit most of them.

A model whose type has no adapter gets the defaults. To add an adapter, write a subclass of `Family` in a file of its
own in this folder.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tdrs.settings import SettingError, check_number

# What to do with a transparent picture: as the family's own code does; drop the transparency; put it on white.
TRANSPARENCY = ("family", "drop", "white")


def whole_number(name: str, value: object) -> None:
    """Raises SettingError unless a value is a whole number of at least 1."""
    check_number(name, value, 1, whole=True)


def true_or_false(name: str, value: object) -> None:
    """Raises SettingError unless a value is true or false."""
    if not isinstance(value, bool):
        raise SettingError(name, value, "must be true or false")


class Family:
    """The defaults.

    Attributes:
        model_type: the `model_type` of config.json; "" for models without an adapter.
        prompt_style: the prompt style of the family's own evaluation; None if there is none.
        image_settings: how pictures can be prepared: the name of each setting and a check, which raises SettingError.
        transparency: what the family's own code does with a transparent picture; see `Picture.open`.
        tokenizer_options: what loading the tokenizer needs.
        chat_template: for folders without one; "" for none.
        reads_in_pieces: whether the beginning of a prompt can be read before the rest, with the same result. It cannot
            if a token attends to later ones, or if a layer's cache forgets tokens (a sliding window).
        windows_hide: whether a sliding window hides the beginning of a longer prompt from its end.
    """

    model_type: str = ""
    prompt_style: str | None = None
    image_settings: Mapping[str, Callable[[str, object], None]] = {}
    transparency: str = "drop"
    tokenizer_options: Mapping[str, Any] = {}
    chat_template: str = ""
    reads_in_pieces: bool = False
    windows_hide: bool = True

    def image_kwargs(self, processor: Any, image: Mapping[str, Any]) -> dict[str, Any]:
        """What calls of the processor receive for the image settings `image`."""
        return dict(image)

    def prepare_processor(self, processor: Any, source: str, revision: str | None, image: Mapping[str, Any]) -> None:
        """Change a loaded processor as the image settings ask for."""

    def processor_values(self, config: Any) -> dict[str, Any]:
        """Attributes that the processor must have for a model's configuration."""
        return {}

    def processor_text(self, text: str) -> str:
        """A prompt in the chat template, as the processor takes it."""
        return text

    def change_pixels(self, config: Any, pixels: Any, change: Callable[[Any], Any]) -> Any:
        """`pixel_values` after a change, such as noise.

        Args:
            config: the model's configuration.
            pixels: the processor's `pixel_values`.
            change: gives new values, of the same shape and type.
        """
        return change(pixels)

    def tile_side(self, config: Any) -> int | None:
        """The rows of the square of image tokens of a picture, or of each tile that it is cut into.

        0: they form no squares; None: not known.
        """
        return None

    def token_grid(self, config: Any, inputs: Mapping[str, Any], count: int) -> tuple[int, int]:
        """Rows and columns of an image's tokens, for figures.

        Args:
            config: the model's configuration.
            inputs: the processor's tensors for one prompt.
            count: the number of image tokens.

        Raises:
            SettingError: the tokens form no square, for example because the picture was cut into tiles.
        """
        known = self.tile_side(config)
        side = round(count**0.5) if known is None else known  # four tiles may have as many tokens as one square
        if side * side != count:
            raise SettingError("backbone", count, "the picture was cut into several tiles, so there is no single map")
        return side, side
