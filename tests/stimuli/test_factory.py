"""What functions of one's own return: data sets of torchvision, mappings, generators."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, photo
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import FakeData, ImageFolder

from pipeline.errors import InputError
from pipeline.stimuli import StimulusTable, index_stimuli, open_stimuli
from pipeline.stimuli.decode import decode
from pipeline.stimuli.factory import FactorySpec
from pipeline.stimuli.ids import array_id, hex_ids, text_id

FAKE = {"size": 5, "image_size": [3, 8, 6], "num_classes": 3}


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    before = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    yield
    assert (sys.path, sys.dont_write_bytecode) == before[1:]
    for name in set(sys.modules) - before[0]:
        if name.startswith("my_"):
            del sys.modules[name]


def spec(factory: str, **keys: Any) -> FactorySpec:
    return FactorySpec(source="factory", factory=factory, **keys)


def module(folder: Path, code: str, name: str = "my_data") -> FactorySpec:
    """Write a module with a function `make`, and return the spec that names it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return spec(f"{name}:make", path=str(folder))


def ids(table: StimulusTable, modality: Any) -> list[str]:
    return list(hex_ids(table.content[modality]))


def same(found: Any, arrays: list[Any]) -> None:
    assert len(found) == len(arrays)
    for item, array in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(item), np.asarray(array))


# data sets of torchvision


def test_fake_data__items_through_a_store(stored: Any) -> None:
    asked = spec("torchvision.datasets:FakeData", arguments=FAKE)
    table = index_stimuli(asked)
    images, labels = zip(*FakeData(5, (3, 8, 6), 3), strict=True)
    assert table.name == "torchvision.datasets-FakeData"
    assert table.modalities == ("image",)
    assert ids(table, "image") == [array_id(np.asarray(i)) for i in images]
    assert table.columns["label"].tolist() == [int(v) for v in labels]
    assert "label_name" not in table.columns
    assert table.item_bytes == 4 * 8 * 6
    assert table.resident_bytes == 0
    reader, _ = stored(asked, table)
    same(reader.read("image", slice(0, 5)), list(images))
    same(reader.read("image", slice(3, 4)), [images[3]])
    assert reader.read("image", slice(0, 1))[0].mode == "RGB"


def test_image_folder__names_of_classes(tmp_path: Path, stored: Any) -> None:
    for i, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png"]):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(photo(i)))
    asked = spec("torchvision.datasets:ImageFolder", arguments={"root": str(tmp_path / "pets")})
    table = index_stimuli(asked)
    assert list(table.columns["label_name"]) == ["cat", "cat", "dog"]
    reader, _ = stored(asked, table)
    same(reader.read("image", slice(0, 3)), [photo(i) for i in range(3)])
    assert [i for _, i in ImageFolder(tmp_path / "pets")] == table.columns["label"].tolist()
    # what is known is not believed of other files, though neither code nor length changed
    (tmp_path / "pets/dog/c.png").write_bytes(encoded(photo(7)))
    assert ids(index_stimuli(asked, table), "image")[2] == array_id(photo(7))
    with pytest.raises(
        InputError,
        match=r"row 2 is not the image that the set has \(id .* A factory has to return the same "
        r"items each time, on every machine\. If its data changed, give the stimuli another name",
    ):
        open_stimuli(asked, table).read("image", slice(1, 3))


# other things that a factory returns


def test_generator__is_held_in_memory(tmp_path: Path, stored: Any) -> None:
    asked = module(
        tmp_path / "code",
        """
import numpy as np
def make(n):
    for i in range(n):
        yield {"image": np.full((4, 5, 3), i, np.uint8), "text": f"grey {i}", "group": i % 2,
               "id": f"g{i}", "level": i / 2, "nested": [i], "path": "x"}
""",
    ).model_copy(update={"arguments": {"n": 4}})
    table = index_stimuli(asked)
    assert table.modalities == ("image", "text")
    grey = [np.full((4, 5, 3), i, np.uint8) for i in range(4)]
    assert ids(table, "image") == [array_id(g) for g in grey]
    assert ids(table, "text") == [text_id(f"grey {i}") for i in range(4)]
    assert list(table.columns["group"]) == ["0", "1", "0", "1"]
    assert list(table.columns["id"]) == ["g0", "g1", "g2", "g3"]
    assert table.columns["level"].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert table.notes == [
        "Columns that were left out, because the store uses their names or cannot have such "
        "names: 'path'.",
        "Columns that were left out, because they are not scalars: 'nested'.",
    ]
    assert table.resident_bytes == 4 * (4 * 4 * 5 + len("grey 0"))
    reader, _ = stored(asked, table)
    same(reader.read("image", slice(1, 3)), grey[1:3])
    assert reader.read("text", slice(1, 2)) == ["grey 1"]
    assert list((tmp_path / "code").iterdir()) == [tmp_path / "code/my_data.py"]


