"""The samples table on disk: what is written is what is read, and only what is committed exists."""

from __future__ import annotations

import itertools
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables.collection import Collection
from pipeline.tables.log import Version
from pipeline.tables.samples import SampleFile, SamplesTable, TableProperties, embedding_array, embedding_matrix
from pipeline.tables.schema import SAMPLES, Reason, TableError

Rows = Callable[..., pa.Table]


def test_rows_come_back_as_they_were_written(samples: SamplesTable, rows: Rows, reject: Rows) -> None:
    written = rows("s3://b/a.tar", range(5))
    samples.commit([samples.write(written), samples.write(reject("s3://b/a.tar", "bad"), "rejected")])
    (file,) = samples.files()
    read = samples.read(file)
    assert read.schema.names == SAMPLES.names
    assert read.select(written.column_names).to_pylist() == written.to_pylist()
    assert read["reason"].null_count == read["detail"].null_count == 5
    assert samples.rejects().to_pylist() == [
        {
            "key": "bad",
            "shard": "s3://b/a.tar",
            "offset": None,
            "size": None,
            "label": None,
            "embedding": None,
            "reason": "no_image",
            "detail": "why",
        }
    ]


def test_embeddings_come_back_bit_for_bit(samples: SamplesTable) -> None:
    x_ND = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
    x_ND[0] = [-0.0, np.finfo(np.float32).tiny / 2, np.finfo(np.float32).max]
    keys = [str(i) for i in range(1000)]
    table = pa.table({"key": keys, "shard": ["a"] * 1000, "embedding": embedding_array(x_ND)})
    samples.commit([samples.write(table)])
    read = samples.read(samples.files()[0], ["embedding"])
    assert embedding_matrix(read).tobytes() == x_ND.tobytes()


def test_a_file_says_in_the_log_what_it_holds(samples: SamplesTable, rows: Rows) -> None:
    written = samples.write(rows("a", range(3, 7)))
    samples.commit([written])
    (file,) = samples.files()
    size = (Path(samples.path) / written.path).stat().st_size
    assert file == SampleFile(written.path, 4, "a", size, "k003", "k006", 3 * 512)


def test_the_embedding_column_is_split_by_byte_without_a_dictionary(samples: SamplesTable, rows: Rows) -> None:
    written = samples.write(rows("a", range(100)))
    metadata = pq.ParquetFile(Path(samples.path) / written.path).metadata.row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    embedding = columns["embedding.list.element"]
    assert "BYTE_STREAM_SPLIT" in embedding.encodings
    assert not any("DICTIONARY" in encoding for encoding in embedding.encodings)
    assert embedding.compression == "ZSTD"


def test_an_empty_table_reads_fine(samples: SamplesTable) -> None:
    assert samples.version == 0
    assert samples.files() == samples.files("rejected") == []
    assert samples.done_shards() == set()
    assert samples.count() == samples.count("rejected") == 0
    assert samples.rejects().schema == SAMPLES


def test_what_is_not_committed_does_not_exist(samples: SamplesTable, rows: Rows) -> None:
    written = samples.write(rows("a", range(4)))
    assert (Path(samples.path) / written.path).exists()
    assert samples.files() == []
    assert samples.done_shards() == set()
    samples.commit([written])
    assert samples.done_shards() == {"a"}


def test_a_worker_killed_between_write_and_commit_leaves_nothing_to_see(samples: SamplesTable, rows: Rows) -> None:
    program = (
        "import os, pickle, signal, sys\n"
        "table, rows = pickle.load(sys.stdin.buffer)\n"
        "table.write(rows)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    sent = pickle.dumps((samples, rows("a", range(4))))
    killed = subprocess.run([sys.executable, "-c", program], input=sent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path(samples.path).glob("status=ok/*.parquet"))) == 1
    assert samples.files() == []
    samples.commit([samples.write(rows("a", range(4)))])
    assert samples.count() == 4


