"""Data sets of the Hugging Face hub and of local folders, loaded by the library `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from pipeline.errors import InputError
from pipeline.stimuli.source import FileSpec
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

TIMEOUT = 10
"""Seconds to wait for the hub to answer."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HuggingFaceSpec(FileSpec):
    """A split of a data set that the library `datasets` reads."""

    source: Literal["huggingface"]
    """A data set of the Hugging Face hub, or in its formats."""
    dataset: str
    """Name on the hub, such as `minhuh/prh`; or a local folder: one that `save_to_disk` wrote, or
    one of Parquet, JSON Lines, CSV or image files that `load_dataset` takes. Code that comes with
    a data set is never run."""
    config: str | None = None
    """Configuration of the data set; may be left out where there is one, or a default."""
    split: str | None = None
    """Split, such as `test` or `train[:1000]`; may be left out where there is one. All splits of
    a configuration are downloaded."""
    revision: str | None = None
    """Branch, tag or commit on the hub; default: its main branch. The commit is recorded."""
    image: str | None = "auto"
    """Column of images; `auto`: the only one of type Image, if there is one; null: none."""
    caption: str | None = "auto"
    """Column of captions, or of lists of captions; `auto`: `caption`, `captions` or `text`, if
    there is one; null: none."""
    caption_index: int = Field(default=0, ge=0)
    """Which caption of a list, counted from 0."""
    label: str | None = "auto"
    """Column of classes; `auto`: `label`, else the only one of type ClassLabel, if there is one;
    null: none."""
    group: str | None = "group"
    """Column of groups, if there is one; null: none."""
    id: str | None = "id"
    """Column of ids that differ, if there is one; null: none."""

    def absolute(self) -> Self:
        """Return the spec with an absolute path, if it names a folder."""
        if not Path(self.dataset).is_dir():
            return self
        return self.model_copy(update={"dataset": str(Path(self.dataset).absolute())})


@dataclass(frozen=True)
class LoadedDataset:
    """A split, and what is known of where it comes from."""

    rows: Dataset
    name: str
    details: Mapping[str, Any]


def load(spec: HuggingFaceSpec) -> LoadedDataset:
    """Open a split, downloading what is not cached.

    Raises
    ------
    InputError
        Where `datasets` is not installed, or cannot load the data set.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "stimuli: source: huggingface needs the library datasets, which is not installed: "
            "pip install 'consilience[datasets]'."
        ) from None
    folder = Path(spec.dataset)
    if not folder.is_dir() and _is_path(spec.dataset):
        raise InputError(
            f"stimuli: there is no folder {folder} (paths are relative to {Path.cwd()}). dataset: "
            "is a folder, or a name on the hub such as minhuh/prh."
        )
    if folder.is_dir() and spec.revision is not None:
        raise InputError(
            f"stimuli: {folder} is a local folder, which has no revisions: leave out revision:."
        )
    try:
        return _load_folder(spec, folder) if folder.is_dir() else _load_hub(spec)
    except InputError:
        raise
    except Exception as error:  # of any type: builders of many formats meet many faults
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
            error = error.__cause__  # says what is wrong, where the other says that something is
        why = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(
            f"data set {spec.dataset} cannot be loaded: {why}. It has to be one that "
            f"datasets.load_dataset({spec.dataset!r}) loads."
        ) from None


def _is_path(dataset: str) -> bool:
    """Whether it can only be meant as a path: names on the hub have one slash at most."""
    return dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or "\\" in dataset


def _load_folder(spec: HuggingFaceSpec, folder: Path) -> LoadedDataset:
    import datasets

    name = folder.resolve().name
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        split = _chosen_split(spec, splits)
        return _loaded(spec, datasets.load_from_disk(str(folder / split)), name, split)
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        own = str(rows.split) if rows.split is not None else None
        if spec.split not in (None, own):
            raise InputError(
                f"data set {folder} is a single split{f', {own}' if own else ''}: leave out split:."
            )
        return _loaded(spec, rows, name, own)
    return _built(spec, datasets.load_dataset_builder(str(folder), spec.config), name)


def _loaded(spec: HuggingFaceSpec, rows: Dataset, name: str, split: str | None) -> LoadedDataset:
    details = {
        "fingerprint": rows._fingerprint,
        "config": rows.info.config_name or None,
        "split": split,
    }
    named = f"{name}-{split}" if split else name
    return LoadedDataset(rows.with_format(None), named, details)


def _built(spec: HuggingFaceSpec, builder: Any, name: str) -> LoadedDataset:
    """Build a split as Arrow files, unless that is done, and open it."""
    split = _chosen_split(spec, builder.info.splits or builder.config.data_files or ())
    builder.download_and_prepare()
    return _loaded(spec, builder.as_dataset(split), name, split)


def _chosen_split(spec: HuggingFaceSpec, splits: Iterable[str]) -> str:
    names = [str(s) for s in splits]
    wanted = spec.split
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"data set {spec.dataset} has {len(names)} splits. Set split: to one of "
            f"{', '.join(names)}."
        )
    plain = re.split(r"[\[+]", wanted)[0]
    if plain not in names:
        raise InputError(
            f"data set {spec.dataset} has no split {plain!r}.{did_you_mean(plain, names)} Set "
            f"split: to one of {', '.join(names)}."
        )
    return wanted


def _load_hub(spec: HuggingFaceSpec) -> LoadedDataset:
    import datasets

    commit, online = _resolve(spec)
    with _hub_errors(spec):
        if online:
            builder = datasets.load_dataset_builder(spec.dataset, spec.config, revision=commit)
        else:
            builder = _cached_builder(spec, commit)
        if builder.hash != commit:  # the hub failed since, and `datasets` took what was cached last
            raise _unreachable(spec)
        loaded = _built(spec, builder, spec.dataset.split("/")[-1])
    return LoadedDataset(loaded.rows, loaded.name, {**loaded.details, "revision": commit})


def _resolve(spec: HuggingFaceSpec) -> tuple[str, bool]:
    """Return the commit of a revision, and whether the hub said so or the cache.

    Without the hub, `datasets` takes the commit that was cached last, whatever revision it is
    asked for.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

    name, revision = spec.dataset, spec.revision or constants.DEFAULT_REVISION
    try:
        with _hub_errors(spec):
            info = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT)
            with suppress(EntryNotFoundError):  # keeps in the cache which commit the revision is
                hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
        return str(info.sha), True
    except (OSError, HTTPError) as error:
        if _COMMIT.fullmatch(revision):
            return revision, False
        # folders as in https://huggingface.co/docs/huggingface_hub/guides/manage-cache
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
        ref = folder / "refs" / revision
        if ref.is_file():
            return ref.read_text("utf-8").strip(), False
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        raise _unreachable(spec, status) from None


