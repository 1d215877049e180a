"""Decode a picture to RGB pixels: as a person sees them, and as the model's own code gets them.

The picture is turned as its EXIF orientation says, as `datasets`' decoder does. An animation gives its first frame.
Then PIL converts to RGB, as the models' own code does. PIL clips values above 255, which makes a 16-bit picture white,
so such a picture is scaled to 8 bits instead.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What is done with transparency. LLaVA's and InternVL's code calls convert("RGB"), which drops it: a pixel keeps the
# colour that is stored beneath it. Qwen's code puts pictures of mode RGBA on white, and no others.
TRANSPARENCY = ("drop", "white", "rgba_white")


def decode(data: bytes, transparency: str = "drop") -> Image.Image:
    """The picture of encoded bytes, upright, in RGB.

    Args:
        transparency: `drop`; `white` puts every kind of transparent picture on white; `rgba_white` only mode RGBA.

    Raises:
        OSError: the bytes are corrupt or no picture, or hold numbers whose range is not known.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        image = _upright(image)
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        if transparency == "white" and image.has_transparency_data:
            image = image.convert("RGBA")
        if transparency != "drop" and image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except UnidentifiedImageError:  # its message names an address in memory
        raise OSError("the bytes are no picture in a known format") from None
    except (
        ValueError,
        SyntaxError,
        TypeError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:  # PIL raises these, too
        raise OSError(str(error) or type(error).__name__) from error


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is stored, if the EXIF data cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # viewers show a picture with a damaged EXIF block; PIL raises many kinds of errors
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits a pixel (modes I;16, I, F) in 8 bits.

    16-bit values are scaled. In the wider modes it is not known which value is white: values up to 255 are taken as
    they are, and whole numbers up to 65535 are taken as 16-bit values.

    Raises:
        ValueError: the values are outside of these ranges.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    whole = image.mode.startswith("I")
    if low >= 0 and (high == 0 or 1 < high <= 255 or (whole and high == 1)) and not image.mode.startswith("I;16"):
        return image.convert("L")
    if whole and low >= 0 and high <= 65535:
        return Image.fromarray((values / 257).round().astype(np.uint8))
    raise ValueError(f"grey values from {low:g} to {high:g} in mode {image.mode}: it is not known which is white")
