"""Resolve what a caller named, or left out, among what a store holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.encoder import Encoder
from pipeline.errors import InputError
from pipeline.modality import MODALITIES
from pipeline.suggest import did_you_mean
from pipeline.types import Modality


def resolve_one(given: str | None, choices: Sequence[str], argument: str, what: str) -> str:
    """Return the choice given, or the only one; ambiguity is an error that lists the choices."""
    if given is None:
        if len(choices) == 1:
            return choices[0]
        if not choices:
            raise InputError(f"there is no {what} in this store yet.")
        raise InputError(f"which {what} is meant? Pass {argument}= one of: {', '.join(choices)}.")
    if given not in choices:
        raise InputError(
            f"there is no {what} {given!r}.{did_you_mean(given, choices)} "
            f"There are: {', '.join(choices) or 'none'}."
        )
    return given


def unique(values: Iterable[str]) -> list[str]:
    """Return the distinct values, in order."""
    return list(dict.fromkeys(values))


def choose_representation(
    known: Sequence[Encoder],
    model: str,
    *,
    layer: str | None,
    checkpoint: str | None,
    tower: str | None,
    place: str,
) -> tuple[Encoder, str]:
    """Return the encoder and layer that `Store.activations` was asked for.

    Parameters
    ----------
    place
        The store's path or URL, for error messages.
    """
    if "@" in model:
        model, _, rest = model.partition("@")
        checkpoint, _, rest = rest.partition("#")
        tower, _, of_layer = rest.partition("/")
        layer = of_layer or layer
    found = [e for e in known if e.model == model]
    if not found:
        models = sorted({e.model for e in known})
        raise InputError(
            f"there is no model {model!r} in {place}."
            f"{did_you_mean(model, models)} store.catalog() lists them."
        )
    tower = resolve_one(tower, unique(e.tower for e in found), "tower", f"tower of {model}")
    found = [e for e in found if e.tower == tower]
    checkpoint = resolve_one(
        checkpoint, [e.checkpoint for e in found], "checkpoint", f"checkpoint of {model}"
    )
    encoder = next(e for e in found if e.checkpoint == checkpoint)
    return encoder, resolve_one(layer, list(encoder.layers), "layer", f"layer of {encoder.id}")


def choose_encoders(
    known: Iterable[Encoder], chosen: str | Iterable[str], modality: Modality, place: str
) -> list[Encoder]:
    """Return encoders of a modality, as `Store.select_encoders` does.

    Parameters
    ----------
    place
        The store's path or URL, for error messages.
    """
    known = [e for e in known if e.modality == modality]
    if chosen == "all":
        return known
    if chosen == "final":
        return [e for e in known if e.final]
    by_id = {e.id: e for e in known}
    ids = [chosen] if isinstance(chosen, str) else list(chosen)
    for i in ids:
        if i not in by_id:
            raise InputError(
                f"there is no {modality} encoder {i!r} in {place}.{did_you_mean(i, by_id)}"
            )
    return [by_id[i] for i in ids]


def default_modality(known: Iterable[Encoder]) -> Modality:
    """Return the first of all modalities that any encoder has."""
    present = {e.modality for e in known}
    return next((m for m in MODALITIES if m in present), MODALITIES[0])
