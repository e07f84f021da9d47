"""From an image file to 8-bit RGB pixels: one rule for every kind of file.

Every model sees what these rules make of a file, and the store records their version and that of
Pillow: other decoders, and other releases, do not agree to the bit.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

RULES = {
    "orientation": "as EXIF says",
    "16 bits": "the upper 8 of each channel",
    "transparency": "on white",
    "palette": "its colours",
    "CMYK": "Pillow's conversion; colour profiles are ignored",
    "animation": "the first frame",
    "greyscale": "three equal channels",
}
"""What becomes of images that are not plain 8-bit RGB; recorded with the stimuli."""

_NO_RANGE = "its pixels are {mode}, which have no agreed range: convert it to 8 or 16 bits"


def as_image(pixels: NDArray[np.uint8]) -> Image:
    """Return pixels `(height, width)` or `(height, width, 3)` as an RGB image."""
    from PIL import Image

    return Image.fromarray(pixels).convert("RGB")


def decode(content: bytes) -> Image:
    """Decode an image file by `RULES`.

    Returns
    -------
    PIL.Image.Image
        8-bit RGB, upright.

    Raises
    ------
    ValueError
        Where it is not a whole image that Pillow can read, with the reason.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("it is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, and refuses those of twice that size
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # and of odd metadata, which pixels do not depend on
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
            image: Image.Image = Image.open(io.BytesIO(content))
            image.load()
            return to_rgb(image, image.format)
    except UnidentifiedImageError:
        raise ValueError("it is no image that Pillow can read") from None
    except Exception as error:  # of any type: decoders meet damaged bytes
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(why) from None


def to_rgb(image: Image, kind: str | None = None) -> Image:
    """Apply `RULES` to an image that Pillow has loaded.

    Parameters
    ----------
    kind
        Pillow's name of the file's format. Before version 11, Pillow has 16-bit PNG as integers.

    Raises
    ------
    ValueError
        Where its pixels are floats or 32-bit integers.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode == "F" or (mode == "I" and kind != "PNG"):
        raise ValueError(_NO_RANGE.format(mode="floats" if mode == "F" else "32-bit integers"))
    if mode == "I" or mode.startswith("I;16"):
        grey: NDArray[Any] = np.asarray(upright).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return upright.convert("RGB")


def decoder() -> dict[str, Any]:
    """Return what the store records of how images were decoded."""
    from PIL import __version__

    return {"decoder": f"Pillow {__version__}", "rules": dict(RULES)}