def test_time_travel_sees_the_table_as_it_was(samples: SamplesTable, rows: Rows, reject: Rows) -> None:
    first = samples.commit([samples.write(rows("a", range(4)))])
    second = samples.commit([samples.write(rows("b", range(3))), samples.write(reject("b", "x"), "rejected")])
    assert (first, second, samples.version) == (1, 2, 2)
    assert [file.shard for file in samples.files(version=first)] == ["a"]
    assert [file.shard for file in samples.files(version=second)] == ["a", "b"]
    assert samples.done_shards(first) == {"a"}
    assert (samples.count(version=first), samples.count()) == (4, 7)
    assert samples.rejects(first).num_rows == 0
    with pytest.raises(TableError, match="at version 9"):
        samples.files(version=9)


def test_a_shard_with_rejects_only_is_done(samples: SamplesTable, reject: Rows) -> None:
    samples.commit([samples.write(reject("a", "", "empty_shard"), "rejected")])
    assert samples.done_shards() == {"a"}
    assert samples.files() == []


def test_the_same_transaction_twice_is_one_commit(samples: SamplesTable, rows: Rows) -> None:
    first = samples.commit([samples.write(rows("a", range(4)))], ("extract", 3))
    again = SamplesTable.open(samples.path)
    assert again.commit([again.write(rows("a", range(4)))], ("extract", 3)) == first
    assert again.commit([again.write(rows("b", range(4)))], ("extract", 2)) == first
    assert (samples.version, samples.count()) == (first, 4)
    assert samples.commit([samples.write(rows("b", range(4)))], ("extract", 4)) == first + 1
    assert samples.commit([samples.write(rows("c", range(4)))], ("other", 1)) == first + 2


def test_of_two_writers_of_a_shard_the_second_loses(samples: SamplesTable, rows: Rows) -> None:
    other = SamplesTable.open(samples.path)
    assert other.done_shards() == set()  # its look at the log is old by the time it commits
    samples.commit([samples.write(rows("b", range(4)))], ("first", 1))
    with pytest.raises(TableError, match="lost a race: 1 of 2 shards were committed by another one, first b"):
        other.commit([other.write(rows("a", range(4))), other.write(rows("b", range(4)))], ("second", 1))
    assert other.done_shards() == {"b"}
    assert other.commit([other.write(rows("a", range(4)))], ("second", 1)) == 2


def test_of_many_writers_at_once_one_wins_each_shard(samples: SamplesTable, rows: Rows) -> None:
    def write_all(writer: int) -> int:
        mine, won = SamplesTable.open(samples.path), 0
        for shard in ("a", "b", "c"):
            try:
                mine.commit([mine.write(rows(shard, range(writer + 1)))])
                won += 1
            except TableError as error:
                assert "lost a race" in str(error)
        return won

    with ThreadPoolExecutor(4) as pool:
        wins = list(pool.map(write_all, range(4)))
    assert sum(wins) == len(samples.files()) == 3
    assert sorted(file.shard for file in samples.files()) == ["a", "b", "c"]


def test_metadata_of_a_commit_is_in_its_history(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows("a", range(1)))], metadata={"shoal": "0.1.0", "config": "c0ffee"})
    (entry,) = DeltaTable(samples.path).history(1)
    assert (entry["shoal"], entry["config"]) == ("0.1.0", "c0ffee")


def test_canonical_order_is_that_of_content_however_it_was_committed(
    tmp_path: Path, properties: TableProperties, rows: Rows
) -> None:
    parts = [rows("b", range(4)), rows("a", range(4, 8)), rows("a", range(4)), rows("a", range(8, 12))]
    seen = set()
    for number, order in enumerate(itertools.permutations(range(4))):
        table = SamplesTable.create(tmp_path / str(number), properties)
        files = {i: table.write(parts[i]) for i in order}
        if number % 2:  # one commit per shard, or one for all
            table.commit([files[i] for i in order if i != 0])
            table.commit([files[0]])
        else:
            table.commit(list(files.values()))
        read = pa.concat_tables(table.read(file) for file in table.files())
        seen.add(tuple(zip(read["shard"].to_pylist(), read["key"].to_pylist(), strict=True)))
    assert seen == {tuple([("a", f"k{n:03d}") for n in range(12)] + [("b", f"k{n:03d}") for n in range(4)])}


