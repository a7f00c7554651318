"""Every format gives the same rows, in bounded blocks; hostile and wrong files give a sentence."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pipeline.tables import formats
from pipeline.tables.formats import read_embeddings
from pipeline.tables.samples import embedding_matrix
from pipeline.tables.schema import TableError

N, D = 2500, 4  # more rows than one piece
X_ND = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
KEYS = [f"img-{number}" for number in range(N)]
LABELS = [str(number % 3) for number in range(N)]


def _npy(path: Path) -> None:
    np.save(path, X_ND)


def _npy_of_columns(path: Path) -> None:
    np.save(path, np.asfortranarray(X_ND))


def _npz(path: Path) -> None:
    np.savez_compressed(path, embedding=X_ND, key=KEYS, label=np.array(LABELS, dtype="S1"), extra=np.zeros(3))


def _safetensors(path: Path) -> None:
    save_file({"embedding": X_ND, "label": np.array(LABELS).astype(np.int64), "scale": np.ones((2, 2))}, path)


def _columns(vectors: pa.Array) -> pa.Table:
    return pa.table({"label": LABELS, "embedding": vectors, "key": KEYS, "other": pa.array([[1.0]] * N)})


def _fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), D)


def _parquet(path: Path) -> None:
    pq.write_table(_columns(pa.array(list(X_ND))), path, row_group_size=700)


def _parquet_fixed(path: Path) -> None:
    pq.write_table(_columns(_fixed(X_ND)), path)


def _parquet_unnamed(path: Path) -> None:
    table = pa.table({"id": range(N), "clip": pa.array(list(X_ND.astype(np.float64))), "label": pa.array(LABELS)})
    pq.write_table(table.set_column(2, "label", table["label"].dictionary_encode()), path)


def _arrow_file(path: Path) -> None:
    with pa.ipc.new_file(path, _columns(_fixed(X_ND)).schema) as sink:
        sink.write_table(_columns(_fixed(X_ND)), max_chunksize=333)


def _arrow_stream(path: Path) -> None:
    table = pa.table(
        {"embedding": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (D,)), _fixed(X_ND))}
    )
    with pa.ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table)


WRITERS: list[tuple[str, Callable[[Path], None], bool, bool]] = [  # extension, writer, has keys, has labels
    ("npy", _npy, False, False),
    ("NPY", _npy_of_columns, False, False),
    ("npz", _npz, True, True),
    ("safetensors", _safetensors, False, True),
    ("parquet", _parquet, True, True),
    ("parquet", _parquet_fixed, True, True),
    ("parquet", _parquet_unnamed, False, True),
    ("arrow", _arrow_file, True, True),
    ("feather", _arrow_file, True, True),
    ("ipc", _arrow_stream, False, False),
]


def _written(folder: Path, extension: str, write: Callable[[Path], None]) -> Path:
    path = folder / f"x.{extension}"
    with path.open("wb") as stream:  # by handle where numpy would add a suffix
        if extension == "NPY":
            np.save(stream, np.asfortranarray(X_ND))
            return path
    write(path)
    return path


@pytest.mark.parametrize(("extension", "write", "keyed", "labelled"), WRITERS)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, extension: str, write: Callable[[Path], None], keyed: bool, labelled: bool
) -> None:
    table = pa.concat_tables(read_embeddings(_written(tmp_path, extension, write)))
    np.testing.assert_array_equal(embedding_matrix(table), X_ND)
    assert table["key"].to_pylist() == (KEYS if keyed else [f"{number:012d}" for number in range(N)])
    assert table["label"].to_pylist() == (LABELS if labelled else [None] * N)


@pytest.mark.parametrize(("extension", "write", "keyed", "labelled"), WRITERS)
def test_blocks_are_bounded_and_do_not_depend_on_the_format(
    tmp_path: Path,
    extension: str,
    write: Callable[[Path], None],
    keyed: bool,
    labelled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 400 * 4 * D + 7)
    blocks = list(read_embeddings(_written(tmp_path, extension, write)))
    assert [block.num_rows for block in blocks] == [400] * 6 + [100]
    assert all(block["embedding"].num_chunks == 1 for block in blocks)
    np.testing.assert_array_equal(np.concatenate([embedding_matrix(block) for block in blocks]), X_ND)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("extension", ["npy", "npz", "parquet"])
def test_other_floats_become_float32(tmp_path: Path, dtype: Any, extension: str) -> None:
    x_ND = np.array([[0.5, -2.0], [1.5, 3.25]], dtype=dtype)
    path = tmp_path / f"x.{extension}"
    if extension == "npy":
        np.save(path, x_ND)
    elif extension == "npz":
        np.savez(path, x_ND)  # as `arr_0`, the only array
    else:
        native = x_ND.astype(x_ND.dtype.newbyteorder("="))
        pq.write_table(pa.table({"embedding": pa.array(list(native))}), path)
    (block,) = read_embeddings(path)
    assert embedding_matrix(block).dtype == np.float32
    assert embedding_matrix(block).tolist() == [[0.5, -2.0], [1.5, 3.25]]


def test_a_null_embedding_becomes_nans_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2 * 4 * 2)
    vectors = pa.array([None, None, None, [1.0, 2.0], None, [None, 3.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": vectors}), tmp_path / "x.parquet")
    blocks = list(read_embeddings(tmp_path / "x.parquet"))
    nan = float("nan")
    found = np.concatenate([embedding_matrix(block) for block in blocks])
    np.testing.assert_array_equal(found, [[nan, nan]] * 3 + [[1, 2], [nan, nan], [nan, 3]])
    assert [block.num_rows for block in blocks] == [2, 2, 2]


def test_a_file_without_rows_gives_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.empty((0, 4), np.float32))
    np.savez(tmp_path / "b.npz", embedding=np.empty((0, 4), np.float32))
    save_file({"embedding": np.empty((0, 4), np.float32)}, tmp_path / "c.safetensors")
    empty = pa.table({"embedding": pa.array([], pa.list_(pa.float32()))})
    pq.write_table(empty, tmp_path / "d.parquet")
    with pa.ipc.new_file(tmp_path / "e.arrow", empty.schema) as sink:
        sink.write_table(empty)
    assert [list(read_embeddings(path)) for path in sorted(tmp_path.iterdir())] == [[]] * 5


class _Explodes:
    """Proves that nothing was unpickled: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("extension", ["npy", "npz"])
