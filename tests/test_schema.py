"""What the store holds is declared once, and a dataset that strays is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from pipeline import schema
from pipeline.errors import InputError
from pipeline.schema import ALIGNMENT, ENCODER, Slot, State, Variable, layer_variable, validate

TABLES = {
    name: table
    for name, table in vars(schema).items()
    if isinstance(table, dict) and name.isupper() and not name.startswith("_")
}
DIMENSIONS = {
    "stimulus", "feature", "checkpoint", "layer", "block", "representation", "representation_x",
    "representation_y", "encoder", "encoder_x", "encoder_y", "measure", "moment", "permutation",
    "aggregate", "height", "width", "channel",
}  # fmt: skip


def test_tables__are_all_there() -> None:
    assert set(TABLES) == {
        "STIMULI", "SUBSET", "ACTIVATIONS", "SIMILARITY_GRID", "CALIBRATION",
        "ANALYTIC_CALIBRATION", "ALIGNMENT", "ENCODER",
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables__names_dimensions_dtypes_prose(name: str) -> None:
    for key, variable in TABLES[name].items():
        assert key == variable.name
        assert set(variable.dims) <= DIMENSIONS
        assert variable.description.endswith(".")
        assert variable.dtype == "str" or np.dtype(variable.dtype)


@pytest.mark.parametrize("name", TABLES)
def test_fill_value__is_of_the_declared_kind(name: str) -> None:
    for variable in TABLES[name].values():
        fill = variable.fill_value
        if variable.dtype == "str":
            assert fill == ""
        else:
            kept = np.full(1, fill, dtype=variable.dtype)
            np.testing.assert_equal(kept[0], fill)


def test_fill_value__by_kind() -> None:
    def fill(dtype: str, given: object = None) -> object:
        return Variable("v", ("stimulus",), dtype, "Prose.", fill=given).fill_value

    assert np.isnan(fill("float32"))
    assert fill("str") == ""
    assert fill("bool") is False
    assert fill("uint8") == 0
    assert fill("int64") == 0
    assert fill("int64", -1) == -1


def test_states__are_what_is_stored() -> None:
    assert [s.name.lower() for s in State] == ["missing", "done", "undefined", "failed"]
    assert list(State) == [0, 1, 2, 3]
    assert list(Slot) == [0, 1, 2]
    assert (
        "0 missing, 1 done, 2 undefined, 3 failed." in schema.SIMILARITY_GRID["state"].description
    )


def test_layer_variable__has_a_feature_axis_of_its_own() -> None:
    variable = layer_variable("blocks.3", 3)
    assert variable.dims == ("checkpoint", "stimulus", "feature_blocks.3")
    assert variable.dtype == "float32"
    assert np.isnan(variable.fill_value)


def encoders(**variables: object) -> xr.Dataset:
    return xr.Dataset({"step": ("encoder", [1, 2]), **variables})


def test_validate__accepts() -> None:
    dataset = encoders(
        flops=("encoder", np.ones(2, np.float32)),
        family=("encoder", np.array(["a", "b"], dtype=object)),
        final=("encoder", [True, False]),
        another=("x", [1]),  # not declared: nobody's business
    )
    validate(dataset, ENCODER, ["step", "flops"])
    validate(dataset.set_coords("family"), ENCODER, ["family"])


@pytest.mark.parametrize("dtype", ["U2", object, np.dtypes.StringDType()])
def test_validate__strings_of_every_make(dtype: object) -> None:
    validate(encoders(model=("encoder", np.array(["a", "b"], dtype=dtype))), ENCODER)


def test_validate__missing() -> None:
    with pytest.raises(InputError, match=r"the dataset has no variable 'flops': Floating-point op"):
        validate(encoders(), ENCODER, ["step", "flops"])


def test_validate__dimensions() -> None:
    dataset = xr.Dataset({"score": (("encoder_y", "encoder_x"), np.ones((2, 3)))})
    with pytest.raises(
        InputError,
        match=r"variable 'score' has dimensions \('encoder_y', 'encoder_x'\), declared are "
        r"\('encoder_x', 'encoder_y'\)",
    ):
        validate(dataset, ALIGNMENT)


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("step", [1.0, 2.0], "float64"),
        ("flops", [1, 2], "int64"),
        ("final", [1, 0], "int64"),
        ("model", [1, 2], "int64"),
        ("n_parameters", [True, False], "bool"),
    ],
)
def test_validate__kind(name: str, values: list[object], found: str) -> None:
    message = rf"variable '{name}' has dtype {found}, declared is {ENCODER[name].dtype}\."
    with pytest.raises(InputError, match=message):
        validate(xr.Dataset({name: ("encoder", values)}), ENCODER)


def test_import__needs_no_heavy_library() -> None:
    code = (
        "import sys; import pipeline.schema, pipeline.config.registry, pipeline.config.yaml\n"
        "assert not {'torch', 'timm', 'open_clip', 'zarr', 'xarray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layouts__tower() -> None:
    attributes = {"layers": ["stem", "top"], "widths": [3, 5]}
    found = schema.TOWER_GROUP.layouts(attributes, {"stimulus": 2500, "checkpoint": 4})
    assert list(found) == [*schema.ACTIVATIONS, "stem", "top"]
    assert (found["top"].shape, found["top"].chunks) == ((4, 2500, 5), (1, 1024, 5))
    assert (found["complete"].shape, found["complete"].chunks) == ((4, 3), (1, 1))
    assert (found["step"].shape, found["step"].chunks) == ((4,), (1024,))
    assert (found["stimulus"].shape, found["stimulus"].chunks) == ((2500,), (2500,))
    assert found["top"].variable.attributes == {"layer_index": 1}


@pytest.mark.parametrize("version", [{}, {"version": 2}])
def test_layouts__null(version: dict[str, int]) -> None:
    """Its other sizes follow from its attributes, and whether it has tail bounds."""
    attributes = {**version, "chunk": 16, "aggregates": ["max", "mean"], "n_permutations": 99}
    found = schema.NULL_GROUP.layouts(attributes, {"encoder": 32})
    assert (found["null"].shape, found["null"].chunks) == ((2, 32, 32, 99), (2, 16, 16, 99))
    assert (found["state"].shape, found["state"].chunks) == ((32, 32), (16, 16))
    assert ("tail" in found) == bool(version)


def test_layouts__variable_of_unknown_size_is_left_out() -> None:
    found = schema.STIMULUS_GROUP.layouts({}, {"stimulus": 7})
    assert "image" not in found
    assert found["caption"].shape == (7,)


@pytest.mark.parametrize(
    "kind", [schema.TOWER_GROUP, schema.SUBSET_GROUP, schema.SCORE_GROUP, schema.NULL_GROUP]
)
def test_group_kinds__are_marked_when_complete(kind: schema.GroupKind) -> None:
    assert kind.mark
