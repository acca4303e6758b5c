"""Rows from all sources: the resulting tables, and the errors."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import tables
from zoo.errors import InputError, MissingDependencyError, OptionError

torch = pytest.importorskip("torch")

X = np.arange(24, dtype=np.float32).reshape(8, 3) / 4
Y = np.arange(8) % 2
NAMES = ["cat" if y else "ant" for y in Y]
FLAT = [{"a": float(x[0]), "b": float(x[1]), "c": float(x[2]), "label": n}
        for x, n in zip(X, NAMES, strict=True)]  # fmt: skip
DATES = np.arange(8).astype("M8[ns]")
VECTORS = [{"features": x.tolist(), "label": n} for x, n in zip(X, NAMES, strict=True)]


def jsonl(path: Path, rows: list[Any], encoding: str = "utf-8", ascii: bool = True) -> Path:
    path.write_bytes("\n".join(json.dumps(r, ensure_ascii=ascii) for r in rows).encode(encoding))
    return path


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- every form -----------------------------------------------------------------------------------


def saved(name: str) -> Callable[[Path], Any]:
    """A file of FLAT or VECTORS."""

    def write(folder: Path) -> Path:
        path = folder / name
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(FLAT[0]))
                writer.writeheader()
                writer.writerows(FLAT)
        elif name == "rows.json":
            path.write_text(json.dumps(FLAT))
        elif name == "columns.json":
            path.write_text(json.dumps(table(FLAT)))
        elif name == "a.npz":
            np.savez(path, x=X, y=np.array(NAMES))
        elif name in ("flat.jsonl", "vectors.jsonl"):
            jsonl(path, FLAT if "flat" in name else VECTORS)
        else:
            import pyarrow
            from pyarrow import parquet

            rows = FLAT if "flat" in name else VECTORS
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write


def frame(folder: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(FLAT)


def filtered(folder: Path) -> Any:
    """A DataFrame with the index after filtering."""
    found = frame(folder)
    return found.set_index(found.index + 5)


def hub_set(folder: Path) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(VECTORS)


class Pairs:
    """A torch data set that changes its labels on access."""

    def __init__(self, changed: bool = False) -> None:
        self.targets, self.changed = torch.tensor(Y), changed

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        y = int(self.targets[i])
        return torch.from_numpy(X[i]), 1 - y if self.changed else y


FORMS: dict[str, Callable[[Path], Any]] = {
    **{name: saved(name) for name in (
        "a.csv", "rows.json", "columns.json", "a.npz", "flat.jsonl", "vectors.jsonl",
        "flat.parquet", "vectors.parquet")},
    "(x, y)": lambda _: (X, np.array(NAMES)),
    "[x, y]": lambda _: [X, Y],
    "(x, y), objects": lambda _: (X, np.array(NAMES, dtype=object)),
    "(list, list)": lambda _: (X.tolist(), NAMES),
    "(tensor, list)": lambda _: (torch.tensor(X), NAMES),
    "float64": lambda _: (X.astype(np.float64), Y.astype(np.float64)),
    "big-endian": lambda _: (X.astype(">f4"), Y.astype(">i8")),
    "reversed": lambda _: (X[::-1].copy()[::-1], Y[::-1].copy()[::-1]),
    "bfloat16": lambda _: (torch.tensor(X).bfloat16(), torch.tensor(Y)),
    "requires grad": lambda _: (torch.tensor(X).requires_grad_(), torch.tensor(Y)),
    "pairs": lambda _: list(zip(torch.tensor(X), NAMES, strict=True)),
    "pairs of lists": lambda _: [[x.tolist(), n] for x, n in zip(X, NAMES, strict=True)],
    "records": lambda _: FLAT,
    "records of vectors": lambda _: VECTORS,
    "mapping": lambda _: {"x": X, "y": NAMES},
    "structured": lambda _: np.array(
        [tuple(r.values()) for r in FLAT], [(n, "f4") for n in "abc"] + [("label", "U3")]
    ),
    "data set of torch": lambda _: Pairs(),
    "TensorDataset": lambda _: torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "DataFrame": frame,
    "filtered DataFrame": filtered,
    "pandas' own types": lambda f: frame(f).convert_dtypes(),
    "series": lambda f: (frame(f)[["a", "b", "c"]], frame(f)["label"]),
    "decimals": lambda f: [
        {n: Decimal(str(v)) if n in "abc" else v for n, v in row.items()} for row in FLAT
    ],
    "categories": lambda f: frame(f).astype({"label": "category"}),
    "datasets": hub_set,
    "datasets, pandas": lambda f: hub_set(f).with_format("pandas"),
    "datasets, torch": lambda f: hub_set(f).with_format("torch", columns=["features"]),
    "datasets, selected": lambda f: hub_set(f).select(range(8)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_table(form: str, tmp_path: Path) -> None:
    found = tables.read(FORMS[form](tmp_path))
    assert (found.kind, len(found)) == ("features", 8)
    got = found.rows([7, 0, 3])
    assert (got.dtype, got.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(got, X[[7, 0, 3]])
    assert found.codes is not None
    assert found.codes.dtype == np.int64
    assert found.codes.tolist() == Y.tolist()
    assert found.classes in (("ant", "cat"), ("0", "1"))
    named = {"a", "b", "c"} <= {*(found.columns or ())}
    assert found.columns == (("a", "b", "c") if named else ())
    assert len(found.raw([1, 2])) == 2
    assert found.digest() == tables.read(FORMS[form](tmp_path)).digest()


def test_arrays_of_whole_numbers_stay_whole() -> None:
    """Token ids, which an embedding takes."""
    found = tables.read((np.arange(8).reshape(4, 2), [0, 1, 0, 1]))
    assert found.rows([1]).dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "kind", "first"),
    [
        ([{"text": "a b", "sentiment": 1}], "text", "a b"),
        ([{"text": "a b", "target": "x"}], "text", "a b"),
        ([{"review": "a b", "label": "x"}], "text", "a b"),
        ([{"tweet": "a b", "label": "x"}], "text", "a b"),
        ([{"Text": "a b", "Label": "x"}], "text", "a b"),
        ([("a b", "pos")], "text", "a b"),
        ([{"text": "a b"}], "language", ("", "a b")),
        (["a b"], "language", ("", "a b")),
        ([{"prompt": "p", "response": "r"}], "language", ("p\n", "r")),
        ([{"instruction": "i", "input": "p", "output": "r"}], "language", ("i\np\n", "r")),
        ([{"prompt": None, "response": "r"}], "language", ("\n", "r")),
        ([{"messages": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]}],
         "language", ("user: q\nbot: ", "a")),
        ([{"image": "x.png", "label": 1}], "image", "x.png"),
        ([("x.png", "cat")], "image", "x.png"),
        ([{"input_ids": [1], "labels": [1]}], "custom", {"input_ids": [1], "labels": [1]}),
        ([{"ids": torch.tensor([1, 2])}], "custom", None),
    ],
)  # fmt: skip
def test_kinds_of_rows(rows: list[Any], kind: str, first: Any) -> None:
    found = tables.read(rows)
    assert found.kind == kind
    if first is not None:
        assert found[0] == first


def test_a_transformation_of_the_targets_is_respected() -> None:
    changed, plain = (tables.read(Pairs(changed)) for changed in (True, False))
    assert changed.codes is not None
    assert plain.codes is not None
    assert (changed.codes == 1 - plain.codes).all()


def test_labels_are_as_given_and_numbered_by_their_sorted_values() -> None:
    found = tables.read((X, [1.0, 0.0] * 4))
    assert (found.classes, found.labels) == (("0", "1"), [1.0, 0.0] * 4)
    fractions = tables.read((X, [0.5, 1.0] * 4))
    assert (fractions.codes, fractions.classes) == (None, ())
    ten = tables.read((np.zeros((11, 1)), [*range(10, -1, -1)]))
    assert ten.classes == tuple(map(str, range(11)))


def test_names_of_classes_are_kept() -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["zebra", "ant", "cow"])
    made = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": [1, 0]},
        features=datasets.Features({"text": datasets.Value("string"), "label": label}),
    )
    found = tables.read(made)
    assert (found.labels, found.classes) == (["ant", "zebra"], ("zebra", "ant", "cow"))
    assert found.codes is not None
    assert found.codes.tolist() == [1, 0]
    train, target = tables.matched(found, tables.read([("c", "zebra"), ("d", "ant")]))
    assert target.codes is not None
    assert target.codes.tolist() == [0, 1]
    assert train.classes == target.classes == ("zebra", "ant", "cow")


def test_names_of_classes_come_with_parquet_and_saved_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(
        {"x": X.tolist(), "label": Y},
        features=datasets.Features(
            {
                "x": datasets.List(datasets.Value("float32")),
                "label": datasets.ClassLabel(names=["ant", "cat"]),
            }
        ),
    )
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert tables.read(path).labels == NAMES
    datasets.DatasetDict(one=made, two=made).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"several sets: one, two"):
        tables.read(tmp_path / "both")


def test_pictures_of_a_shuffled_set_stay_bytes() -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    from zoo import images

    made = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4), (50 * i, 0, 0)) for i in range(4)], "label": [0, 1] * 2}
    ).select([3, 0])
    found = tables.read(made)
    assert found.kind == "image"
    assert [images.read(found[i], "RGB").getpixel((0, 0)) for i in (0, 1)] == [
        (150, 0, 0), (0, 0, 0)]  # fmt: skip


# --- which column is what -------------------------------------------------------------------------


def test_ids_and_an_index_are_no_features(tmp_path: Path) -> None:
    with_id = [{"id": f"r{i}", **row} for i, row in enumerate(FLAT)]
    found = tables.read(with_id)
    assert (found.columns, found.ids) == (("a", "b", "c"), [f"r{i}" for i in range(8)])
    pandas = pytest.importorskip("pandas")
    some = pandas.DataFrame(FLAT).query("a > 1")
    assert tables.read(some).ids == list(some.index)
    some.to_parquet(tmp_path / "a.parquet")
    some.rename_axis("row").to_parquet(tmp_path / "b.parquet")
    some.to_csv(tmp_path / "c.csv")
    for name in ("a.parquet", "b.parquet", "c.csv"):
        found = tables.read(tmp_path / name)
        assert (found.columns, list(found.ids or ())) == (("a", "b", "c"), list(some.index)), name


def test_columns_by_name() -> None:
    rows = [{"one": 1.0, "two": 2, "said": "hm", "kind": "x"}] * 2
    found = tables.read(rows, features="one,two", label="kind")
    assert (found.columns, found.labels) == (("one", "two"), ["x", "x"])
    assert tables.read(rows, features=["two"], label="kind").rows([0]).tolist() == [[2.0]]
    assert tables.read(rows, features="said", label="kind").kind == "text"
    assert tables.read(rows, features="said").kind == "language"


def test_points_named_x_and_y_are_features_beside_a_label() -> None:
    found = tables.read([{"x": 1.0, "y": 2.0, "label": "a"}, {"x": 0.0, "y": 2.5, "label": "b"}])
    assert found.columns == ("x", "y")


def test_columns_without_numbers_are_named_when_left_out() -> None:
    with pytest.warns(UserWarning, match="left out 1 column without numbers: city"):
        found = tables.read([{"a": 1, "city": "x", "label": 0}])
    assert found.columns == ("a",)


def test_rows_of_a_transform_are_taken_as_they_come() -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(VECTORS)
    made.set_transform(
        lambda rows: {"features": [torch.tensor(f) for f in rows["features"]], "y": rows["label"]}
    )
    found = tables.read(made)
    assert (found.kind, found.labels) == ("custom", NAMES)
    assert torch.equal(found[3]["features"], torch.tensor(X[3]))


def test_formatted_columns_are_the_features() -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(FLAT).with_format("numpy", columns=["a", "c"])
    assert tables.read(made).columns == ("a", "c")


# --- two sets -------------------------------------------------------------------------------------


def test_columns_are_matched_by_name() -> None:
    turned = [dict(reversed(row.items())) for row in FLAT]
    train, target = tables.matched(tables.read(FLAT), tables.read(turned, what="target"))
    assert target.columns == train.columns == ("a", "b", "c")
    np.testing.assert_array_equal(train.rows(range(8)), target.rows(range(8)))


@pytest.mark.parametrize(
    ("train", "target", "said"),
    [
        (FLAT, [{**r, "d": 1} for r in FLAT], "train lacks d"),
        (FLAT, [{"a": 1.0, "d": 0.0, "label": "ant"}], "target lacks b, c and train lacks d"),
        (FLAT, (X, NAMES), "has no column names"),
        ((X, Y), (X[:, :2], Y), "3 numbers in each row, but target has 2"),
        (FLAT, [("a", "ant")], "train holds features, but target holds text"),
        ([{"text": "a"}], [("a", 1)], "train lost its labels"),
        ((X, Y), (X, [*map(str, Y)]), r"train are 0, 1, those of target '0', '1'; they share no"),
        ((X, Y), (X, Y + 1), r"only train has 0, only target 2"),
        ((X, NAMES), (X, [n.title() for n in NAMES]), "'ant', 'cat', those of target 'Ant', 'Cat'"),
        ((X, Y + 0.5), (X, NAMES), "texts and numbers"),
    ],
)
def test_sets_that_do_not_match_are_refused(train: Any, target: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tables.matched(tables.read(train), tables.read(target, what="target"))


@pytest.mark.parametrize("labels", [Y.astype(float), Y.astype(bool), torch.tensor(Y)])
def test_the_same_labels_in_other_types(labels: Any) -> None:
    train, target = tables.matched(tables.read((X, Y)), tables.read((X, labels)))
    assert train.codes is not None
    assert train.codes.tolist() == (target.codes if target.codes is not None else Y).tolist()
    assert train.classes == target.classes


def test_either_set_may_have_classes_besides() -> None:
    few, many = tables.read((X[:2], [1, 1])), tables.read((X[:3], [0, 1, 2]))
    for train, target in (tables.matched(few, many), tables.matched(many, few)):
        assert train.classes == target.classes == ("0", "1", "2")
        for found in (train, target):
            assert found.codes is not None
            assert found.codes.tolist() == list(found.labels or ())


# --- refusals -------------------------------------------------------------------------------------


def hole(value: Any, row: int = 5, name: str = "b") -> list[dict[str, Any]]:
    return [{**r, name: value} if i == row else r for i, r in enumerate(FLAT)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "null": (lambda: hole(None), "b is null in row 5"),
    "null in row 0": (lambda: hole(None, 0), "b is null in row 0"),
    "NaN": (lambda: hole(float("nan")), "b is (null|NaN) in row 5"),
    "infinite": (lambda: hole(float("inf")), "b is infinite in row 5"),
    "a text among numbers": (lambda: hole("n/a"), "the text 'n/a' in row 5"),
    "a missing key": (lambda: [*FLAT[:3], {"a": 1, "c": 1, "label": "x"}], "b is null in row 3"),
    "too large": (lambda: hole(1e300), "b is beyond float32 in row 5"),
    "a huge integer": (lambda: hole(10**400), "b: "),
    "no label value": (lambda: hole(None, name="label"), "no label: row 5"),
    "a list as label": (lambda: hole([1], name="label"), "label in row 5 is a list"),
    "text without a label": (lambda: [{"text": "a", "stars": 4}], r"Pass label='stars'"),
    "two labels": (lambda: [{"a": 1, "label": 1, "target": 1}], "columns label, target"),
    "no columns that are known": (lambda: [{"what": "?"}], "the columns what: expected"),
    "two labels by capitals": (lambda: [{"a": 1, "Label": 1, "label": 1}], "Label, label"),
    "rows of numbers beside numbers": (
        lambda: {"arr_0": X, "arr_1": Y}, "arr_0 holds vectors, but arr_1 one number",
    ),
    "ragged": (lambda: [*VECTORS, {"features": [1.0], "label": "ant"}], "shapes.*row 0.*row 8"),
    "no vector": (lambda: [*VECTORS, {"features": None, "label": "ant"}], "null in row 8"),
    "no record": (lambda: [*FLAT, 3], "row 8 is a int"),
    "NaN in an array": (lambda: (np.where(X == 3, np.nan, X), Y), "NaN.* in row 4"),
    "objects": (lambda: (X.astype(object), Y), "Python objects.*astype"),
    "complex": (lambda: (X.astype(complex), Y), "expected numbers"),
    "lengths": (lambda: (X, Y[:3]), "8 inputs and 3 labels"),
    "lengths of columns": (lambda: {"x": X, "y": Y[:3]}, "x 8, y 3"),
    "a mapping of scalars": (lambda: {"x": 1.0, "y": 2}, "mapping of columns"),
    "sparse": (lambda: (torch.tensor(X).to_sparse(), Y), "to_dense"),
    "empty": (list, "train is empty"),
    "no rows": (lambda: (X[:0], Y[:0]), "train is empty"),
    "no columns": (lambda: {"a": {"b": 1}}, "mapping of columns"),
    "no dimension": (lambda: np.array(3.0), "train is empty"),
    "a class": (lambda: dict, "no length"),
    "masked": (lambda: (np.ma.masked_array(X, X > 1), Y), "filled"),
    "on meta": (lambda: (torch.empty(8, 3, device="meta"), Y), "has no values"),
    "an iterator": (lambda: iter(FLAT), "no length"),
    "a set": (lambda: {1, 2}, "cannot be indexed"),
    "a text": (lambda: b"abc", "no length"),
    "half a character": (lambda: [("a\ud800", "x")], "surrogate"),
    "text and number labels": (lambda: (X, [1.5, *NAMES[1:]]), "some are numbers"),
    "text and whole labels": (lambda: (X, [1, *NAMES[1:]]), "some are numbers"),
    "an infinite label": (lambda: (X, [*(Y + 0.5)[:7], float("inf")]), "infinite in row 7"),
    "dates": (lambda: DATES, "dates, not numbers"),
    "dates alone": (lambda: {"t": DATES, "label": Y}, "the columns t, label: expected"),
    "dates as labels": (lambda: (X, DATES), "label in row 0 is a datetime64"),
    "dates as a column of labels": (lambda: {"x": X, "y": DATES}, "row 0 is a datetime64"),
    "beyond int64": (lambda: np.full((2, 2), 2**63, np.uint64), "beyond int64"),
    "a masked column": (lambda: {"a": np.ma.masked_array(Y, Y > 0), "y": Y}, "a: .*filled"),
    "a sparse column": (lambda: {"x": torch.tensor(X).to_sparse(), "y": Y}, "x: .*to_dense"),
    "a nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "unbind",
    ),
    "a set as a column": (lambda: {"x": {1, 2}, "y": [0, 1]}, "x is a set"),
    "a column without dimension": (lambda: {"x": X, "n": np.array(3)}, "n is a ndarray"),
    "a pair cut short": (lambda: [("a", 0), ("b",)], "row 1 has no label"),
    "no pair": (lambda: [("a", 0), None], "row 1 has no label"),
    "no path": (lambda: "", "path is empty"),
    "an address": (lambda: "https://example.org/a.csv", "address"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_and_where(case: str) -> None:
    make, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        tables.read(make())


def test_dates_beside_numbers_are_named_as_left_out() -> None:
    for dates in (DATES, DATES - DATES[0]):
        with pytest.warns(UserWarning, match="left out 1 column without numbers: t"):
            found = tables.read({"t": dates, "a": Y, "label": NAMES})
        assert found.columns == ("a",)


def test_frames_as_inputs_beside_any_labels() -> None:
    pandas = pytest.importorskip("pandas")
    inputs = pandas.DataFrame(X, index=range(5, 13))
    for labels in (NAMES, pandas.DataFrame({"name": NAMES}), pandas.Series(NAMES)):
        found = tables.read((inputs, labels))
        np.testing.assert_array_equal(found.rows(range(8)), X)
        assert found.labels == NAMES
    for labels, said in (
        (pandas.Series([1, None] * 4, dtype="Int64"), "4 of 8 rows have no label: rows 1, 3"),
        (pandas.Series(["a", None] * 4, dtype="string"), "4 of 8 rows have no label: rows 1, 3"),
        (pandas.DataFrame({"a": Y, "b": Y}), "DataFrame of 2 columns"),
    ):
        with pytest.raises(InputError, match=said):
            tables.read((inputs, labels))
    with pytest.raises(InputError, match="a is null in row 1"):
        tables.read((pandas.DataFrame({"a": pandas.array([1, None], "Int64")}), [0, 1]))


def test_columns_that_are_series_go_by_place() -> None:
    pandas = pytest.importorskip("pandas")
    back = range(15, 7, -1)
    columns = {"text": pandas.Series([*"abcdefgh"], back), "label": pandas.Series(NAMES, back)}
    found = tables.read(columns)
    assert (found.rows(range(8)), found.labels) == ([*"abcdefgh"], NAMES)


def test_texts_of_an_array_are_texts(tmp_path: Path) -> None:
    assert tables.read(np.array(NAMES)).kind == tables.read(NAMES).kind == "language"
    np.save(tmp_path / "a.npy", np.array([(1.5, 0)], [("a", "f4"), ("label", "i8")]))
    found = tables.read(tmp_path / "a.npy")
    assert (found.columns, found.labels) == (("a",), [0])


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = pyarrow.Table.from_arrays([pyarrow.array([1])] * 3, ["a", "a", "y"])
    parquet.write_table(found, tmp_path / "a.parquet")
    for source in (found, tmp_path / "a.parquet"):
        with pytest.raises(InputError, match="the column 'a' occurs twice"):
            tables.read(source)


def test_containers_of_libraries_are_refused_in_words() -> None:
    scipy = pytest.importorskip("scipy.sparse")
    with pytest.raises(InputError, match="toarray"):
        tables.read((scipy.csr_matrix(X), Y))
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(FLAT)
    with pytest.raises(InputError, match=r"splits one, two.*data\['one'\]"):
        tables.read(datasets.DatasetDict(one=made, two=made))
    with pytest.raises(InputError, match="no length"):
        tables.read(made.to_iterable_dataset())
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="DataFrame"):
        tables.read(pandas.Series([1, 2]))
    with pytest.raises(InputError, match="column 'a' occurs twice"):
        tables.read(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    holes = pandas.DataFrame({"a": pandas.array([1, None], "Int64"), "label": [0, 1]})
    with pytest.raises(InputError, match="a is null in row 1"):
        tables.read(holes)


def test_an_array_has_no_labels_and_no_names() -> None:
    found = tables.read(X)
    with pytest.raises(InputError, match=r"train has no label.*pair"):
        found.require_labels()
    with pytest.raises(OptionError, match="no named columns"):
        tables.read((X, Y), label="y")
    with pytest.raises(InputError, match=r"features='aa'.*columns a, b, c, label.*mean 'a'"):
        tables.read(FLAT, features="aa")
    with pytest.raises(InputError, match="label has no numbers"):
        tables.read(FLAT, features=["a", "label"], label="b")
    with pytest.raises(OptionError, match="column names"):
        tables.read(FLAT, features=[])


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"edgezoo\[data\]"):
        tables.read(tmp_path / "a.parquet")


# --- files of text --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\x0bb\x0cc", "żółć"])
def test_text_is_split_at_newlines_only(tmp_path: Path, odd: str, encoding: str) -> None:
    rows = [{"text": odd, "label": "x"}, {"text": "c", "label": "y"}]
    found = tables.read(jsonl(tmp_path / "a.jsonl", rows, encoding, ascii=False))
    assert found.rows([0, 1]) == [odd, "c"]
    (tmp_path / "a.txt").write_bytes(f"{odd}\r\n\nc".encode(encoding))
    assert tables.lines(tmp_path / "a.txt", "texts") == [odd, "c"]
    (tmp_path / "a.csv").write_bytes(f"text,label\r\n{odd},x\r\nc,y\r\n".encode(encoding))
    assert tables.read(tmp_path / "a.csv").rows([0, 1]) == [odd, "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "é"}'.encode("utf-16"), "a.jsonl cannot be read.*UTF-16"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "a.jsonl cannot.*0xe9 in line 2"),
        ("a.jsonl", b'{"text": "a"}\nnot json', "a.jsonl, line 2 cannot be read as JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]', "line 2: expected an object"),
        ("a.jsonl", b"[" * 100_000, "cannot be read as JSON"),
        ("a.jsonl", b" \n", "train is empty"),
        ("a.json", b'{"a": 1}', "list of objects"),
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.csv", b"a,b,label\n1,2,x\n3,y", "line 3: 2 cells, but the first line has 3"),
        ("a.csv", b"a,a\n1,2", "column 'a' twice"),
        ("a.csv", b"a,label\n", "header but no rows"),
        ("a.csv", b"a,label\n1,x\n,y\n", "a is null in row 1"),
        ("a.csv", b'a,label\n"1,x\n', "a.csv, line"),
        ("a.csv", b"1,2\n3,x", "line 2: 'x' is not a number"),
        ("a.csv", b"0,1,2\n.5,.6,.7", "a header from pandas or a row"),
        ("a.csv", b"1.5,2,cat\n3,4,dog", "has 1.5 in its first line"),
        ("a.csv", b"a,b,label\n1,NA,0\n2,3,1", "b is null in row 0"),
        ("a.csv", b"a,label\n1,0\n2,n/a", "1 of 2 rows have no label: row 1"),
        ("a.csv", b"a;b;label\n1,5;2;0\n3;4;1", "a holds '1,5', a number with a comma"),
        ("a.json", b'{"a": {"0": 1}}', "orient='records'"),
        ("a.pt", b"x", "pickled"),
        ("a.xlsx", b"x", "neither a file of type .csv"),
        ("a.npy", b"x", "not a plain .npy"),
        ("a.npz", b"x", "not a plain .npz"),
        ("a.parquet", b"x", "cannot be read"),
        ("a.safetensors", b"x", "a.safetensors"),
    ],
)
def test_files_are_refused_by_name_and_line(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        tables.read(tmp_path / name)


def test_a_file_or_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        tables.read(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="has no rows"):
        tables.read(tmp_path)


def test_delimiters_and_an_array_as_savetxt_writes_it(tmp_path: Path) -> None:
    for name, sep in (("a.csv", ";"), ("b.tsv", "\t"), ("c.csv", "\t")):
        (tmp_path / name).write_text(f"a{sep}label\n1.5{sep}x,y\n2{sep}z\n")
        found = tables.read(tmp_path / name)
        assert (found.rows([0, 1]).tolist(), found.labels) == ([[1.5], [2.0]], ["x,y", "z"])
    np.savetxt(tmp_path / "d.csv", X, delimiter=",")
    found = tables.read(tmp_path / "d.csv")
    np.testing.assert_allclose(found.rows(range(8)), X)
    assert found.labels is None


def test_spaces_after_the_delimiter_and_long_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a, b, label\n1, 2, x\n3, 4, y\n")
    found = tables.read(tmp_path / "a.csv")
    assert (found.rows([1]).tolist(), found.labels) == ([[3, 4]], ["x", "y"])
    (tmp_path / "c.csv").write_text('text, label\n"a", x\n "b, c",  "y"\n')
    found = tables.read(tmp_path / "c.csv")
    assert (found.rows([0, 1]), found.labels) == (["a", "b, c"], ["x", "y"])
    (tmp_path / "b.csv").write_text(f"text,label\n{'a' * 200_000},x\n")
    assert len(tables.read(tmp_path / "b.csv")[0]) == 200_000


def test_numbers_in_a_column_of_texts_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n007,01\n1.50,02\n")
    found = tables.read(tmp_path / "a.csv")
    assert (found.rows([0, 1]), found.labels) == (["007", "1.50"], ["01", "02"])


def test_delimiters_in_quotes_and_bars(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"te,xt";label\na;0\nb;1\n')
    assert tables.read(tmp_path / "a.csv").labels == [0, 1]
    (tmp_path / "b.csv").write_text("a|b|label\n1|2|x\n")
    assert tables.read(tmp_path / "b.csv").columns == ("a", "b")


def test_a_comma_at_the_end_of_each_line_is_no_id(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,label,\n1,0,\n3,1,\n")
    found = tables.read(tmp_path / "a.csv")
    assert (found.columns, found.ids) == (("a",), None)


# --- folders --------------------------------------------------------------------------------------


def test_hidden_files_are_neither_classes_nor_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name / "below").mkdir(parents=True)
        for place in (tmp_path / name, tmp_path / name / "below"):
            Image.new("RGB", (4, 4)).save(place / "1.png")
            (place / "._1.png").write_bytes(b"x")
            (place / "Thumbs.db").write_bytes(b"x")
    found = tables.read(tmp_path)
    assert (found.kind, found.labels) == ("image", ["cat"] * 2 + ["dog"] * 2)
    assert [path.name for path in found.rows(range(4))] == ["1.png"] * 4
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"left out 2 in .*: notes.txt, empty"):
        assert len(tables.read(tmp_path)) == 4
    (tmp_path / "cat" / "list.txt").write_text("x")
    with (
        pytest.warns(UserWarning, match="left out 2 in"),
        pytest.warns(UserWarning, match=r"left out 1 of 3 files.*list.txt"),
    ):
        tables.read(tmp_path)


def test_a_folder_of_sets_is_no_folder_of_classes(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("ant", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / name / "a.png")
    with pytest.raises(InputError, match="several sets: test, train"):
        tables.read(tmp_path)
    assert tables.read(tmp_path / "train").classes == ("ant", "cat")


def test_images_of_a_file_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,label\nin/a.png,x\n")
    for path in (tmp_path, tmp_path / "metadata.csv"):
        assert tables.read(path).rows([0]) == [str(tmp_path / "in/a.png")]


# --- bulk -----------------------------------------------------------------------------------------


def test_a_batch_of_wide_parquet_is_a_slice(tmp_path: Path) -> None:
    """No column is read after the table is made."""
    import pyarrow
    from pyarrow import parquet

    x = np.random.default_rng(0).random((300, 200), np.float32)
    columns = {f"c{i}": x[:, i] for i in range(200)} | {"label": np.arange(300) % 3}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = tables.read(tmp_path / "a.parquet")
    assert found.array is not None
    np.testing.assert_array_equal(found.array, x)
    np.testing.assert_array_equal(found.rows([5, 299]), x[[5, 299]])


def test_an_npy_file_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.NPY", X)
    (tmp_path / "a.NPY.npy").rename(tmp_path / "a.NPY")
    assert isinstance(tables.array(tmp_path / "a.NPY", "images"), np.memmap)


# --- there and back -------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), min_size=1)
NUMBER = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_texts_there_and_back(tmp_path_factory: Any, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("texts")
    records = [{"text": a, "label": f"_{b}"} for a, b in rows]
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    found = {
        "csv": tables.read(folder / "a.csv"),
        "escaped": tables.read(jsonl(folder / "a.jsonl", records)),
        "as it is": tables.read(jsonl(folder / "b.jsonl", records, ascii=False)),
    }
    for name, table in found.items():
        assert table.kind == "text", name
        assert table.rows(range(len(table))) == [a for a, _ in rows], name
        assert table.labels == [f"_{b}" for _, b in rows], name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER, st.integers(-(10**6), 10**6)), min_size=1, max_size=6))
def test_numbers_there_and_back(tmp_path_factory: Any, rows: list[tuple[Any, ...]]) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    records = [{"a": a, "b": b, "label": c} for a, b, c in rows]
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b", "label"])
        writer.writeheader()
        writer.writerows(records)
    for table in (
        tables.read(folder / "a.csv"), tables.read(jsonl(folder / "a.jsonl", records)),
        tables.read(records),
    ):  # fmt: skip
        np.testing.assert_array_equal(
            table.rows(range(len(rows))), np.array([r[:2] for r in rows], np.float32)
        )
        assert table.labels == [c for _, _, c in rows]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.npy", "a.npz"]))
def test_no_bytes_of_a_file_break_out_of_words(
    tmp_path_factory: Any, content: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with suppress(InputError):
        tables.read(path)
