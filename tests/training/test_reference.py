"""The reference models of `workflows/reference.yaml`: what they are, not how well they learn."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from pipeline.config.registry import load_registry
from pipeline.extraction.torch_source import seeded_build, torch_source
from pipeline.stimuli.digits import class_captions, load_digits
from pipeline.training import TrainingRecipe, load_recipes
from pipeline.training.vocabulary import merges, write_merges

PATH = "workflows/reference.yaml"
RECIPES = load_recipes(PATH)


def test_reference__is_a_registry_of_trained_models() -> None:
    registry = load_registry([PATH])
    assert [s.id for s in registry] == [r.model.id for r in RECIPES]
    assert registry.select(sets=["reference"]) == list(registry)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.model.id)
def test_reference__entry_agrees_with_itself(recipe: TrainingRecipe) -> None:
    metadata, name = recipe.model.metadata, recipe.model.id.split("/ref-")[1]
    assert recipe.directory.as_posix() == f"store/reference/{name}"
    assert name.endswith(f"-w{metadata['width']}-s{metadata['seed']}")
    assert recipe.options.seed == metadata["seed"]
    assert metadata["samples_seen"] == recipe.options.steps * recipe.options.batch_size
    assert recipe.options.steps > max(recipe.options.checkpoint_steps)


@pytest.fixture(scope="module")
def n_parameters() -> dict[str, dict[int, int]]:
    """Parameters without classifier heads: family → width → number."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for recipe in RECIPES:
        spec = recipe.model
        source = torch_source(spec.source)
        model = source.build(spec, device="meta")
        assert all(p.is_meta for p in model.parameters())
        assert source.blocks(model, "image")
        width = spec.metadata["width"]
        assert isinstance(width, int)
        found[spec.family or ""][width] = sum(
            sum(source.count_parameters(model, tower)) for tower in spec.towers
        )
    return found


def test_reference__families_and_widths(n_parameters: dict[str, dict[int, int]]) -> None:
    assert len(n_parameters) == 6
    for family, by_width in n_parameters.items():
        sizes = [by_width[w] for w in sorted(by_width)]
        assert len(sizes) >= 3
        assert sizes == sorted(sizes)
        assert sizes[-1] >= (10 if family == "ref-clip" else 30) * sizes[0], (family, sizes)


def test_reference__two_seeds_each() -> None:
    seeds = defaultdict(set)
    for recipe in RECIPES:
        seeds[recipe.model.id.rpartition("-s")[0]].add(recipe.options.seed)
    assert all(s == {0, 1} for s in seeds.values())


def test_reference__a_family_in_each_checkpoint_format() -> None:
    ends = {r.model.family: "".join(Path(r.template).suffixes) for r in RECIPES}
    assert set(ends.values()) == {".safetensors", ".pth.tar"}


@pytest.fixture(scope="module")
def initial() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of every model at initialisation, as its training begins."""
    return {
        r.model.id: {
            name: weight.detach().flatten().double()
            for name, weight in seeded_build(
                torch_source(r.model.source), r.model, r.seeds["weights"]
            ).named_parameters()
        }
        for r in RECIPES
    }


def test_reference__no_two_models_share_the_beginning_of_their_weights(
    initial: dict[str, dict[str, torch.Tensor]],
) -> None:
    """A stream that two share gives the same numbers, up to scale, in tensors of any shape."""
    n, owners, rows = 12, [], []
    for model, weights in initial.items():
        for weight in weights.values():
            beginning = weight[:n]
            # constants (biases, norms) are not drawn
            if len(beginning) == n and beginning.std() > 0:
                rows.append(beginning / beginning.norm())
                owners.append(model)
    assert len(set(owners)) == len(RECIPES)
    beginnings, owner = torch.stack(rows), np.array(owners)
    alike = ((beginnings @ beginnings.T).abs() > 1 - 1e-6).numpy()
    assert not (alike & (owner[:, None] != owner[None, :])).any()


def test_reference__no_two_models_share_an_order_or_captions() -> None:
    for use in ("order", "captions"):
        drawn = {
            tuple(torch.randperm(1200, generator=torch.Generator().manual_seed(r.seeds[use]))[:8])
            for r in RECIPES
        }
        assert len({tuple(map(int, rows)) for rows in drawn}) == len(RECIPES)


def captions() -> list[str]:
    return [*map(str, load_digits("train").columns["caption"]), *class_captions()]


def test_write_merges__size_is_the_configs(tmp_path: Path) -> None:
    size = write_merges(tmp_path / "bpe.txt.gz", captions())
    stated = {r.vocabulary_size for r in RECIPES if r.model.source == "open_clip"}
    assert stated == {size}
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz"))
    assert tokenizer.vocab_size == size


def test_write_merges__every_word_is_one_token(tmp_path: Path) -> None:
    write_merges(tmp_path / "bpe.txt.gz", captions())
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz"))
    text = "a thin, upright, medium handwritten seven"
    assert len(tokenizer.encode(text)) == 8
    assert (
        tokenizer.decode(tokenizer.encode(text)) == "a thin , upright , medium handwritten seven "
    )
    words = {w for c in captions() for w in c.replace(",", "").split()}
    assert all(len(tokenizer.encode(w)) == 1 for w in words)
    tokens = tokenizer(captions(), context_length=12)
    assert int(tokens.max()) == tokenizer.vocab_size - 1  # where the text tower reads out
    assert bool((tokens[:, -1] == 0).all())  # nothing was cut off
    assert len(torch.unique(tokens, dim=0)) == len(set(captions()))


def test_write_merges__same_bytes_and_left_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gz", tmp_path / "b.gz"
    write_merges(first, captions())
    write_merges(second, list(reversed(captions())))
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    write_merges(first, captions())
    assert first.stat().st_mtime_ns == before


def test_merges__known_words() -> None:
    # "lo" stands in all three words; then ties go alphabetically
    assert merges(["low lot log low"])[0] == ("l", "o")
    assert merges(["a"]) == []
