import importlib
import json
import pkgutil

import pytest

from pipeline.errors import InputError
from pipeline.measures import (
    Measure,
    MeasureSpec,
    dense,
    get_measure,
    list_measures,
    measure_spec,
    neighbours,
    pairwise,
    recorded_spec,
)


def test_list_measures__every_record_is_complete():
    for measure in list_measures():
        assert measure.direction == "similarity"
        assert measure.kind in {"relational", "neighbour", "subspace", "sampled"}
        assert measure.range[0] < measure.range[1]
        assert measure.reference
        assert measure.prose
        assert get_measure(measure.name) is measure
        hash(measure)


def test_records__equal_relations_come_from_one_function():
    """Since representations are prepared once for all measures of a relation."""
    functions = {}
    for measure in list_measures():
        if measure.engine == "neighbours":
            continue  # one relation, formed by the engine
        function = measure.form if measure.engine == "dense" else measure.prepare
        assert functions.setdefault((measure.engine, measure.relation[0]), function) is function


@pytest.mark.parametrize("engine", [dense, neighbours, pairwise], ids=lambda e: e.__name__)
def test_list_measures__has_every_record_that_a_module_declares(engine):
    modules = [
        importlib.import_module(f"{engine.__name__}.{found.name}")
        for found in pkgutil.iter_modules(engine.__path__)
    ]
    declared = [r for m in modules for r in vars(m).values() if isinstance(r, Measure)]
    name = engine.__name__.rpartition(".")[2]
    listed = [measure for measure in list_measures() if measure.engine == name]
    assert {record.name for record in declared} == {measure.name for measure in listed}
    assert all(record in listed for record in declared)


def test_records__print_the_same_in_every_process():
    assert not any(" at 0x" in repr(measure) for measure in list_measures())


def test_list_measures__is_a_copy():
    list_measures().clear()
    assert list_measures()


def test_get_measure__unknown_names_the_nearest_and_lists_all():
    with pytest.raises(
        InputError, match=r"no measure 'cka_debaised'\. Did you mean 'cka_debiased'"
    ):
        get_measure("cka_debaised")
    with pytest.raises(InputError, match=r"'zzz'\. Measures: cka, cka_debiased, cka_rbf, rsa"):
        get_measure("zzz")


def test_measure_spec__defaults_are_explicit():
    spec = measure_spec("mutual_knn")
    assert spec == measure_spec("mutual_knn", neighbours="cosine", k=10)
    assert hash(spec) == hash(measure_spec("mutual_knn", k=10))
    assert spec != measure_spec("mutual_knn", k=11)
    assert spec["k"] == 10
    assert str(measure_spec("cka")) == "cka"


def test_measure_spec__minimum_stimuli_grows_with_k():
    assert measure_spec("cka").minimum_stimuli == 3
    assert measure_spec("cka_debiased").minimum_stimuli == 4
    assert measure_spec("mutual_knn", k=7).minimum_stimuli == 9


def test_conventions__say_everything_and_can_be_json():
    conventions = measure_spec("mutual_knn", k=5).conventions()
    assert json.loads(json.dumps(conventions)) == {
        "measure": "mutual_knn",
        "k": 5,
        "neighbours": "cosine",
        "self_is_neighbour": False,
        "ties": "share the last places equally",
    }
    assert measure_spec("cka").conventions()["estimator"] == "biased"


def test_measure_spec__unknown_parameter():
    with pytest.raises(
        InputError, match=r"has no parameter 'neighbors'\. Did you mean 'neighbours'"
    ):
        measure_spec("mutual_knn", neighbors="cosine")
    with pytest.raises(InputError, match=r"'cka' has no parameter 'k'\. Its parameters: preset \("):
        measure_spec("cka", k=3)


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", True])
def test_measure_spec__wrong_number(k):
    with pytest.raises(InputError, match=r"'k' of the measure 'mutual_knn' .* is .*at least 1\.$"):
        measure_spec("mutual_knn", k=k)


def test_measure_spec__wrong_choice():
    with pytest.raises(InputError, match=r"is 'l2'; it must be one of 'cosine', 'inner', 'euclid"):
        measure_spec("mutual_knn", neighbours="l2")


def test_measure_spec__constructor_is_plain():
    assert MeasureSpec("cka") == measure_spec("cka")


@pytest.mark.parametrize("measure", [m.name for m in list_measures()])
def test_recorded_spec__is_what_was_recorded(measure):
    for preset in ("", "prh"):
        if not (preset and measure == "svcca"):
            spec = measure_spec(measure, **({"preset": preset} if preset else {}))
            assert recorded_spec(measure, dict(sorted(spec.parameters))) == spec


def test_recorded_spec__a_preset_that_is_no_longer_offered():
    spec = recorded_spec("svcca", {"variance": 0.9, "preset": "prh"})
    assert (spec.preset, spec["variance"], spec["dimension"]) == ("prh", 0.9, 0)