def test_files_of_a_shard_are_in_the_order_of_the_shard(samples: SamplesTable) -> None:
    def part(key: str, offset: int | None) -> pa.Table:
        row = {"key": key, "shard": "a", "offset": offset, "embedding": [0.0, 0.0, 0.0]}
        return pa.Table.from_pylist([row], schema=SAMPLES)

    parts = [part("a", 2048), part("b", 512), part("d", None), part("c", None)]
    samples.commit([samples.write(each) for each in parts])
    assert [file.first_key for file in samples.files()] == ["c", "d", "b", "a"]  # without offset, by key


def test_the_log_keeps_its_statistics_through_checkpoints(samples: SamplesTable, rows: Rows) -> None:
    shards = [f"s3://bucket/{'x' * 200}/{i:03d} ü'%20.tar" for i in range(12)]
    for i, shard in enumerate(shards):
        samples.commit([samples.write(rows(shard, range(i, i + 2)))])
    DeltaTable(samples.path).create_checkpoint()
    again = SamplesTable.open(samples.path)
    assert [file.shard for file in again.files()] == shards
    assert [file.first_key for file in again.files()] == [f"k{i:03d}" for i in range(12)]
    assert again.done_shards() == set(shards)
    assert [file.shard for file in again.files(version=3)] == shards[:3]


def test_other_properties_are_refused_and_both_are_named(samples: SamplesTable, properties: TableProperties) -> None:
    other = properties.model_copy(update={"dimension": 768, "backbone": "timm/vit"})
    with pytest.raises(TableError, match=r"dimension 3 against 768, backbone 'pixels' against 'timm/vit'; use"):
        SamplesTable.create(samples.path, other)
    assert SamplesTable.create(samples.path, properties).properties == properties


def test_rows_that_do_not_fit_are_refused(samples: SamplesTable, rows: Rows, reject: Rows) -> None:
    with pytest.raises(TableError, match=r"2-d but the table at .* holds 3-d"):
        samples.write(rows("a", range(4), dimension=2))
    with pytest.raises(TableError, match="exactly one shard but 2"):
        samples.write(pa.concat_tables([rows("a", range(4)), rows("b", range(4))]))
    with pytest.raises(TableError, match="exactly one shard but 0"):
        samples.write(rows("a", range(0)))
    with pytest.raises(TableError, match="'hasty'"):
        samples.write(reject("a", "x", "hasty"), "rejected")
    with pytest.raises(TableError, match="null"):
        samples.write(pa.table({"key": ["x"], "shard": ["a"]}))
    with pytest.raises(TableError, match=r"\['colour'\] too many and \['key'\] too few"):
        samples.write(pa.table({"shard": ["a"], "colour": ["red"]}))
    with pytest.raises(TableError, match=Reason.non_finite_embedding):
        samples.write(pa.table({"key": ["x"], "shard": ["a"], "embedding": [[1.0, float("nan"), 0.0]]}))
    assert not list(Path(samples.path).glob("status=*/*"))


def test_a_file_that_is_gone_or_was_changed_is_a_sentence(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows("a", range(4)))])
    (file,) = samples.files()
    path = Path(samples.path) / file.path
    pq.write_table(rows("a", range(5)), path)
    with pytest.raises(TableError, match="has 5 rows but its log entry says 4"):
        samples.read(file)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(TableError, match="cannot be read"):
        samples.read(file)
    path.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        samples.read(file)


