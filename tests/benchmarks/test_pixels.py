"""Pixels as people see them, beside `datasets`' own decoder and the conversion that models' own code does."""

import io
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

from tdrs.benchmarks.benchmark import Picture
from tdrs.benchmarks.pixels import decode


def encoded(image: Image.Image, kind: str = "PNG", **values: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **values)
    return buffer.getvalue()


def by_datasets(data: bytes) -> Image.Image:
    return datasets.Image().decode_example({"bytes": data, "path": None})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_and_mirrors(orientation: int, kind: str) -> None:
    image = Image.new("RGB", (40, 24), "blue")
    image.paste("red", (0, 0, 20, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    seen = decode(data)
    assert seen.size == ((24, 40) if orientation > 4 else (40, 24))
    assert np.array_equal(seen, by_datasets(data).convert("RGB"))
    assert np.array_equal(seen, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert Picture(lambda: data).blank().open().size == seen.size


def test_a_damaged_exif_block_does_not_hide_the_picture() -> None:
    data = encoded(
        Image.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\x99" * 30
    )
    assert decode(data).size == (8, 4)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "PA"])
def test_modes_are_what_the_models_own_code_makes_of_them(mode: str) -> None:
    ramp = Image.fromarray(np.linspace(0, 255, 256).reshape(16, 16).astype(np.uint8))
    colors = Image.merge("RGB", [ramp, ramp.rotate(90), ramp.rotate(180)])
    kind = {"CMYK": "TIFF", "PA": "TIFF"}.get(mode, "PNG")
    image = colors.convert("P").convert("PA") if mode == "PA" else colors.convert(mode)
    data = encoded(image.convert("LA") if mode == "PA" else image, kind)
    assert np.array_equal(decode(data), Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data), by_datasets(data).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    seen = np.asarray(decode(encoded(Image.fromarray(ramp), kind)))
    assert np.array_equal(seen[..., 0], np.round(ramp / 257))
    assert (seen[..., 0] == seen[..., 1]).all()
    dark = np.full((4, 4), 257 * 3, dtype=np.uint16)
    assert (np.asarray(decode(encoded(Image.fromarray(dark), kind))) == 3).all()


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.full((4, 4), 128, dtype=np.int32), 128),
        (np.full((4, 4), 65535, dtype=np.int32), 255),
        (np.full((4, 4), 0, dtype=np.float32), 0),
        (np.full((4, 4), 200.0, dtype=np.float32), 200),
        (np.full((4, 4), 0.5, dtype=np.float32), None),
        (np.full((4, 4), -3, dtype=np.int32), None),
        (np.full((4, 4), 1 << 20, dtype=np.int32), None),
        (np.full((4, 4), np.nan, dtype=np.float32), None),
    ],
)
def test_wider_numbers_are_taken_or_refused(values: np.ndarray, seen: int | None) -> None:
    data = encoded(Image.fromarray(values), "TIFF")
    if seen is None:
        with pytest.raises(OSError, match="it is not known which is white"):
            decode(data)
    else:
        assert (np.asarray(decode(data)) == seen).all()


def test_transparency_is_a_setting() -> None:
    logo = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (2, 2, 6, 6))
    data = encoded(logo)
    assert np.asarray(decode(data)).max() == 0  # black on black: what convert("RGB") makes of it
    for how in ("white", "rgba_white"):
        seen = np.asarray(decode(data, how))
        assert (seen[0, 0] == 255).all()
        assert (seen[4, 4] == 0).all()
    half = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))
    assert np.asarray(decode(half, "white"))[0, 0].tolist() == [127] * 3
    grey = encoded(Image.new("LA", (2, 2), (0, 0)))
    palette = encoded(Image.new("P", (2, 2), 0), transparency=0)
    for other in (grey, palette):
        assert np.asarray(decode(other, "white")).min() == 255
        assert np.asarray(decode(other, "rgba_white")).max() == 0
        assert np.asarray(decode(other)).max() == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    values = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **values)
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"<html>", encoded(Image.new("RGB", (50, 50)), "JPEG")[:300]])
def test_what_is_no_picture_is_an_os_error(data: bytes) -> None:
    with pytest.raises(OSError) as error:  # noqa: PT011
        decode(data)
    assert "0x" not in str(error.value)