@pytest.mark.parametrize("name", ["embedding", "key"])
def test_a_pickle_in_a_numpy_file_is_never_run(tmp_path: Path, extension: str, name: str) -> None:
    hostile = np.array([_Explodes(tmp_path / "ran")], dtype=object)
    path = tmp_path / f"x.{extension}"
    if extension == "npy":
        np.save(path, hostile, allow_pickle=True)
    else:
        np.savez(path, allow_pickle=True, **{"embedding": np.ones((1, 2), np.float32), name: hostile})
    with pytest.raises(TableError, match="made of Python objects, which are never unpickled"):
        list(read_embeddings(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("extension", ["npy", "npz", "parquet", "arrow", "ipc", "feather", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04nothing", b"PAR1PAR1", b"ARROW1\0\0", b"<html>" * 99]
)
def test_nonsense_is_a_sentence(tmp_path: Path, extension: str, content: bytes) -> None:
    path = tmp_path / f"x.{extension}"
    path.write_bytes(content)
    with pytest.raises(TableError, match="cannot be read as"):
        list(read_embeddings(path))


def test_a_bare_pickle_is_a_sentence(tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(_Explodes(tmp_path / "ran")))
        with pytest.raises(TableError, match="cannot be read as"):
            list(read_embeddings(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("extension", "write", "keyed", "labelled"), WRITERS)
def test_a_file_that_breaks_off_is_a_sentence(
    tmp_path: Path, extension: str, write: Callable[[Path], None], keyed: bool, labelled: bool
) -> None:
    path = _written(tmp_path, extension, write)
    content = path.read_bytes()
    for size in (len(content) // 3, len(content) - 1000):
        path.write_bytes(content[:size])
        with pytest.raises(TableError, match="write it again"):
            list(read_embeddings(path))


def test_an_archive_whose_array_is_too_short_is_a_sentence(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, X_ND)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("embedding.npy", array.getvalue()[:-4])
    with pytest.raises(TableError, match=r"ends inside embedding\.npy, which should be \(2500, 4\)"):
        list(read_embeddings(tmp_path / "x.npz"))


@pytest.mark.parametrize("shape", ["(10**30, 4)", "(-1, 4)", "(4, 10**9)", "(3000000000, 3000000000)"])
def test_a_forged_header_is_a_sentence(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".replace("10**30", "1" + "0" * 30)
    header = header.replace("10**9", "1000000000")
    padded = header.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + b"\0" * 64
    (tmp_path / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("embedding.npy", content)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(TableError):
            list(read_embeddings(tmp_path / name))


def _save(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    elif path.suffix == ".npy":
        np.save(path, arrays["embedding"])
    else:
        pq.write_table(pa.table(arrays), path)
    return path


@pytest.mark.parametrize(
    ("name", "arrays", "sentence"),
    [
        ("x.npy", {"embedding": np.zeros((2, 3), np.int64)}, "type int64; expected float16, float32 or float64"),
        ("x.npy", {"embedding": np.zeros((2, 3), np.uint8)}, "type uint8; expected float16"),
        ("x.npy", {"embedding": np.zeros(3, np.float32)}, r"shape \(3,\); expected two dimensions"),
        ("x.npy", {"embedding": np.zeros((2, 3, 4), np.float32)}, r"shape \(2, 3, 4\); expected two dimensions"),
        ("x.npy", {"embedding": np.zeros((2, 0), np.float32)}, "0-d embeddings; expected 1 to 65536"),
        ("x.npy", {"embedding": np.zeros((1, 65_537), np.float32)}, "65537-d embeddings"),
        ("x.npy", {"embedding": np.zeros(2, [("a", "f4"), ("b", "U3")])}, "expected float16"),
        ("x.npz", {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, r"arrays \['a', 'b'\]; name the one to import"),
        ("x.npz", {"embedding": np.zeros((2, 3)), "key": np.array(["a"])}, r"key of shape \(1,\) for 2 embeddings"),
        ("x.npz", {"embedding": np.zeros((2, 3)), "label": np.zeros(2)}, "label of type float64; expected text or"),
        ("x.npz", {"embedding": np.zeros((2, 3)), "key": np.zeros(2, "U70000")}, "bytes per row; expected at most"),
        ("x.npz", {"embedding": np.zeros((2, 3)), "key": np.array([b"\xff", b"a"])}, "cannot be read as .npz"),
        ("x.npz", {"embedding": np.asfortranarray(np.zeros((2, 3)))}, "in column order"),
        ("x.safetensors", {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, "name the one to import `embedding`"),
        ("x.safetensors", {"a": np.zeros(3)}, "name the one to import `embedding`"),
        ("x.safetensors", {"embedding": np.zeros((2, 3), np.int32)}, "type I32; expected float16"),
        ("x.safetensors", {"embedding": np.zeros((2, 3)), "label": np.zeros((2, 2), int)}, r"label of shape \(2, 2\)"),
        ("x.parquet", {"a": [[1.0]], "b": [[1.0]]}, "expected one list of floats, or one called `embedding`"),
        ("x.parquet", {"a": [1.0]}, r"columns {'a': 'double'}; expected one list of floats"),
        ("x.parquet", {"embedding": [[1]]}, r"columns {'embedding': 'list<element: int64>'}; expected one"),
        ("x.parquet", {"embedding": [[1.0]], "label": [1.5]}, "label of type double; expected text or integers"),
        ("x.parquet", {"embedding": [[1.0, 2.0], [1.0]]}, "embeddings of 1 and of 2 dimensions"),
        ("x.parquet", {"embedding": [[1.0]] * 1500 + [[1.0, 2.0]]}, "embeddings of 1 and of 2 dimensions.*1024 on"),
        ("x.parquet", {"embedding": pa.array([[], []], pa.list_(pa.float32()))}, "0-d embeddings"),
        ("x.parquet", {"embedding": pa.nulls(3, pa.list_(pa.float32()))}, "3 rows but no embedding in any"),
        ("x.parquet", {"embedding": [[1.0]] * 2, "key": ["a", None]}, "has no key; give every row a key"),
    ],
)
def test_what_is_no_matrix_of_floats_is_a_sentence(
    tmp_path: Path, name: str, arrays: dict[str, Any], sentence: str
) -> None:
    path = _save(tmp_path / name, **arrays)
    with pytest.raises(TableError, match=sentence) as raised:
        list(read_embeddings(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.pkl", "x.pt", "x.csv", "x"])
def test_other_formats_are_refused_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(TableError, match=r"expected one of \.arrow, \.feather, \.ipc, \.npy, \.npz, \.parquet"):
        list(read_embeddings(tmp_path / name))
