"""Data files: whole under their name, or not there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipeline.tables import datafiles

ROWS = pa.table({"n": list(range(5))})


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "part" / "a.parquet", []
    write_table = pq.write_table

    def killed(rows: pa.Table, sink: pa.NativeFile, **options: object) -> None:
        write_table(rows, sink, **options)
        seen.extend(each.name for each in path.parent.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pq, "write_table", killed)
        datafiles.write(pafs.LocalFileSystem(), str(path), ROWS, {})
    assert seen == ["a.parquet.partial"]
    assert list(path.parent.iterdir()) == []
    size = datafiles.write(pafs.LocalFileSystem(), str(path), ROWS, {})
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size == size
    assert pq.read_table(path).equals(ROWS)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_file_that_is_swept_up_before_it_is_whole_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    path, left = tmp_path / "a.parquet", [None] * times
    write_table = pq.write_table

    def swept(rows: pa.Table, sink: pa.NativeFile, **options: object) -> None:
        write_table(rows, sink, **options)
        if left:
            left.pop()
            (tmp_path / "a.parquet.partial").unlink()

    monkeypatch.setattr(pq, "write_table", swept)
    if times < 3:
        datafiles.write(pafs.LocalFileSystem(), str(path), ROWS, {})
        assert pq.read_table(path).equals(ROWS)
    else:
        with pytest.raises(FileNotFoundError):
            datafiles.write(pafs.LocalFileSystem(), str(path), ROWS, {})
        assert list(tmp_path.iterdir()) == []