def test_mapping__of_columns(tmp_path: Path, stored: Any) -> None:
    asked = module(
        tmp_path,
        """
import torch
def make():
    return {"array": torch.arange(12.0).reshape(3, 4), "label": ["b", "a", "b"],
            "caption": ["one", "two", "six"]}
""",
    )
    table = index_stimuli(asked)
    assert table.modalities == ("text", "array")
    rows = list(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert ids(table, "array") == [array_id(r) for r in rows]
    assert ids(table, "text") == [text_id("one"), text_id("two"), text_id("six")]
    assert table.columns["label"].tolist() == [1, 0, 1]
    reader, _ = stored(asked, table)
    same(reader.read("array", slice(0, 3)), rows)
    (tmp_path / "my_data.py").write_text("def make(): return {'label': [1], 'image': [2, 3]}")
    with pytest.raises(
        InputError, match=r"whose columns need as many values each; it has: label 1, image 2\."
    ):
        index_stimuli(asked)


def test_texts__are_kept_by_the_store(tmp_path: Path, stored: Any) -> None:
    asked = module(tmp_path, "def make(): return ['a cat', 'a dog', 'Größe']")
    table = index_stimuli(asked)
    assert table.modalities == ("text",)
    (tmp_path / "my_data.py").unlink()
    reader, _ = stored(asked, table)
    assert reader.read("text", slice(0, 3)) == ["a cat", "a dog", "Größe"]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("IMAGE", {"image": 1}),
        ("PIXELS", {"image": 1}),
        ("PIXELS[..., 0]", {"image": 1}),
        ("'a cat'", {"text": 1}),
        ("np.arange(3)", {"array": 1}),
        ("np.zeros((4, 4, 4), np.uint8)", {"array": 1}),
        ("torch.zeros(3, 4, 4)", {"array": 1}),
        ("{'image': torch.zeros(3, 4, 4)}", {"array": 1}),
        ("{'array': PIXELS}", {"array": 1}),
        ("(IMAGE,)", {"image": 1}),
        ("(IMAGE, 3)", {"image": 1, "label": 3}),
        ("(IMAGE, np.int64(3))", {"image": 1, "label": 3}),
        ("[torch.zeros(2), torch.tensor(3)]", {"array": 1, "label": 3}),
        ("('a cat', 3)", {"text": 1, "label": 3}),
        ("('a cat', 'pet')", {"text": 1, "label_name": "pet"}),
        ("(IMAGE, 'a cat')", {"image": 1, "text": 1, "caption": "a cat"}),
        ("(IMAGE, ['a cat', 'a pet'])", {"image": 1, "text": 1, "caption": "a cat"}),
        ("{'image': IMAGE, 'array': np.ones(2)}", {"image": 1, "array": 1}),
    ],
)
def test_items__of_many_forms(tmp_path: Path, item: str, expected: dict[str, Any]) -> None:
    head = "import numpy as np, torch\nfrom PIL import Image\n"
    head += "PIXELS = np.full((4, 5, 3), 9, np.uint8)\nIMAGE = Image.fromarray(PIXELS)\n"
    table = index_stimuli(module(tmp_path, f"{head}def make(): return [{item}]"))
    found: dict[str, Any] = dict.fromkeys(table.modalities, 1)
    found |= {c: table.columns[c][0] for c in ("label", "label_name", "caption") if c in expected}
    assert found == expected
    for modality in ("image", "array"):
        if modality in expected:
            reader = open_stimuli(module(tmp_path, f"{head}def make(): return [{item}]"), table)
            assert len(reader.read(modality, slice(0, 1))) == 1


