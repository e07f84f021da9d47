"""One stimulus in any form that a person's code may give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stimuli.decode import as_image, to_rgb
from pipeline.stimuli.ids import array_id, text_id
from pipeline.types import Modality

ITEMS = (
    "an item is an image of Pillow, a text, or an array or tensor; a pair of one of these and a "
    "label, a caption or a list of captions; or a mapping with keys such as image, caption, array "
    "and label"
)


@dataclass
class Item:
    """One item, whatever form it had."""

    image: NDArray[np.uint8] | None = None
    """RGB pixels."""
    array: NDArray[Any] | None = None
    caption: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    def id_of(self, modality: Modality) -> str:
        """Return the content id; empty where it has none of the modality."""
        if modality == "text":
            return text_id(self.caption) if self.caption else ""
        values = self.image if modality == "image" else self.array
        return "" if values is None else array_id(values)

    @property
    def n_bytes(self) -> int:
        """Memory of the item once it is made; an image of Pillow has four bytes a pixel."""
        pixels = 0 if self.image is None else 4 * self.image.shape[0] * self.image.shape[1]
        return pixels + (0 if self.array is None else self.array.nbytes)


def as_item(raw: Any, caption_index: int) -> Item:
    """Return an item of any form.

    Raises
    ------
    ValueError
        Where it has another form, or cannot be a stimulus.
    """
    fields = _fields(raw)
    image, array, caption = (fields.pop(k, None) for k in ("image", "array", "caption"))
    if "text" in fields:
        if caption is not None:
            raise ValueError("it has both a caption and a text")
        caption = fields.pop("text")
    made = Item(fields={name: _scalar(value) for name, value in fields.items()})
    if isinstance(made.fields.get("label"), float):
        raise ValueError(
            f"its label is {made.fields['label']}, but classes are whole numbers or names; put "
            "other numbers under another key"
        )
    if image is not None:
        made.image, transformed = _pixels(image)
        array = transformed if array is None else array
    if array is not None:
        made.array = _numbers(array)
    if isinstance(caption, list | tuple):
        if caption_index >= len(caption):
            raise ValueError(
                f"it has {len(caption)} captions, so there is none at caption_index "
                f"{caption_index}, counted from 0"
            )
        caption = caption[caption_index]
    made.caption = "" if caption is None else str(caption)
    if made.image is None and made.array is None and not made.caption.strip():
        raise ValueError("it has neither an image, nor a text, nor an array")
    return made


def _fields(raw: Any) -> dict[str, Any]:
    """Return an item as a mapping."""
    if isinstance(raw, Mapping):
        return {str(name): value for name, value in raw.items()}
    if isinstance(raw, list | tuple):
        if len(raw) == 1:
            return _fields(raw[0])
        if len(raw) != 2 or isinstance(raw[0], list | tuple | Mapping):
            raise ValueError(f"it is a {type(raw).__name__} of {len(raw)}, but {ITEMS}")
        first, second = _fields(raw[0]), _scalar(raw[1])
        if isinstance(second, list | tuple) and all(isinstance(c, str) for c in second):
            return {**first, "caption": second}
        if isinstance(second, str) and "caption" not in first:
            return {**first, "caption": second}
        if not is_scalar(second):
            raise ValueError(f"beside its first part it has {type_name(second)}, but {ITEMS}")
        return {**first, "label": second}
    if isinstance(raw, str):
        return {"caption": raw}
    if _is_picture(raw) or isinstance(raw, np.ndarray) or _is_tensor(raw):
        return {"image": raw}
    raise ValueError(f"it is {type_name(raw)}, but {ITEMS}")


def _pixels(value: Any) -> tuple[NDArray[np.uint8] | None, Any]:
    """Return what stands for an image: as RGB pixels, or as numbers for networks that take them."""
    if _is_picture(value):
        try:
            value.load()
        except Exception as error:  # of any type: decoders meet damaged bytes
            raise ValueError(str(error).strip().split("\n")[0] or type(error).__name__) from None
        return np.asarray(to_rgb(value)), None
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size:
        pixels = value.ndim == 2 or value.shape[2:] == (3,)
        return (np.asarray(as_image(value)), None) if pixels else (None, value)
    return None, value


def _numbers(value: Any) -> NDArray[Any]:
    """Return an array or tensor as numbers that are finite."""
    if _is_tensor(value):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"its tensor cannot become an array of NumPy: {error}") from None
    if not isinstance(value, np.ndarray):
        raise ValueError(f"its array is {type_name(value)}")
    if value.dtype.kind not in "iufb" or not value.size:
        raise ValueError(f"its array has dtype {value.dtype} and shape {value.shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError("it has values that are not finite")
    return value


def _scalar(value: Any) -> Any:
    """Return the number in a 0-dimensional array or tensor; other values as they are."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_scalar(value: Any) -> bool:
    """Whether a value can be that of a column."""
    return value is None or isinstance(value, str | int | float)


def _is_picture(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor; torch need not be imported to know."""
    return hasattr(value, "detach") and hasattr(value, "numpy")


def type_name(value: Any) -> str:
    """Name the type of a value, for messages."""
    return "None" if value is None else f"a value of type {type(value).__name__}"