def test_a_table_that_another_tool_rewrote_is_a_sentence(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows("a", range(4))), samples.write(rows("b", range(4)))])
    DeltaTable(samples.path).optimize.compact()
    with pytest.raises(TableError, match="shards a to b in the log but must have exactly one"):
        samples.files()
    assert [file.shard for file in samples.files(version=1)] == ["a", "b"]


def test_a_foreign_delta_table_is_a_sentence(tmp_path: Path) -> None:
    DeltaTable.create(tmp_path / "t", pa.schema([("x", pa.int64())]))
    with pytest.raises(TableError, match="give a table that shoal wrote"):
        SamplesTable.open(tmp_path / "t")
    with pytest.raises(TableError, match="no Delta table"):
        SamplesTable.open(tmp_path / "missing")


def test_discarded_files_are_deleted(samples: SamplesTable, rows: Rows) -> None:
    written = samples.write(rows("a", range(4)))
    samples.discard([written])
    assert not (Path(samples.path) / written.path).exists()


def test_a_pickled_table_writes_and_the_original_commits(samples: SamplesTable, rows: Rows) -> None:
    assert samples.version == 0  # so that it holds a handle, which does not pickle
    worker = pickle.loads(pickle.dumps(samples))  # noqa: S301 - our own
    written = pickle.loads(pickle.dumps(worker.write(rows("a", range(4)))))  # noqa: S301
    samples.commit([written])
    assert worker.count() == 4


def test_an_embedding_matrix_is_a_view_also_of_a_slice() -> None:
    x_ND = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.table({"embedding": embedding_array(x_ND)})
    assert np.shares_memory(embedding_matrix(table), x_ND)
    np.testing.assert_array_equal(embedding_matrix(table.slice(1, 2)), x_ND[1:3])
    assert np.shares_memory(embedding_matrix(table.slice(1, 2)), x_ND)
    np.testing.assert_array_equal(embedding_matrix(pa.concat_tables([table.slice(2), table])), x_ND[[2, 3, 0, 1, 2, 3]])
    assert embedding_matrix(table.slice(4)).shape == (0, 0)


def test_embeddings_of_different_lengths_are_no_matrix() -> None:
    ragged = pa.table({"embedding": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))})
    with pytest.raises(TableError, match="1 to 2 long"):
        embedding_matrix(ragged)
    with pytest.raises(TableError, match=r"different lengths: \[1, 2\]"):
        embedding_matrix(pa.concat_tables([ragged.slice(0, 1), ragged.slice(1)]))


def test_the_collection_opens_the_table_that_was_created(collection: Collection, samples: SamplesTable) -> None:
    assert collection.samples.properties == samples.properties


def _row(shard: str, numbers: range) -> pa.Table:
    x_ND = np.zeros((len(numbers), 3), np.float32)
    keys = [f"k{number:03d}" for number in numbers]
    return pa.table({"key": keys, "shard": [shard] * len(numbers), "embedding": embedding_array(x_ND)})


def _interleave(tables: list[SamplesTable], commits: list[tuple[int, list[str]]]) -> dict[str, int]:
    """Who committed each shard first, where a group of which one shard is taken is refused as a whole."""
    owner: dict[str, int] = {}
    for number, (writer, shards) in enumerate(commits):
        files = [tables[writer].write(_row(shard, range(number, number + 1))) for shard in shards]
        taken = sorted(set(shards) & set(owner))
        if taken:
            with pytest.raises(TableError, match=f"first {taken[0]}"):
                tables[writer].commit(files, (f"writer-{writer}", number))
        else:
            tables[writer].commit(files, (f"writer-{writer}", number))
            owner.update(dict.fromkeys(shards, number))
    return owner