def test_image__of_any_mode(tmp_path: Path) -> None:
    for name in ("L.png", "P.png", "RGBA.png", "1.png", "CMYK.jpg"):
        Image.fromarray(photo()).convert(name[:-4]).save(tmp_path / name)
    code = f"""
from pathlib import Path
from PIL import Image
def make(): yield from map(Image.open, sorted(Path({str(tmp_path)!r}).glob("*.*g")))
"""
    table = index_stimuli(module(tmp_path / "code", code))
    expected = [np.asarray(decode(p.read_bytes())) for p in sorted(tmp_path.glob("*.*g"))]
    assert ids(table, "image") == [array_id(e) for e in expected]


def test_caption_index__chooses_of_a_list(tmp_path: Path) -> None:
    asked = module(tmp_path, "def make(): return [{'caption': ['a', 'b']}, {'caption': ['c']}]")
    assert list(index_stimuli(asked).columns["caption"]) == ["a", "c"]
    second = asked.model_copy(update={"caption_index": 1, "on_bad_stimulus": "drop"})
    assert list(index_stimuli(second).columns["caption"]) == ["b"]


# faults


ITEMS = """
import numpy as np
class Data:
    def __len__(self): return 7
    def __getitem__(self, i):
        if i == 1:
            raise OSError("cannot open 1.jpg")
        return [
            {"array": np.zeros(2), "label": 4},
            None,
            {"array": np.array([1, np.nan]), "label": 1},
            (np.zeros(2), np.zeros(2)),
            3.5,
            {"array": np.zeros(2), "label": 0.5},
            {"label": 1},
        ][i]
def make(): return Data()
"""


def test_faults__all_are_named_at_once(tmp_path: Path) -> None:
    asked = module(tmp_path, ITEMS)
    with pytest.raises(
        InputError,
        match=r"6 of 7 cannot be used:\n"
        r"  row 1: OSError: cannot open 1\.jpg \(.*my_data\.py, line 7\)\n"
        r"  row 2: it has values that are not finite\n"
        r"  row 3: beside its first part it has a value of type ndarray, but an item is .*\n"
        r"  row 4: it is a value of type float, but an item is .*\n"
        r"  row 5: its label is 0\.5, but classes are whole numbers or names; .*\n"
        r"  row 6: it has neither an image, nor a text, nor an array\n",
    ):
        index_stimuli(asked)
    dropped = asked.model_copy(update={"on_bad_stimulus": "drop"})
    table = index_stimuli(dropped)
    assert table.columns["label"].tolist() == [4]
    same(open_stimuli(dropped, table).read("array", slice(0, 1)), [np.zeros(2)])


FAULTS = {
    "def make(): return 1 / 0": r"factory my_data:make failed: ZeroDivisionError: division by zero "
    r"\(.*my_data\.py, line 1\)\.$",
    "import json\ndef make():\n  return json.loads('{')": r"failed: JSONDecodeError: .* \(.*"
    r"my_data\.py, line 3\)\.$",
    "def make():\n  yield 'a'\n  raise KeyError('b')": r"failed: KeyError: 'b' \(.*line 3\)\.$",
    "def make(a): return []": r"failed: TypeError: make\(\) missing 1 required positional argument",
    "import sys\nsys.exit(3)": r"importing my_data failed: SystemExit: 3 \(.*my_data.py, line 2\)",
    "def make(:": r"importing my_data failed: SyntaxError: .* \(.*my_data\.py, line 1\)",
    "import no_such": r"importing my_data needs the module no_such, which is not installed\. Inst",
    "def made(): pass": r"the module my_data \(.*my_data\.py\) has no function 'make'\. Did you "
    r"mean 'made'\?$",
    "make = 3": r"the module my_data \(.*\) has no function 'make'\.$",
    "def make(): pass": r"factory my_data:make returned None, but a factory returns an object with",
    "def make(): return 'text'": r"factory my_data:make returned a value of type str, but a",
    "def make(): return []": r"factory my_data:make: none of its 0 items can be used\.",
    "def make(): return [1, 2]": r"none of its 2 items can be used; the first: it is a value ",
    "def make(): return [('a', 1), ('b', None)]": r"1 of its items have no label, first row 1\. "
    r"Label all, or none\.",
    "def make(): return [{'text': 'a', 'id': 1}, {'text': 'b', 'id': 1}]": r"the ids of its items "
    r"have to differ",
}


@pytest.mark.parametrize("code", FAULTS)
def test_factory__faults(tmp_path: Path, code: str) -> None:
    with pytest.raises(InputError, match=FAULTS[code]):
        index_stimuli(module(tmp_path, code))


