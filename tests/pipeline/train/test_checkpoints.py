from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from models.errors import ShoalError
from pipeline.train.checkpoints import Checkpoint, CheckpointStore, fingerprint


def _checkpoint(number: int) -> Checkpoint:
    wide = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + number
    tensors = {"whole": wide, "part": wide[:, 1], "turned": wide.T, "same": wide, "empty": torch.empty(0, 2)}
    return Checkpoint(number, {"loss": [1 / 3, math.nan, -math.inf], "words": "é"}, tensors)


def _saved(folder: Path, *numbers: int) -> CheckpointStore:
    store = CheckpointStore(folder / "run", "mine")
    for number in numbers:
        store.save(_checkpoint(number))
    return store


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    found = _saved(tmp_path, 7).latest()
    assert found is not None
    assert found.number == 7
    assert json.dumps(found.record) == json.dumps(_checkpoint(7).record)  # NaN is not equal to itself
    assert found.tensors.keys() == _checkpoint(7).tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in _checkpoint(7).tensors.items())


def test_a_new_store_has_nothing_and_makes_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "mine")
    assert (store.latest(), store.first(), store.newest) == (None, None, -1)
    assert not (tmp_path / "run").exists()


def test_the_last_two_and_the_first_are_kept(tmp_path: Path) -> None:
    store = _saved(tmp_path, 0, 1, 2, 3, 10)
    assert sorted(path.name[:9] for path in store.folder.iterdir()) == [
        f"{number:09d}" for number in (0, 0, 3, 3, 10, 10)
    ]
    first = store.first()
    assert first is not None
    assert (first.number, store.newest) == (0, 10)


def test_as_many_as_asked_are_kept_and_those_of_every_so_many(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "mine", keep=3, every=10)
    for number in (0, 5, 10, 15, 20, 25, 30, 35, 40):
        store.save(_checkpoint(number))
    assert sorted({int(path.name[:9]) for path in store.folder.iterdir()}) == [0, 10, 20, 30, 35, 40]


@pytest.mark.parametrize("damage", ["no tensors", "short tensors", "other tensors", "half a manifest", "no manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    store = _saved(tmp_path, 1, 2)
    manifest = store.folder / "000000002.json"
    tensors = store.folder / json.loads(manifest.read_text())["tensors"]
    whole = tensors.read_bytes()
    if damage == "no tensors":
        tensors.unlink()
    elif damage == "short tensors":
        tensors.write_bytes(whole[:-1])
    elif damage == "other tensors":
        tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        manifest.unlink()
    found = store.latest()
    assert found is not None
    assert found.number == 1
    store.save(_checkpoint(2))  # done again, it takes the damaged one's place
    again = store.latest()
    assert again is not None
    assert again.number == 2


def test_what_a_killed_process_left_is_ignored_and_goes_with_the_next(tmp_path: Path) -> None:
    store = _saved(tmp_path, 1)
    (store.folder / "000000002-abc.safetensors").write_bytes(b"half")
    (store.folder / "000000002-abc.tmp").write_text('{"finger')
    found = store.latest()
    assert found is not None
    assert found.number == 1
    store.save(_checkpoint(2))
    assert not list(store.folder.glob("*-abc*"))


def test_checkpoints_of_another_run_are_refused_and_stay(tmp_path: Path) -> None:
    store = _saved(tmp_path, 1)
    with pytest.raises(ShoalError, match=r"are of another run \(fingerprint mine, this one has yours\)"):
        CheckpointStore(store.folder, "yours").latest()
    assert store.latest() is not None


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ShoalError, match="A checkpoint cannot be written to"):
        CheckpointStore(tmp_path / "run", "mine").save(_checkpoint(1))


@pytest.mark.parametrize("name", ["manifest", "tensors"])
def test_what_cannot_be_read_now_is_neither_passed_over_nor_swept(tmp_path: Path, name: str) -> None:
    store = _saved(tmp_path, 0, 1, 2)
    manifest = store.folder / "000000002.json"
    tensors = store.folder / json.loads(manifest.read_text())["tensors"]
    file = manifest if name == "manifest" else tensors
    file.rename(tmp_path / "away")
    file.symlink_to(file)  # a loop, which even root cannot read
    with pytest.raises(ShoalError, match=r"The checkpoints in .* cannot be read \(.*; mend the folder"):
        store.latest()
    if name == "manifest":
        with pytest.raises(ShoalError, match="A checkpoint cannot be written"):
            store.save(_checkpoint(3))
    file.unlink()
    (tmp_path / "away").rename(file)
    assert tensors.exists()
    found = store.latest()
    assert found is not None
    assert found.number == (3 if name == "manifest" else 2)


def test_a_run_whose_last_two_checkpoints_are_damaged_keeps_its_new_ones(tmp_path: Path) -> None:
    store = _saved(tmp_path, 0, 8, 9)
    for number in (8, 9):
        (store.folder / f"{number:09d}.json").write_text("{")
    for number in (1, 2):
        store.save(_checkpoint(number))
        found = store.latest()
        assert found is not None
        assert found.number == number


def test_fingerprints_follow_values_and_not_their_order() -> None:
    assert fingerprint(a=1, b={"x": 1, "y": 2}) == fingerprint(b={"y": 2, "x": 1}, a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1)}) == 3
