"""Safe YAML with line numbers, and faults that a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

from pipeline.config.yaml import Document, Spec, load_yaml, validate
from pipeline.errors import InputError
from pipeline.suggest import did_you_mean, nearest


class Leaf(Spec):
    size: int = Field(default=1, ge=1)
    colour: Literal["red", "green"] = "red"


class Tree(Spec):
    name: str
    leaf: Leaf = Leaf()
    leaves: dict[str, Leaf] = Field(default_factory=dict)
    row: tuple[Leaf, ...] = ()
    either: str | dict[str, Leaf] = ""
    number: int | float = 0

    @field_validator("name")
    @classmethod
    def _lower(cls, value: str) -> str:
        if not value.islower():
            raise ValueError(f"write {value.lower()!r} instead.")
        return value


def document(folder: Path, text: str) -> Document:
    path = folder / "some.yaml"
    path.write_text(text)
    return load_yaml(path)


def fault(folder: Path, text: str, entry: str | None = None) -> str:
    """Return what is said of a file, without its folder."""
    parsed = document(folder, text)
    with pytest.raises(InputError) as caught:
        validate(Tree, parsed.data, parsed, (), entry)
    return str(caught.value).replace(f"{folder}/", "")


# nearest, did_you_mean


def test_nearest__best_first_and_at_most_n() -> None:
    known = ["resnet18", "resnet34", "resnet50", "vit_base"]
    assert nearest("resnet8", known)[0] == "resnet18"
    assert len(nearest("resnet8", known, n=2)) == 2
    assert nearest("swin", known) == []


def test_nearest__ignores_case_and_answers_in_the_known_one() -> None:
    assert nearest("vit-b-32", ["ViT-B-32", "RN50"]) == ["ViT-B-32"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), max_size=6), st.text(max_size=8))
def test_nearest__only_what_is_known(known: list[str], name: str) -> None:
    found = nearest(name, known)
    assert set(found) <= set(known)
    assert len(found) <= 3
    assert name not in known or name.lower() in {f.lower() for f in found} or not name


def test_did_you_mean__wording() -> None:
    assert did_you_mean("siz", ["size", "colour"]) == " Did you mean 'size'?"
    assert did_you_mean("abc", ["abd", "abe"]) == " Did you mean 'abe' or 'abd'?"
    assert did_you_mean("xyz", ["size"]) == ""


# load_yaml


def test_load_yaml__numbers_as_yaml_1_2_has_them(tmp_path: Path) -> None:
    data = document(tmp_path, "a: 3.9e9\nb: 3e-3\nc: 010\nd: yes\ne: 1_000\n").data
    assert data["a"] == 3.9e9
    assert data["b"] == 0.003
    assert data["c"] == 10
    assert data["d"] == "yes"


def test_load_yaml__builds_no_objects(tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    text = f"a: !!python/object/apply:pathlib.Path.touch ['{mark}']\nb: 1\n"
    assert document(tmp_path, text).data["b"] == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"some.yaml, line 4: found duplicate key \"c\".*Keep one"),
        ("a: [1, 2\n", r"line 2: this is not YAML: expected ',' or '\]'.*missing colon, quote"),
        ("a: b: c\n", r"line 1: this is not YAML: mapping values are not allowed"),
        ("a: 1\n\tb: 2\n", r"line 2: this is not YAML: .*Look for"),
        ("a: *nothing\n", r"line 1: this is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", r"line 2: this is not YAML: .*another document"),
        ("a: \x07\n", r"some.yaml: this is not YAML: unacceptable character"),
        ("", r"some.yaml: expected a mapping \(key: value\) at the top, found empty\."),
        ("# nothing but a remark\n", r"expected a mapping .* found empty"),
        ("just words\n", r"expected a mapping .* found a str\."),
        ("- a\n- b\n", r"expected a mapping .* found a "),
    ],
)
def test_load_yaml__fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        document(tmp_path, text)


def test_load_yaml__missing_file(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("a: 1\n")
    with pytest.raises(
        InputError,
        match=r"modles.yaml: there is no such file \(paths are relative to the working directory, "
        r"/.*\)\. Did you mean 'models.yaml'\?",
    ):
        load_yaml(tmp_path / "modles.yaml")
    with pytest.raises(InputError, match=r"there is no such file .*\)\.$"):
        load_yaml(tmp_path / "no" / "folder.yaml")


def test_load_yaml__not_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match=r"a.yaml: cannot be read as a text file: 'utf-8'"):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError, match=r"cannot be read as a text file: .*[Dd]irectory"):
        load_yaml(tmp_path)


# Document


def test_document__line_of_the_deepest_part_that_exists(tmp_path: Path) -> None:
    parsed = document(tmp_path, "# remark\na:\n  b:\n    - c\n    - d: 1\n      e: 2\nf: {g: 1}\n")
    assert parsed.line(()) == 1
    assert parsed.line(("a",)) == 2
    assert parsed.line(("a", "b")) == 3
    assert parsed.line(("a", "b", 0)) == 4
    assert parsed.line(("a", "b", 1, "e")) == 6
    assert parsed.line(("a", "b", 1, "nothing", "here")) == 5
    assert parsed.line(("a", "b", 9)) == 3
    assert parsed.line(("a", "b", "wrong kind")) == 3
    assert parsed.line(("f", "g", "deeper")) == 7
    assert parsed.line(("nothing",)) == 1
    assert parsed.where(("f",)) == f"{tmp_path}/some.yaml, line 7"


# validate


def test_validate__plain_values(tmp_path: Path) -> None:
    parsed = document(tmp_path, "name: 'tree'\nleaves: {a: {size: 0x10}}\nnumber: 3.9e9\n")
    tree = validate(Tree, parsed.data, parsed)
    assert tree.leaves["a"].size == 16
    assert type(tree.name) is str
    assert type(tree.number) is float
    assert type(tree.leaves["a"].size) is int
    assert type(tree.leaves) is dict


def test_validate__frozen(tmp_path: Path) -> None:
    parsed = document(tmp_path, "name: a\n")
    with pytest.raises(ValueError, match="frozen"):
        validate(Tree, parsed.data, parsed).name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nlaef: b\n",
            "some.yaml, line 2: unknown key 'laef'. Did you mean 'leaf' or 'name'? Known keys: "
            "either, leaf, leaves, name, number, row.",
        ),
        (
            "name: a\nleaf:\n  siez: 3\n",
            "some.yaml, line 3: unknown key 'leaf.siez'. Did you mean 'size'? "
            "Known keys: colour, size.",
        ),
        (
            "name: a\nleaves:\n  b: {size: 1}\n  c:\n    color: red\n",
            "some.yaml, line 5: unknown key 'leaves.c.color'. Did you mean 'colour'? "
            "Known keys: colour, size.",
        ),
        (
            "name: a\nrow:\n  - {}\n  - {x: 1}\n",
            "some.yaml, line 4: unknown key 'row.1.x'. Known keys: colour, size.",
        ),
        (
            "name: a\neither:\n  b: {siz: 1}\n",
            "some.yaml, line 3: unknown key 'either.b.siz'. Did you mean 'size'? "
            "Known keys: colour, size.",
        ),
        ("leaf: {}\n", "some.yaml, line 1: 'name' is missing."),
        (
            "name: a\nleaf: {size: 0}\n",
            "some.yaml, line 2: 'leaf.size': Input should be greater than or equal to 1 (given: "
            "0).",
        ),
        (
            "name: a\nleaf: {colour: blue}\n",
            "some.yaml, line 2: 'leaf.colour': Input should be 'red' or 'green' (given: 'blue').",
        ),
        (
            "name: a\n\nnumber: [1]\n",
            "some.yaml, line 3: 'number': Input should be a valid integer, or a valid number "
            "(given: [1]).",
        ),
        (
            "name: a\neither: 3\n",
            "some.yaml, line 2: 'either': Input should be a valid string, or a valid dictionary "
            "(given: 3).",
        ),
        ("name: Oak\n", "some.yaml, line 1: name: write 'oak' instead."),
        (
            "name: a\neither:\n  b:\n    size: 0\n",
            "some.yaml, line 4: 'either.b.size': Input should be greater than or equal to 1 "
            "(given: 0).",
        ),
    ],
)
def test_validate__fault(tmp_path: Path, text: str, message: str) -> None:
    assert fault(tmp_path, text) == message


def test_validate__union_fault_of_a_wrong_kind_inside(tmp_path: Path) -> None:
    # once wrong: a wrong kind *inside* the mapping is reported as the
    # mapping being wrong ("'either': Input should be a valid string, or a valid integer …")
    message = fault(tmp_path, "name: a\neither:\n  b:\n    size: many\n")
    assert message.startswith("some.yaml, line 4: 'either.b.size': Input should be a valid integer")
    assert "string." not in message
    assert message.endswith("(given: 'many').")


@pytest.mark.parametrize("label", ["Final", "str", "int", "a[b]"])
def test_validate__labels_that_look_like_kinds(tmp_path: Path, label: str) -> None:
    # once wrong: keys of a person's own that begin with a capital, hold a
    # bracket, or are called str or int drop out of the key and of the line
    text = f"name: a\nleaves:\n  b: {{}}\n  {label}: {{siz: 1}}\n"
    assert fault(tmp_path, text).startswith(
        f"some.yaml, line 4: unknown key 'leaves.{label}.siz'. Did you mean 'size'?"
    )


def test_validate__all_faults_at_once(tmp_path: Path) -> None:
    message = fault(tmp_path, "leaf: {size: 0}\nrow:\n  - {colour: x}\n  - {y: 1}\n")
    lines = message.splitlines()
    assert lines[0] == "4 faults:"
    assert len(lines) == 5
    assert {line.partition(":")[0].strip() for line in lines[1:]} == {
        "some.yaml, line 1",
        "some.yaml, line 3",
        "some.yaml, line 4",
    }


def test_validate__names_the_entry(tmp_path: Path) -> None:
    assert fault(tmp_path, "name: Oak\n", "mine") == (
        "some.yaml, line 1: entry 'mine': name: write 'oak' instead."
    )
    lines = fault(tmp_path, "x: 1\n", "mine").splitlines()
    assert lines[0] == "2 faults:"
    assert all(line.startswith("  some.yaml, line 1: entry 'mine': ") for line in lines[1:])


def test_validate__not_a_mapping(tmp_path: Path) -> None:
    parsed = document(tmp_path, "a: 1\nb:\n  - 3\n")
    with pytest.raises(InputError, match=r"some.yaml, line 3: 'the entry': .*\(given: 3\)\."):
        validate(Tree, parsed.data["b"][0], parsed, ("b", 0))


keys = st.sampled_from(["size", "colour", "siz", "Colour", "x", "name"])
values: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.text("ab", max_size=2), st.lists(st.none())
)
node = st.dictionaries(keys, values, max_size=3)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": values,
            "leaf": node,
            "leaves": st.dictionaries(st.sampled_from(["a", "B"]), node, max_size=2),
            "row": st.lists(node, max_size=2),
            "either": st.one_of(values, st.dictionaries(st.just("c"), node, max_size=1)),
            "wrong": values,
        },
    )
)
def test_validate__any_content_gives_a_spec_or_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    import json

    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    parsed = load_yaml(path)
    try:
        tree = validate(Tree, parsed.data, parsed, (), "e")
    except InputError as error:
        faults = str(error).splitlines()
        assert all("any.yaml, line 1: entry 'e'" in f for f in (faults[1:] or faults))
    else:
        assert tree.name == content["name"]