def test_module__not_found(tmp_path: Path) -> None:
    module(tmp_path, "")
    with pytest.raises(InputError, match=r"the folder .* has no module my_dta\. Did you mean 'my_"):
        index_stimuli(spec("my_dta:make", path=str(tmp_path)))
    with pytest.raises(
        InputError,
        match=r"there is no module my_data among the installed ones\. If it is a file of yours, "
        r"name its folder with path:",
    ):
        index_stimuli(spec("my_data:make"))
    with pytest.raises(InputError, match=r"path: there is no folder .*gone \(paths are relative"):
        index_stimuli(spec("my_data:make", path=str(tmp_path / "gone")))
    with pytest.raises(
        ValidationError, match=r"'make' is not of the form package\.module:function"
    ):
        spec("make")


def test_module__built_in() -> None:
    table = index_stimuli(spec("builtins:dict", arguments={"caption": ["a", "b"]}))
    assert list(table.columns["caption"]) == ["a", "b"]
    assert table.details["file"] is None


def test_module__another_of_the_name(tmp_path: Path) -> None:
    module(tmp_path, "def make(): return ['a']", name="json")
    with pytest.raises(
        InputError, match=r"the module json comes from .*__init__\.py, not from .*\. Rename yours"
    ):
        index_stimuli(spec("json:make", path=str(tmp_path)))


def test_module__is_imported_again_when_it_changed(tmp_path: Path) -> None:
    asked = module(tmp_path, "def make(): return ['a']")
    assert list(index_stimuli(asked).columns["caption"]) == ["a"]
    module(tmp_path, "def make(): return ['b']")
    os.utime(tmp_path / "my_data.py", (1, 1))
    assert list(index_stimuli(asked).columns["caption"]) == ["b"]


@pytest.mark.parametrize(
    "code",
    [
        "R = np.random.default_rng(0)\ndef make(): return [R.normal(size=3) for _ in range(4)]",
        "R = np.random.default_rng(0)\ndef make(): yield from (R.normal(size=3) for _ in range(4))",
    ],
)
def test_factory__that_is_random(tmp_path: Path, code: str) -> None:
    asked = module(tmp_path, f"import numpy as np\n{code}")
    with pytest.raises(
        InputError,
        match=r"factory my_data:make: row 0 is another item when the factory is called again\. .* "
        r"has to return the same items each time: fix its seeds, and leave out random transforms",
    ):
        index_stimuli(asked)


COUNTED = """
from pathlib import Path
import numpy as np
class Data:
    def __len__(self): return 100
    def __getitem__(self, i):
        with open(Path(__file__).parent / "reads", "a") as file: file.write("x")
        return np.array([i])
def make(): return Data()
"""


def test_known__a_few_items_are_compared(tmp_path: Path, stored: Any) -> None:
    asked = module(tmp_path / "code", COUNTED)
    reads = tmp_path / "code/reads"
    _, known = stored(asked, index_stimuli(asked))
    reads.unlink()
    assert index_stimuli(asked, known).digest == known.digest
    assert len(reads.read_text()) == 16
    module(tmp_path / "code", COUNTED.replace("[i]", "[i + 1]"))
    os.utime(tmp_path / "code/my_data.py", (1, 1))
    reads.unlink()
    assert ids(index_stimuli(asked, known), "array")[0] == array_id(np.array([1]))
    assert len(reads.read_text()) == 100 + 2


def test_known__an_iterable_is_not_looked_at_again(tmp_path: Path, stored: Any) -> None:
    code = COUNTED.replace("return Data()", "yield from map(Data().__getitem__, range(9))")
    asked = module(tmp_path / "code", code)
    _, known = stored(asked, index_stimuli(asked))
    (tmp_path / "code/reads").unlink()
    assert index_stimuli(asked, known) is known
    assert not (tmp_path / "code/reads").exists()


def test_progress__counts_items(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    asked = module(tmp_path, "def make(): return ['a', 'b']")
    index_stimuli(asked, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(1, 2), (2, 2)]


def test_absolute__path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = spec("a:b", path="code", arguments={"root": "x"}).absolute()
    assert (asked.path, asked.arguments) == (str(tmp_path / "code"), {"root": "x"})
    assert spec("a:b").absolute().path is None