def _cached_builder(spec: HuggingFaceSpec, commit: str) -> Any:
    """Return a builder of what is cached of a commit, which needs no network."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    *owner, name = spec.dataset.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder /= "___".join([*owner, camelcase_to_snakecase(name)])
    found = sorted(folder.glob(f"{spec.config or '*'}/*/{commit}"))
    if not found:
        raise _unreachable(spec)
    config, version = found[0].parts[-3:-1]
    if len(found) > 1:
        configs = ", ".join(f.parts[-3] for f in found)
        raise InputError(
            f"data set {spec.dataset}: several configurations are in the cache, and which is the "
            f"default is not known without the hub. Set config: to one of {configs}."
        )
    return Cache(
        dataset_name=name, config_name=config, version=version, hash=commit, repo_id=spec.dataset
    )


def _unreachable(spec: HuggingFaceSpec, status: int | None = None) -> InputError:
    from huggingface_hub import constants

    why = "is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "cannot be reached"
    if status is not None:
        why = f"answers with status {status}"
    wanted = "".join(
        f", {key} {value}" for key in ("config", "revision") if (value := getattr(spec, key))
    )
    return InputError(
        f"data set {spec.dataset}: the hub {constants.ENDPOINT} {why}, and {spec.dataset}{wanted} "
        f"is not in the cache of this machine ({constants.HF_HOME}). Load it once where there is a "
        "network, with the same HF_HOME; or name a local folder."
    )


@contextmanager
def _hub_errors(spec: HuggingFaceSpec) -> Iterator[None]:
    """Say what is wrong with a name or a revision, or with the right to read it."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named, hub = f"data set {spec.dataset}", constants.ENDPOINT
    try:
        yield
    except RevisionNotFoundError:
        raise InputError(
            f"{named}: the hub {hub} has no revision {spec.revision!r} of it. Set revision: to a "
            "branch, a tag or a full commit, or leave it out for the main branch."
        ) from None
    except (RepositoryNotFoundError, DatasetNotFoundError) as error:
        if isinstance(error, GatedRepoError) or isinstance(error.__cause__, GatedRepoError):
            raise InputError(
                f"{named} is gated: its owner decides who may read it. Ask for access at "
                f"{hub}/datasets/{spec.dataset}, and log in with `hf auth login`, or set HF_TOKEN."
            ) from None
        raise InputError(
            f"{named}: the hub {hub} has none of this name, or it is private, and there is no such "
            f"folder (paths are relative to {Path.cwd()}). If it is private, log in with `hf auth "
            "login`, or set HF_TOKEN."
        ) from None
    except HFValidationError:
        raise InputError(
            f"stimuli: {spec.dataset!r} is no name on the hub, which is like minhuh/prh, and there "
            f"is no such folder (paths are relative to {Path.cwd()})."
        ) from None
