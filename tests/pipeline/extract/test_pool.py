import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ShoalError
from pipeline.extract.pool import Node, Pool, plan_pool


def test_one_worker_per_cpu_by_default() -> None:
    assert plan_pool([Node(2, 0)], 100, None, 0, None) == Pool(2, 1, 0, decode_threads=1, torch_threads=1)


def test_few_shards_get_few_workers_with_the_cpus_of_all() -> None:
    assert plan_pool([Node(16, 0)], 2, None, 0, None) == Pool(2, 8, 0, decode_threads=2, torch_threads=6)


def test_a_gpu_worker_decodes_on_its_cpus() -> None:
    assert plan_pool([Node(4, 0), Node(16, 2)], 100, None, 1, None) == Pool(2, 8, 1, decode_threads=7, torch_threads=1)


def test_workers_that_share_a_gpu_never_span_two() -> None:
    assert Node(64, 2).room(1, 0.4) == 4  # 2 per GPU, though 5 × 0.4 are two GPUs
    assert Node(64, 4).room(1, 2) == 2


def test_a_worker_is_no_larger_than_the_machines() -> None:
    assert plan_pool([Node(3, 0), Node(3, 0), Node(3, 0)], 100, 4, 0, None).cpus == 1  # not 9 // 4
    assert plan_pool([Node(3, 0), Node(3, 0), Node(3, 0)], 100, 3, 0, None).cpus == 3


@pytest.mark.parametrize(
    ("actors", "gpus", "seen"), [(5, 0.0, "5 actors.* room for 4"), (None, 1.0, "1 GPU.* room for 0")]
)
def test_a_pool_that_would_wait_for_ever_is_an_error_that_names_both_numbers(
    actors: int | None, gpus: float, seen: str
) -> None:
    with pytest.raises(ShoalError, match=seen):
        plan_pool([Node(4, 0)], 100, actors, gpus, None)


@given(
    nodes=st.lists(st.builds(Node, st.integers(0, 9), st.integers(0, 4).map(float)), min_size=1, max_size=4),
    shards=st.integers(0, 50),
    actors=st.none() | st.integers(1, 12),
    gpus=st.sampled_from([0.0, 0.25, 0.4, 1.0, 2.0]),
)
def test_a_planned_pool_fits_the_cluster_and_no_larger_one_does(
    nodes: list[Node], shards: int, actors: int | None, gpus: float
) -> None:
    try:
        pool = plan_pool(nodes, shards, actors, gpus, None)
    except ShoalError:
        assert sum(node.room(1, gpus) for node in nodes) < (actors or 1)
        return
    assert 1 <= pool.actors <= max(1, shards)
    assert sum(node.room(pool.cpus, gpus) for node in nodes) >= pool.actors
    assert sum(node.room(pool.cpus + 1, gpus) for node in nodes) < pool.actors
    assert pool.decode_threads + pool.torch_threads == max(2, pool.cpus)