@settings(max_examples=15)
@given(
    commits=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)),
        max_size=8,
    )
)
def test_writers_that_remember_and_take_turns_own_each_shard_once(
    tmp_path_factory: pytest.TempPathFactory, commits: list[tuple[int, list[str]]]
) -> None:
    properties = TableProperties(dimension=3, backbone="x", backbone_digest="", l2_normalised=False, preprocessing={})
    path = tmp_path_factory.mktemp("turns") / "t"
    tables = [SamplesTable.create(path, properties) for _ in range(3)]
    owner = _interleave(tables, commits)
    assert all(table.done_shards() == set(owner) for table in tables)
    assert {file.shard: int(file.first_key[1:]) for file in SamplesTable.open(path).files()} == owner
    assert len(SamplesTable.open(path).files()) == len(owner)


def test_a_writer_that_remembers_sees_what_another_tool_took_away(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows("a", range(4)))])
    samples.commit([samples.write(rows("b", range(4)))])
    DeltaTable(samples.path).restore(1)
    samples.commit([samples.write(rows("b", range(2)))])
    assert samples.done_shards() == {"a", "b"}
    assert samples.count() == 6
    DeltaTable(samples.path).optimize.compact()
    with pytest.raises(TableError, match="must have exactly one"):
        samples.commit([samples.write(rows("c", range(4)))])


def test_a_pickled_table_forgets_what_it_remembered(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows(f"shard {n}", range(1))) for n in range(30)])
    assert len(samples.done_shards()) == 30
    sent = pickle.dumps(samples)
    assert b"shard 1" not in sent
    assert len(pickle.loads(sent).done_shards()) == 30  # noqa: S301 - our own


def test_a_writer_lists_a_table_once_however_much_it_and_others_commit(
    samples: SamplesTable, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []
    listing = Version.listing

    def noted(version: Version) -> pa.Table:
        listed.append(version.number)
        return listing(version)

    monkeypatch.setattr(Version, "listing", noted)
    rival = SamplesTable.open(samples.path)
    for number in range(5):
        samples.commit([samples.write(rows(f"mine {number}", range(2)))], ("mine", number))
        rival.commit([rival.write(rows(f"theirs {number}", range(2)))], ("theirs", number))
    assert listed == [0, 1]  # each of them when it first committed
    assert len(samples.done_shards()) == len(rival.done_shards()) == 10
    assert listed == [0, 1]


def test_what_changed_are_the_ok_files_that_came_and_went(samples: SamplesTable, rows: Rows, reject: Rows) -> None:
    first = samples.commit([samples.write(rows("b", range(3))), samples.write(reject("b", "bad"), "rejected")])
    (b,) = samples.files()
    second = samples.commit([samples.write(rows("c", range(3))), samples.write(rows("a", range(2)))])
    a, _, c = samples.files()
    assert samples.changes(first) == samples.changes(first, second) == ([a, c], [])
    third = samples.replace([b], [samples.write(rows("b", range(2)))])
    _, shorter, _ = samples.files()
    assert samples.changes(first) == ([a, shorter, c], [b])
    assert samples.changes(second, third) == ([shorter], [b])
    assert samples.changes(third, second) == ([b], [shorter])
    assert samples.changes(third) == ([], [])


def test_files_are_replaced_in_one_commit_whatever_others_commit(samples: SamplesTable, rows: Rows) -> None:
    samples.commit([samples.write(rows("a", range(3))), samples.write(rows("b", range(3)))])
    rival = SamplesTable.open(samples.path)
    a, b = samples.files()
    shorter = samples.write(rows("a", range(1, 3)))
    rival.commit([rival.write(rows("c", range(1)))])
    assert samples.replace([a], [shorter], {"why": "takedown"}) == 3
    assert [(file.shard, file.rows) for file in samples.files()] == [("a", 2), ("b", 3), ("c", 1)]
    assert samples.done_shards() == {"a", "b", "c"}
    assert [file.rows for file in samples.files(version=1)] == [3, 3]
    with pytest.raises(TableError, match=r"lost a race: 1 of 2 files to be replaced are no longer in .*nothing was"):
        samples.replace([a, b], [])
    assert samples.version == 3
    samples.replace([b], [])
    assert samples.done_shards() == {"a", "c"}
