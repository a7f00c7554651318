import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from models.backbones import BackboneConfig, load_backbone
from pipeline.extract.ledger import Attempt
from pipeline.extract.prepare import Batch
from pipeline.extract.shard import Hooks, Job, ShardResult, ShardWorker, table_properties
from pipeline.ingest.shards import Reject, ShardSummary
from pipeline.tables.samples import SamplesTable, embedding_matrix
from pipeline.tables.schema import Reason, TableError

pytestmark = pytest.mark.usefixtures("torch_threads")
FRESH, CAREFUL = Attempt(0, frozenset()), Attempt(1, frozenset())


def worker_of(job: Job) -> ShardWorker:
    return ShardWorker(job, load_backbone(job.backbone), job.local_source())


def run(job: Job, shard: str, attempt: Attempt = FRESH) -> ShardResult:
    return worker_of(job).extract(shard, attempt, Hooks())


def committed(job: Job, result: ShardResult) -> SamplesTable:
    job.table.commit(result.files)
    return job.table


def written(job: Job, result: ShardResult) -> pa.Table:
    """The embedded rows of a result, which need not be committed."""
    return pq.read_table(Path(job.table.path, result.files[0].path), partitioning=None)


def test_rows_are_in_the_order_of_the_shard_and_embeddings_are_those_of_their_images(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    levels = [200, 3, 77, 0, 255, 128]
    members = [(f"{name}.png", png(level)) for name, level in zip("zyxwvu", levels, strict=True)]
    job = make_job()
    result = run(job, tar(tmp_path / "s.tar", members))
    [file] = committed(job, result).files()
    rows = job.table.read(file)
    assert rows["key"].to_pylist() == list("zyxwvu")
    expected_N1 = load_backbone(job.backbone).embed(
        torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    )
    np.testing.assert_array_equal(embedding_matrix(rows), expected_N1.numpy())
    assert (result.images, dict(result.rejects)) == (6, {})


def test_rejects_of_every_stage_are_kept_in_the_order_of_the_shard(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    good = png(9)
    members = [("a.png", good), ("b.png", good[:-20]), ("c.png", good), ("a.png", good), ("d.png", b"")]
    job = make_job()
    result = run(job, tar(tmp_path / "s.tar", members))
    table = committed(job, result)
    rejects = table.rejects()
    assert list(zip(rejects["key"].to_pylist(), rejects["reason"].to_pylist(), strict=True)) == [
        ("b", "truncated_image"),
        ("a", "duplicate_key"),
        ("d", "empty_image"),
    ]
    assert table.read(table.files()[0])["key"].to_pylist() == ["a", "c"]
    assert result.rejects == {"truncated_image": 1, "duplicate_key": 1, "empty_image": 1}
    assert [reject.key for reject in result.examples] == ["b", "a", "d"]


def test_a_careful_attempt_writes_what_a_fast_one_writes(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    shard = tar(tmp_path / "s.tar", [(f"{i}.png", png(i)) for i in range(11)])
    job = make_job()
    assert written(job, run(job, shard, FRESH)).equals(written(job, run(job, shard, CAREFUL)))


def test_files_end_at_the_row_limit_and_read_in_order(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    job = make_job(rows_per_file=8)
    result = run(job, tar(tmp_path / "s.tar", [(f"{i:02}.png", png(i)) for i in range(19)]))
    table = committed(job, result)
    assert [file.rows for file in table.files()] == [8, 8, 3]
    assert [key for file in table.files() for key in table.read(file)["key"].to_pylist()] == [
        f"{i:02}" for i in range(19)
    ]


def test_embeddings_of_a_network_do_not_depend_on_how_a_shard_fills_its_batches(
    make_job: Callable[..., Job], tar: Callable[..., str], tmp_path: Path, png: Callable[..., bytes]
) -> None:
    backbone = BackboneConfig(name="torchvision/resnet18", weights="random", size=32)
    job = make_job(backbone)
    worker = worker_of(job)
    members = [(f"{i}.png", png(i * 20, 32)) for i in range(7)]
    # the last batch has 3 images, 1 image, and (with the first one damaged) others beside them
    variants = [members, members[:5], [("0.png", b"damaged"), *members[1:]]]
    results = [worker.extract(tar(tmp_path / f"{i}.tar", each), FRESH, Hooks()) for i, each in enumerate(variants)]
    x_ND = [embedding_matrix(written(job, result)) for result in results]
    np.testing.assert_array_equal(x_ND[0][:5], x_ND[1])
    np.testing.assert_array_equal(x_ND[0][1:], x_ND[2])


def test_an_embedding_that_is_not_finite_is_a_reject_and_its_neighbours_are_not(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    """Filters of one huge value overflow float32 on white, but not on the grey where normalised channels cancel out."""
    config = BackboneConfig(name="torchvision/resnet18", weights="random", size=32)
    weights = load_backbone(config).net.state_dict()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(
        {**weights, "conv1.weight": torch.full_like(weights["conv1.weight"], 1e37)}, tmp_path / "huge.safetensors"
    )
    job = make_job(config.model_copy(update={"weights": str(tmp_path / "huge.safetensors")}))
    members = [(f"{key}.png", png(level, 32)) for key, level in (("a", 114), ("b", 255), ("c", 114))]
    table = committed(job, run(job, tar(tmp_path / "s.tar", members)))
    assert table.rejects().select(["key", "reason"]).to_pylist() == [{"key": "b", "reason": "non_finite_embedding"}]
    assert table.read(table.files()[0])["key"].to_pylist() == ["a", "c"]


def test_a_shard_that_cannot_be_opened_fails_alone_and_leaves_nothing(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job()
    result = run(job, str(tmp_path / "gone.tar"))
    assert result.failure is not None
    assert result.files == ()
    assert list(Path(job.table.path).rglob("*.parquet")) == []


def test_a_backbone_that_is_not_the_table_s_is_refused(make_job: Callable[..., Job]) -> None:
    with pytest.raises(TableError, match=r"192.*48"):
        make_job().require(load_backbone(BackboneConfig(name="pixels", size=4)))


def test_every_batch_is_told_of_and_every_stage_is_timed(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    told: list[int] = []
    hooks = Hooks(progress=lambda batch, forward_s: told.append(len(batch.pixels_NCHW)))
    shard = tar(tmp_path / "s.tar", [(f"{i}.png", png(i)) for i in range(11)])
    result = worker_of(make_job()).extract(shard, FRESH, hooks)
    assert told == [4, 4, 3]
    assert set(result.seconds) == {"read", "decode", "queue", "forward", "write"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.ready_at is not None
    assert result.first_at is not None
    assert result.ready_at <= result.first_at
    assert (result.standing.shards, result.standing.images) == (1.0, 11)


def test_two_shards_at_a_time_are_what_they_are_one_by_one(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    job = make_job(BackboneConfig(name="torchvision/resnet18", weights="random", size=32))
    shards = [tar(tmp_path / f"{s}.tar", [(f"{i}.png", png(9 * i + s, 32)) for i in range(9)]) for s in range(4)]
    worker = worker_of(job)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda shard: worker.extract(shard, FRESH, Hooks()), shards))
    for shard, result in zip(shards, together, strict=True):
        assert written(job, result).equals(written(job, run(job, shard)))


def test_a_table_says_which_weights_but_not_where_a_file_lay(tmp_path: Path) -> None:
    config = BackboneConfig(name="torchvision/resnet18", weights="random", size=32, seed=3)
    random = load_backbone(config)
    assert table_properties(random).preprocessing["weights"] == "random (seed 3)"
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in random.net.state_dict().items()}, path)
    loaded = load_backbone(config.model_copy(update={"weights": str(path)}))
    assert table_properties(loaded).preprocessing["weights"] == "a local file"


def test_a_shard_that_changes_while_it_is_read_is_left_for_the_next_run(
    make_job: Callable[..., Job], tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "s.tar"
    shard = tar(path, [(f"{i}.png", png(i)) for i in range(11)])

    def rewrite(batch: Batch, forward_s: float) -> None:
        path.write_bytes(path.read_bytes())  # the same bytes, at another time: nobody can know where they changed
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))

    job = make_job()
    result = worker_of(job).extract(shard, CAREFUL, Hooks(progress=rewrite))  # which reads no further ahead
    assert result.failure == "it was changed while it was read"
    assert list(Path(job.table.path).rglob("*.parquet")) == []
    assert run(job, shard).images == 11


def test_what_stopped_the_reading_is_named_and_not_an_earlier_reject(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    class Broken:
        def open(self, shard: str, attempt: Attempt, announce: object) -> Iterator[Batch | ShardSummary]:
            empty = Reject("a", shard, 512, 0, None, Reason.empty_image, "0 bytes")
            stopped = Reject("", shard, None, None, None, Reason.unreadable_shard, "reading stopped at byte 1024")
            yield Batch((empty, stopped), np.empty((0, 0, 0, 0), np.uint8), 0, 1.0)
            yield ShardSummary(shard, 1024, "", 0, 2, 0, None)

    job = make_job()
    worker = ShardWorker(job, load_backbone(job.backbone), Broken())
    assert worker.extract("s.tar", FRESH, Hooks()).failure == "reading stopped at byte 1024"
