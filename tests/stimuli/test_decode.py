"""What becomes of every kind of image file: one rule each, on a file made for it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from pictures import encoded, photo, png_16, turned_by_exif
from PIL import Image

from pipeline.stimuli.decode import RULES, decode, to_rgb

SMALL = photo()


def pixels(content: bytes) -> np.ndarray:
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_decode__plain_rgb() -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(pixels(encoded(SMALL, kind)), SMALL)
    jpeg = pixels(encoded(SMALL, "JPEG", quality=95, subsampling=0)).astype(int)
    assert abs(jpeg - SMALL).mean() < 4


UPRIGHT = {  # by the EXIF standard: where row 0 and column 0 of the file lie in the picture
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_decode__exif_orientation(orientation: int) -> None:
    found = pixels(turned_by_exif(SMALL, orientation))
    np.testing.assert_array_equal(found, UPRIGHT[orientation](SMALL))


def test_decode__16_bits_keep_the_upper_8() -> None:
    deep = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 341 + 77
    grey = (deep >> 8).astype(np.uint8)
    three = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(pixels(png_16(deep)), three)
    np.testing.assert_array_equal(pixels(encoded(deep, "TIFF")), three)
    colour = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=2)
    np.testing.assert_array_equal(pixels(png_16(colour)), (colour >> 8).astype(np.uint8))


def test_decode__16_bits_of_an_older_pillow() -> None:
    """Before version 11 it had them as 32-bit integers, and upright copies forget the format."""
    deep = np.arange(6, dtype=np.int32).reshape(2, 3) * 10000
    found = np.asarray(to_rgb(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(found[..., 1], deep >> 8)


def test_decode__greyscale_is_three_equal_channels() -> None:
    grey = SMALL[:, :, 0]
    np.testing.assert_array_equal(pixels(encoded(grey)), np.stack([grey] * 3, axis=2))
    bits = Image.fromarray(grey).point(lambda v: 255 * (v > 127)).convert("1")
    np.testing.assert_array_equal(
        pixels(encoded(bits)), np.stack([255 * np.asarray(bits).astype(np.uint8)] * 3, axis=2)
    )


def test_decode__palette_is_its_colours() -> None:
    image = Image.fromarray(SMALL).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))
    assert len(np.unique(pixels(encoded(image, "GIF")).reshape(-1, 3), axis=0)) <= 16


def test_decode__transparency_is_on_white() -> None:
    alpha = np.zeros(SMALL.shape[:2], np.uint8)
    alpha[:, 4:8], alpha[:, 8:] = 51, 255  # 51 is a fifth
    found = pixels(encoded(np.dstack([SMALL, alpha]))).astype(float)
    np.testing.assert_array_equal(found[:, :4], 255)
    np.testing.assert_allclose(found[:, 4:8], 0.2 * SMALL[:, 4:8] + 0.8 * 255, atol=1)
    np.testing.assert_array_equal(found[:, 8:], SMALL[:, 8:])
    grey = Image.merge("LA", [Image.fromarray(SMALL[:, :, 0]), Image.fromarray(alpha)])
    np.testing.assert_array_equal(pixels(encoded(grey))[:, :4], 255)
    np.testing.assert_array_equal(pixels(encoded(grey))[:, 8:, 1], SMALL[:, 8:, 0])


def test_decode__palette_with_a_transparent_colour() -> None:
    image = Image.fromarray(SMALL).quantize(8)
    found = pixels(encoded(image, transparency=3))
    see_through = np.asarray(image) == 3
    assert see_through.any()
    np.testing.assert_array_equal(found[see_through], 255)
    np.testing.assert_array_equal(
        found[~see_through], np.asarray(image.convert("RGB"))[~see_through]
    )


def test_decode__cmyk() -> None:
    found = pixels(encoded(Image.fromarray(SMALL).convert("CMYK"), "TIFF"))
    assert abs(found.astype(int) - SMALL).max() <= 1
    jpeg = pixels(encoded(Image.fromarray(SMALL).convert("CMYK"), "JPEG", quality=98)).astype(int)
    assert abs(jpeg - SMALL).mean() < 4  # not inverted


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_decode__animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (40, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 2
    assert (pixels(content) == 40).all()


def test_decode__colour_profile_is_ignored() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(pixels(encoded(SMALL, icc_profile=profile)), SMALL)


def test_decode__no_agreed_range() -> None:
    for dtype, named in ((np.float32, "floats"), (np.int32, "32-bit integers")):
        content = encoded(SMALL[:, :, 0].astype(dtype), "TIFF")
        with pytest.raises(ValueError, match=f"its pixels are {named}, which have no agreed range"):
            decode(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_decode__truncated_anywhere(kind: str) -> None:
    """A file cut within its pixels is never half a picture."""
    whole = encoded(photo(3, 64, 64), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(ValueError, match=r"\w"):
            decode(whole[: int(share * len(whole))])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"not a picture", "it is no image that Pillow can read"),
        (b"\xff\xd8\xff\xe0" + bytes(50), r"it is no image|truncated|marker"),
    ],
)
def test_decode__no_image(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(content)


def test_decode__a_bomb_is_refused_and_a_large_image_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="could be decompression bomb"):
        decode(encoded(np.zeros((20, 20), np.uint8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(np.zeros((12, 12), np.uint8))).size == (12, 12)


def test_rules__are_tested() -> None:
    assert set(RULES) == {
        "orientation", "16 bits", "transparency", "palette", "CMYK", "animation", "greyscale",
    }  # fmt: skip
