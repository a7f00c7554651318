"""Embeddings in other tools' files, as blocks of rows: .npy, .npz, Parquet, Arrow IPC and safetensors.

Nothing is unpickled. Memory is about three blocks of BLOCK_BYTES, whatever the size of the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from pipeline.tables.samples import embedding_array, embedding_matrix
from pipeline.tables.schema import EMBEDDING, MAX_DIMENSION, TableError

BLOCK_BYTES = 2**26
PIECE_ROWS = 1024  # read at a time; blocks are cut from pieces by dimension alone, so they do not depend on them
KEY_DIGITS = 12  # of a row number that serves as key: sorts as text in the order of the file
BLOCK = pa.schema(
    [pa.field("key", pa.string(), False), pa.field("label", pa.string()), pa.field("embedding", EMBEDDING)]
)

MAX_TEXT_BYTES = 2**16  # of a key or label in a fixed-width array
_FLOATS = {"F16", "F32", "F64"}  # safetensors' names
Columns = dict[str, pa.Array]  # `embedding`, and `key` and `label` where the file has them


def read_embeddings(path: str | Path) -> Iterator[pa.Table]:
    """Blocks with columns BLOCK. All embeddings have the same length; they may be not finite, and a null becomes NaNs.

    A file has an array, tensor or column `embedding`, or just one that could be it; `label` and `key`, if there, are
    text or integers, one per row. Without `key`, the row number is the key. A file without rows yields nothing.
    Raises TableError for a format, type or shape that is none of these, and for a damaged file.
    """
    file = Path(path)
    read = READERS.get(file.suffix.lower())
    if read is None:
        raise TableError(f"{file} is in no format that can be imported; expected one of {', '.join(sorted(READERS))}.")
    try:
        yield from _cut(file, read(file))
    except TableError:
        raise
    except Exception as error:  # six libraries, each of which raises what it likes at a damaged file
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TableError(f"{file} cannot be read as {file.suffix} ({line}); write it again.") from error


def _cut(file: Path, pieces: Iterable[Columns]) -> Iterator[pa.Table]:
    """Pieces, made whole and joined to blocks of a size that depends on the dimension alone."""
    pending: list[pa.Table] = []
    waiting, start, dimension = 0, 0, None
    for columns in pieces:
        table = _whole(columns, start)
        dimension = _one_length(file, table, dimension, start)
        start += table.num_rows
        pending.append(table)
        waiting += table.num_rows
        block_rows = max(1, BLOCK_BYTES // (4 * dimension)) if dimension else waiting + 1
        while waiting >= block_rows:
            joined = pa.concat_tables(pending)
            yield _filled(joined.slice(0, block_rows), dimension)
            pending, waiting = [joined.slice(block_rows)], waiting - block_rows
    if start and dimension is None:
        raise TableError(f"{file} has {start} rows but no embedding in any of them; expected lists of floats.")
    if waiting and dimension is not None:
        yield _filled(pa.concat_tables(pending), dimension)


def _filled(block: pa.Table, dimension: int | None) -> pa.Table:
    block = block.combine_chunks()
    column = block["embedding"]
    if not column.null_count:
        return block
    x_ND = np.full((len(column), dimension or 0), np.nan, np.float32)
    valid_N = column.is_valid()
    x_ND[valid_N.to_numpy()] = embedding_matrix(block.filter(valid_N)) if column.null_count < len(column) else 0
    return block.set_column(block.schema.get_field_index("embedding"), BLOCK.field("embedding"), embedding_array(x_ND))


def _whole(columns: Columns, start: int) -> pa.Table:
    rows = len(columns["embedding"])
    table = pa.table(
        {
            "key": columns["key"] if "key" in columns else _row_numbers(start, rows),
            "label": columns.get("label", pa.nulls(rows, pa.string())),
            "embedding": columns["embedding"],
        }
    )
    if table["key"].null_count:
        raise TableError(f"A row from number {start} on has no key; give every row a key, or no `key` at all.")
    return table.cast(BLOCK)


def _row_numbers(start: int, rows: int) -> pa.Array:
    return pa.array([f"{number:0{KEY_DIGITS}d}" for number in range(start, start + rows)], pa.string())


def _one_length(file: Path, table: pa.Table, dimension: int | None, start: int) -> int | None:
    found = set(pc.unique(pc.list_value_length(table["embedding"])).to_pylist()) - {None}
    expected = dimension if dimension is not None else min(found, default=None)
    if expected is None:
        return None
    _check_dimension(file, expected)
    wrong = found - {expected}
    if wrong:
        raise TableError(
            f"{file} has embeddings of {expected} and of {min(wrong)} dimensions (rows from {start} on); "
            "all rows of a file must have the same dimension."
        )
    return int(expected)


def _check_dimension(file: Path, dimension: int) -> None:
    if not 1 <= dimension <= MAX_DIMENSION:
        raise TableError(f"{file} has {dimension}-d embeddings; expected 1 to {MAX_DIMENSION} dimensions.")


def _check_matrix(file: Path, name: str, kind: str, shape: tuple[int, ...]) -> None:
    if kind not in _FLOATS:
        raise TableError(
            f"{file} has {name} of type {kind}; expected float16, float32 or float64, so convert it first."
        )
    if len(shape) != 2 or shape[0] < 0:
        raise TableError(f"{file} has {name} of shape {shape}; expected two dimensions, rows × features.")
    _check_dimension(file, shape[1])


def _check_vector(file: Path, name: str, shape: tuple[int, ...], rows: int) -> None:
    if shape != (rows,):
        raise TableError(f"{file} has {name} of shape {shape} for {rows} embeddings; expected one value per row.")


def _float_name(dtype: np.dtype[Any]) -> str:
    return f"F{8 * dtype.itemsize}" if dtype.kind == "f" else str(dtype)


def _texts(file: Path, name: str, values: np.ndarray) -> pa.Array:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "Uiu":
        raise TableError(f"{file} has {name} of type {values.dtype}; expected text or integers.")
    return pa.array([str(value) for value in values.tolist()], pa.string())


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE_ROWS, rows)) for start in range(0, rows, PIECE_ROWS))


def _read_npy(file: Path) -> Iterator[Columns]:
    with file.open("rb") as stream:
        shape, _, dtype = _npy_header(file, file.name, stream)
    _check_matrix(file, "an array", _float_name(dtype), shape)
    if shape[0] == 0:
        return  # which cannot be mapped
    x_ND = np.load(file, mmap_mode="r", allow_pickle=False)
    for piece in _pieces(shape[0]):
        yield {"embedding": _floats(x_ND[piece])}


def _floats(x_ND: np.ndarray) -> pa.Array:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and the row a reject
        return embedding_array(np.asarray(x_ND).astype(np.float32))


def _npy_header(file: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, column order and type of an .npy stream, which is left at its first value."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise TableError(f"{file} has {name} in .npy version {version}; expected 1.0 or 2.0, so save it again.")
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise TableError(
            f"{file} has {name} made of Python objects, which are never unpickled here; save plain numbers."
        )
    if dtype.kind in "US" and dtype.itemsize > MAX_TEXT_BYTES:
        raise TableError(f"{file} has {name} of {dtype.itemsize} bytes per row; expected at most {MAX_TEXT_BYTES}.")
    return shape, columns_first, dtype


def _read_npz(file: Path) -> Iterator[Columns]:
    with zipfile.ZipFile(file) as archive:
        arrays = {name.removesuffix(".npy"): _Member(file, archive, name) for name in archive.namelist()}
        embedding = arrays.pop("embedding", None) or _only(file, arrays)
        _check_matrix(file, embedding.name, _float_name(embedding.dtype), embedding.shape)
        rows = embedding.shape[0]
        texts: dict[str, _Member] = {name: arrays[name] for name in ("key", "label") if name in arrays}
        for name, member in texts.items():
            _check_vector(file, name, member.shape, rows)
        for piece in _pieces(rows):
            count = piece.stop - piece.start
            columns = {name: _texts(file, name, member.take(count)) for name, member in texts.items()}
            yield {"embedding": _floats(embedding.take(count)), **columns}


class _Member:
    """One array of an .npz archive, read row by row from its compressed stream."""

    def __init__(self, file: Path, archive: zipfile.ZipFile, name: str) -> None:
        self.file, self.name = file, name
        self._stream = archive.open(name)
        self.shape, columns_first, self.dtype = _npy_header(file, name, self._stream)
        if columns_first:
            raise TableError(f"{file} has {name} in column order; save it with np.ascontiguousarray, or as .npy.")

    def take(self, rows: int) -> np.ndarray:
        """The next `rows` rows."""
        shape = (rows, *self.shape[1:])
        wanted = self.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise TableError(f"{self.file} ends inside {self.name}, which should be {self.shape}; write it again.")
        return np.frombuffer(data, self.dtype).reshape(shape)


def _only(file: Path, arrays: dict[str, _Member]) -> _Member:
    if len(arrays) != 1:
        raise TableError(f"{file} has the arrays {sorted(arrays)}; name the one to import `embedding`.")
    return arrays.popitem()[1]


def _read_safetensors(file: Path) -> Iterator[Columns]:
    with safe_open(file, framework="numpy") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
        shapes = {name: tuple(view.get_shape()) for name, view in slices.items()}
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        name = "embedding" if "embedding" in slices else matrices[0] if len(matrices) == 1 else None
        if name is None:
            raise TableError(f"{file} has the tensors {shapes}; name the one to import `embedding`.")
        _check_matrix(file, name, slices[name].get_dtype(), shapes[name])
        texts: list[str] = [each for each in ("key", "label") if each in slices and each != name]
        for each in texts:
            _check_vector(file, each, shapes[each], shapes[name][0])
        for piece in _pieces(shapes[name][0]):
            columns = {each: _texts(file, each, slices[each][piece]) for each in texts}
            yield {"embedding": _floats(slices[name][piece]), **columns}


def _read_parquet(file: Path) -> Iterator[Columns]:
    with pq.ParquetFile(file, memory_map=True) as source:
        names = _arrow_columns(file, source.schema_arrow)
        for batch in source.iter_batches(batch_size=PIECE_ROWS, columns=list(names.values())):
            yield _from_batch(batch, names)


def _read_arrow(file: Path) -> Iterator[Columns]:
    with pa.memory_map(str(file)) as source:
        for batch in _arrow_batches(source):
            names = _arrow_columns(file, batch.schema)
            for piece in _pieces(batch.num_rows):
                yield _from_batch(batch.slice(piece.start, piece.stop - piece.start), names)


def _arrow_batches(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    with suppress(pa.ArrowInvalid):  # the stream format has no magic at its end
        reader = pa.ipc.open_file(source)
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    source.seek(0)
    return iter(pa.ipc.open_stream(source))


def _arrow_columns(file: Path, schema: pa.Schema) -> dict[str, str]:
    """Which columns of a file are `embedding`, `key` and `label`, with their types checked."""
    candidates = [each.name for each in schema if _is_vector(each.type)]
    name = "embedding" if "embedding" in schema.names else candidates[0] if len(candidates) == 1 else None
    if name is None or name not in candidates:
        found = {each.name: str(each.type) for each in schema}
        raise TableError(f"{file} has the columns {found}; expected one list of floats, or one called `embedding`.")
    texts = [each for each in ("key", "label") if each in schema.names and each != name]
    for each in texts:
        if not _is_text(schema.field(each).type):
            raise TableError(f"{file} has {each} of type {schema.field(each).type}; expected text or integers.")
    return {"embedding": name, **{each: each for each in texts}}


def _is_vector(kind: pa.DataType) -> bool:
    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    lists = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    return bool(lists and pa.types.is_floating(stored.value_type))


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(value) or pa.types.is_string(value) or pa.types.is_large_string(value))


def _from_batch(batch: pa.RecordBatch, names: dict[str, str]) -> Columns:
    columns = {name: batch.column(found) for name, found in names.items()}
    vectors = columns["embedding"]
    stored = vectors.storage if isinstance(vectors.type, pa.BaseExtensionType) else vectors
    columns["embedding"] = stored.cast(EMBEDDING)
    return {name: column if name == "embedding" else column.cast(pa.string()) for name, column in columns.items()}


READERS: dict[str, Callable[[Path], Iterator[Columns]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".ipc": _read_arrow,
    ".safetensors": _read_safetensors,
}
