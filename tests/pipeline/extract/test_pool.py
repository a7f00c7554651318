import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ShoalError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.pool import MAX_STREAMS, Node, Pool, plan_pool

DEFAULT = ExtractConfig()
MIXED = [Node(4, 1), Node(4, 1), Node(16, 0)]


def test_one_worker_per_cpu_by_default() -> None:
    assert plan_pool([Node(2, 0)], 100, DEFAULT) == Pool(2, 1, 0, decode_threads=1, torch_threads=1)


def test_few_shards_get_few_workers_with_the_cpus_of_all() -> None:
    assert plan_pool([Node(16, 0)], 2, DEFAULT) == Pool(2, 8, 0, decode_threads=2, torch_threads=6)


def test_gpus_are_used_where_there_are_any_and_their_workers_decode_on_the_cpus() -> None:
    assert plan_pool([Node(16, 2)], 100, DEFAULT) == Pool(2, 8, 1, decode_threads=7, torch_threads=1, streams=2)


def test_a_light_backbone_shares_a_gpu() -> None:
    assert plan_pool([Node(16, 2)], 100, DEFAULT, light=True) == Pool(4, 4, 0.5, 3, 1, streams=2)


def test_gpus_may_be_left_alone() -> None:
    assert plan_pool([Node(4, 1)], 100, ExtractConfig(gpus_per_actor=0)) == Pool(4, 1, 0, 1, 1)


def test_workers_that_share_a_gpu_never_span_two() -> None:
    assert Node(64, 2).room(1, 0.4) == 4  # 2 per GPU, though 5 × 0.4 are two GPUs
    assert Node(64, 4).room(1, 2) == 2


def test_a_worker_is_no_larger_than_the_machines() -> None:
    three = [Node(3, 0), Node(3, 0), Node(3, 0)]
    assert plan_pool(three, 100, ExtractConfig(actors=4)).cpus == 1  # not 9 // 4
    assert plan_pool(three, 100, ExtractConfig(actors=3)).cpus == 3


def test_machines_without_gpus_decode_for_those_with_them() -> None:
    pool = plan_pool(MIXED, 100, DEFAULT)
    assert (pool.split, pool.actors, pool.cpus, pool.gpus) == (True, 2, 1, 1)
    assert pool.streams == 11  # 24 CPUs, two of them the workers', for two workers
    assert not plan_pool(MIXED, 100, ExtractConfig(layout="fused")).split


def test_a_worker_has_no_more_shards_open_than_there_are_for_it() -> None:
    assert plan_pool(MIXED, 5, DEFAULT).streams == 3
    assert plan_pool([*MIXED, Node(200, 0)], 1000, DEFAULT).streams == MAX_STREAMS


def test_the_split_layout_needs_a_cpu_to_decode_on() -> None:
    split = ExtractConfig(layout="split")
    assert plan_pool([Node(2, 0)], 9, split.model_copy(update={"actors": 1})) == Pool(1, 1, 0, 1, 1, 1, split=True)
    with pytest.raises(ShoalError, match=r"1 CPUs of one machine beside those of its 2 actors, but the cluster has 2"):
        plan_pool([Node(2, 0)], 9, split)
    with pytest.raises(ShoalError, match=r"8 CPUs of one machine"):
        plan_pool([Node(4, 0)] * 3, 9, split.model_copy(update={"actors": 1, "decode_threads": 8}))


def test_a_head_without_a_gpu_is_no_reason_to_split() -> None:
    assert not plan_pool([Node(2, 0), Node(48, 8), Node(48, 8)], 100, DEFAULT).split
    waiting = ExtractConfig(actors=8, gpus_per_actor=1, autoscale=True)
    assert plan_pool([Node(4, 0)], 100, waiting) == Pool(8, 1, 1, 1, 1, streams=2)


@pytest.mark.parametrize(
    ("config", "seen"),
    [(ExtractConfig(actors=5), "5 actors.* room for 4"), (ExtractConfig(gpus_per_actor=1), "1 GPU.* room for 0")],
)
def test_a_pool_that_would_wait_for_ever_is_an_error_that_names_both_numbers(config: ExtractConfig, seen: str) -> None:
    with pytest.raises(ShoalError, match=seen):
        plan_pool([Node(4, 0)], 100, config)


def test_where_nodes_come_on_demand_more_workers_may_be_asked_for_than_there_is_room() -> None:
    assert plan_pool([Node(4, 0)], 100, ExtractConfig(actors=50, autoscale=True)).actors == 50
    with pytest.raises(ShoalError, match="room for 0"):
        plan_pool([Node(0, 0)], 100, ExtractConfig(autoscale=True))  # how many is not for us to guess


@given(
    nodes=st.lists(st.builds(Node, st.integers(0, 9), st.integers(0, 4).map(float)), min_size=1, max_size=4),
    shards=st.integers(0, 50),
    actors=st.none() | st.integers(1, 12),
    gpus=st.sampled_from([None, 0.0, 0.25, 0.4, 1.0, 2.0]),
    layout=st.sampled_from(["auto", "fused", "split"]),
    threads=st.none() | st.integers(1, 4),
)
def test_a_planned_pool_fits_the_cluster(
    nodes: list[Node], shards: int, actors: int | None, gpus: float | None, layout: str, threads: int | None
) -> None:
    settings = {"actors": actors, "gpus_per_actor": gpus, "layout": layout, "decode_threads": threads}
    config = ExtractConfig.model_validate(settings)
    try:
        pool = plan_pool(nodes, shards, config)
    except ShoalError as error:
        assert ("room for" in str(error)) != ("split layout needs" in str(error))
        return
    assert 1 <= pool.actors <= max(1, shards)
    assert 1 <= pool.streams <= max(1, shards)
    assert sum(node.room(pool.cpus, pool.gpus) for node in nodes) >= pool.actors
    if pool.split:
        # wherever Ray puts the workers, a task fits beside them
        assert sum(node.cpus // pool.decode_threads for node in nodes) > pool.actors
    else:
        assert sum(node.room(pool.cpus + 1, pool.gpus) for node in nodes) < pool.actors
        assert threads or pool.decode_threads + pool.torch_threads == max(2, pool.cpus)


def test_workers_that_are_still_to_come_are_as_large_as_those_that_are_here() -> None:
    """As 1 CPU each they would starve their GPUs for as long as the extraction takes."""
    some = ExtractConfig(actors=8, gpus_per_actor=1, autoscale=True, layout="fused")
    assert plan_pool([Node(8, 1)], 100, some).cpus == 8
    assert plan_pool([Node(8, 1), Node(8, 1), Node(16, 0)], 100, some).cpus == 8
    assert plan_pool([Node(16, 0)], 100, some).cpus == 1  # none is here yet
