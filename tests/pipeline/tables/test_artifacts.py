"""Artifacts: whole or absent, and never what their digest does not say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_store import ObjectStore
from safetensors.numpy import save

from pipeline.tables.artifacts import ArtifactStore, read_artifact
from pipeline.tables.place import write_whole
from pipeline.tables.schema import TableError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def _tensors(shift: float = 0.0) -> dict[str, np.ndarray]:
    return {"mean_KD": np.arange(6.0).reshape(2, 3) + shift, "id_K": np.array([4, -1]), "seen": np.array(True)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put(store: ArtifactStore, described: str, packed: bytes, digest: str, seal: str = "") -> Path:
    """An artifact of kind dpm as a folder, written without shoal; `seal` is what an earlier one does not have."""
    folder = Path(str(store.path("dpm", digest)))
    folder.mkdir(parents=True)
    (folder / "tensors.safetensors").write_bytes(packed)
    (folder / "artifact.json").write_text(f'{described[:-1]}{seal},"digest":"{digest}"}}')
    return folder


def _put_early(store: ArtifactStore, packed: bytes) -> Path:
    described = '{"kind":"dpm","manifest":{"a":[2],"b":1}}'
    return _put(store, described, packed, _sha256(described.encode() + b"\n" + packed))


def _put_sealed(store: ArtifactStore, packed: bytes, **tensors: bytes) -> Path:
    """With the right digest, whatever is in the header."""
    size = 8 + int.from_bytes(packed[:8], "little")
    parts = json.dumps({name: _sha256(content) for name, content in sorted(tensors.items())}, separators=(",", ":"))
    header = f'"header":"{_sha256(packed[:size])}"'
    digest = _sha256(f'{{{header},"kind":"dpm","manifest":{{}},"tensors":{parts}}}'.encode())
    return _put(store, '{"kind":"dpm","manifest":{}}', packed, digest, f',{header},"tensors":{parts}')


def test_the_digest_is_sha256_of_manifest_header_and_each_tensor_by_hand(store: ArtifactStore, tmp_path: Path) -> None:
    tensor = np.array([1.5, 2.5], dtype=np.float32)
    artifact = store.write("dpm", {}, {"x": tensor})
    by_hand = ArtifactStore(tmp_path / "by hand")
    folder = _put_sealed(by_hand, save({"x": tensor}), x=tensor.tobytes())
    assert [path.name for path in store.list()] == [folder.name] == [f"dpm-{artifact.digest[:12]}"]
    assert by_hand.read(artifact.digest).digest == artifact.digest


def test_an_artifact_of_an_earlier_shoal_is_read_and_verified(store: ArtifactStore) -> None:
    folder = _put_early(store, save(_tensors()))
    read = read_artifact(folder)
    assert read.manifest == {"a": [2], "b": 1}
    for name, tensor in _tensors().items():
        np.testing.assert_array_equal(read.tensors[name], tensor, strict=True)
    assert list(store.read(read.digest, lambda name: name == "id_K").tensors) == ["id_K"]
    (folder / "tensors.safetensors").write_bytes(save(_tensors(1.0)))
    with pytest.raises(TableError, match="its content changed"):
        store.read(read.digest, lambda name: name == "id_K")


@pytest.mark.parametrize("early", [True, False])
def test_another_store_keeps_an_artifact_under_its_digest(store: ArtifactStore, tmp_path: Path, early: bool) -> None:
    digest = (
        read_artifact(_put_early(store, save(_tensors()))) if early else store.write("dpm", {"a": 1}, _tensors())
    ).digest
    other = ArtifactStore(tmp_path / "other")
    kept = other.keep(store.read(digest))
    assert (kept.digest, set(other.read(digest).tensors)) == (digest, set(_tensors()))
    with pytest.raises(TableError, match="read all of its tensors"):
        other.keep(store.read(digest, lambda name: name == "id_K"))


def test_one_tensor_is_read_and_verified_without_the_others(store: ArtifactStore) -> None:
    large = {f"x{number}": np.full(50_000, number) for number in range(4)}  # too far apart for one read
    digest = store.write("dpm", {"k": 2}, {**large, "empty": np.zeros((0, 3))}).digest
    file = Path(str(store.path("dpm", digest))) / "tensors.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x07")  # of x3
    read = store.read(digest, lambda name: name in ("x0", "x2", "empty"))
    assert (read.manifest, set(read.tensors)) == ({"k": 2}, {"x0", "x2", "empty"})
    for name in ("x0", "x2"):
        np.testing.assert_array_equal(read.tensors[name], large[name], strict=True)
    assert read.tensors["empty"].shape == (0, 3)
    assert store.read(digest, lambda name: False).tensors == {}
    for only in (None, lambda name: name == "x3"):
        with pytest.raises(TableError, match="its content changed"):
            store.read(digest, only)
    for length in (7, 20, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(TableError):
            store.read(digest, lambda name: name == "x0")


def test_a_tensor_in_an_object_store_is_its_bytes_and_no_more(bucket: ObjectStore) -> None:
    remote = ArtifactStore(f"{bucket.url}/artifacts")
    large = {f"x{number}": np.full(50_000, number) for number in range(4)}
    digest = remote.write("dpm", {}, large).digest
    before = bucket.count("^GET .*safetensors")
    np.testing.assert_array_equal(remote.read(digest, lambda name: name == "x2").tensors["x2"], large["x2"])
    assert bucket.count("^GET .*safetensors") - before == 3  # length, header, tensor
    remote.remove(digest)
    assert remote.list() == []


def _packed(header: object, body: bytes = b"12345678") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + body


def _entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"12345678",
        (9).to_bytes(8, "little") + b"12345678",
        _packed(b"\xff"),
        _packed(b"[" * 100_000),
        _packed([]),
        _packed({"x": 1}),
        _packed({"x": {}}),
        _packed(_entry(dtype="F4")),
        _packed(_entry(dtype=["F32"])),
        _packed(_entry(shape=[1])),
        _packed(_entry(shape=[-2])),
        _packed(_entry(shape=[2.0])),
        _packed(_entry(shape=7)),
        _packed(_entry(shape=[True, 2])),
        _packed(_entry(offsets=[0, 8, 16])),
        _packed(_entry(offsets=[-4, 4])),
        _packed(_entry(offsets=[4, 12])),
        _packed(_entry(shape=[2**40], offsets=[0, 2**42])),
        _packed(_entry(shape=[1], offsets=[0, 4])),
        _packed(_entry(), body=b"123456789"),
        _packed({**_entry(), "y": _entry()["x"]}),
    ],
)
def test_a_header_that_lies_is_a_sentence_even_with_the_right_digest(store: ArtifactStore, packed: bytes) -> None:
    folder = _put_sealed(store, packed, x=b"12345678")
    for only in (None, lambda name: True):
        with pytest.raises(TableError, match="not in safetensors format"):
            read_artifact(folder, only)


def test_what_safetensors_adds_for_other_tools_is_no_tensor(store: ArtifactStore) -> None:
    folder = _put_sealed(store, _packed({"__metadata__": {"format": "np"}, **_entry()}), x=b"12345678")
    np.testing.assert_array_equal(read_artifact(folder).tensors["x"], np.frombuffer(b"12345678", np.float32))


def test_a_seal_that_names_other_tensors_is_noticed(store: ArtifactStore) -> None:
    for tensors in ({"y": b"12345678"}, {"x": b"12345678", "y": b""}, {}):
        with pytest.raises(TableError, match="its content changed"):
            read_artifact(_put_sealed(store, _packed(_entry()), **tensors), lambda name: False)


def test_a_removed_artifact_is_gone_and_no_other(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = store.write("dpm", {}, _tensors()), store.write("dpm", {}, _tensors(1.0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.tables.artifacts.remove_tree", _interrupted)
        store.remove(one.digest)
    assert [path.name for path in store.list()] == [f"dpm-{two.digest[:12]}"]
    for _ in range(2):
        store.remove(one.digest)
    store.remove(two.digest[:12] + "0" * 52)
    assert [path.name for path in store.root.iterdir()] == [f"dpm-{two.digest[:12]}"]
    assert set(store.read(two.digest).tensors) == set(_tensors())


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_tensors_that_are_swept_up_before_their_manifest_is_there_are_written_again(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[str] = []

    def swept(path: Path, data: bytes, last: str, times: int) -> None:
        write_whole(path, data)
        if path.name == last and len(sweeps) < times:
            sweeps.append(path.name)
            (path.parent / "tensors.safetensors").unlink()
            if last == "tensors.safetensors":
                path.parent.rmdir()

    for times, last in enumerate(("tensors.safetensors", "artifact.json"), start=1):
        sweeps.clear()
        monkeypatch.setattr("pipeline.tables.artifacts.write_whole", partial(swept, last=last, times=times))
        written = store.write("dpm", {"times": times}, _tensors())
        assert sweeps == [last] * times
        assert set(store.read(written.digest).tensors) == set(_tensors())
    monkeypatch.setattr("pipeline.tables.artifacts.write_whole", partial(swept, last="artifact.json", times=99))
    with pytest.raises(TableError, match="was deleted while it was written"):
        store.write("dpm", {"times": 99}, _tensors())


def test_a_manifest_without_tensors_gets_them_when_it_is_written_again(store: ArtifactStore) -> None:
    written = store.write("dpm", {}, _tensors())
    (store.root / f"dpm-{written.digest[:12]}" / "tensors.safetensors").unlink()
    assert store.write("dpm", {}, _tensors()).digest == written.digest
    assert set(store.read(written.digest).tensors) == set(_tensors())


def test_what_is_read_is_what_was_written(store: ArtifactStore) -> None:
    written = store.write("dpm", {"k": 2, "text": "Größe"}, _tensors())
    for which in (written.digest, written.digest[:8], f"dpm-{written.digest[:12]}", store.path("dpm", written.digest)):
        read = store.read(which)
        assert (read.kind, read.digest, read.manifest) == ("dpm", written.digest, {"k": 2, "text": "Größe"})
        assert set(read.tensors) == set(_tensors())
        for name, tensor in _tensors().items():
            np.testing.assert_array_equal(read.tensors[name], tensor, strict=True)
    assert read_artifact(store.path("dpm", written.digest) / "artifact.json").digest == written.digest


def test_the_same_content_is_one_artifact_whatever_its_order(store: ArtifactStore) -> None:
    first = store.write("dpm", {"a": 1, "b": 2}, _tensors())
    folder = store.path("dpm", first.digest)
    before = (folder / "tensors.safetensors").stat().st_mtime_ns
    again = store.write("dpm", {"b": 2, "a": 1}, dict(reversed(_tensors().items())))
    assert again.digest == first.digest
    assert (folder / "tensors.safetensors").stat().st_mtime_ns == before
    assert os.listdir(store.root) == [folder.name]  # noqa: PTH208 - hidden left-overs count too


def test_other_content_is_another_artifact(store: ArtifactStore) -> None:
    digests = {
        store.write("dpm", {"a": 1}, _tensors()).digest,
        store.write("gmm", {"a": 1}, _tensors()).digest,
        store.write("dpm", {"a": 2}, _tensors()).digest,
        store.write("dpm", {"a": 1}, _tensors(shift=1e-9)).digest,
    }
    assert len(digests) == len(store.list()) == 4


def test_a_strided_tensor_is_stored_by_value(store: ArtifactStore) -> None:
    x_ND = np.arange(6.0).reshape(2, 3)
    digest = store.write("pca", {}, {"transposed": x_ND.T, "reversed": x_ND[::-1]}).digest
    read = store.read(digest).tensors
    np.testing.assert_array_equal(read["transposed"], x_ND.T)
    np.testing.assert_array_equal(read["reversed"], x_ND[::-1])


def test_swapped_tensors_are_noticed(store: ArtifactStore) -> None:
    one, two = store.write("dpm", {}, _tensors()), store.write("dpm", {}, _tensors(1.0))
    here, there = store.path("dpm", one.digest), store.path("dpm", two.digest)
    shutil.copy(there / "tensors.safetensors", here / "tensors.safetensors")
    with pytest.raises(TableError, match=f"says {one.digest[:12]}….*restore it"):
        store.read(one.digest)
    assert store.read(two.digest).digest == two.digest


def test_a_changed_manifest_is_noticed(store: ArtifactStore) -> None:
    artifact = store.write("dpm", {"concentration": 1.0}, _tensors())
    manifest = store.path("dpm", artifact.digest) / "artifact.json"
    manifest.write_text(manifest.read_text().replace("1.0", "2.0"))
    with pytest.raises(TableError, match="its content changed"):
        store.read(artifact.digest)


@settings(max_examples=20)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_of_the_tensors_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("a"))
    folder = store.path("dpm", store.write("dpm", {}, _tensors()).digest)
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[position % len(content)] ^= flip
    (folder / "tensors.safetensors").write_bytes(content)
    with pytest.raises(TableError, match="its content changed"):
        read_artifact(folder)


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", "null", '{"kind": 1, "manifest": {}, "digest": "x"}', '{"kind": "a", "manifest": NaN}']
)
def test_a_damaged_manifest_is_a_sentence(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "artifact.json").write_text(manifest)
    (tmp_path / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(TableError):
        read_artifact(tmp_path)


def test_tensors_that_are_none_are_a_sentence_even_with_the_right_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(b'{"kind":"dpm","manifest":{}}\nnonsense').hexdigest()
    (tmp_path / "artifact.json").write_text(json.dumps({"kind": "dpm", "manifest": {}, "digest": digest}))
    (tmp_path / "tensors.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TableError, match="not in safetensors format"):
        read_artifact(tmp_path)


def test_a_missing_artifact_is_a_sentence_that_says_what_there_is(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is no artifact"):
        read_artifact(tmp_path / "nothing")
    kept = store.write("dpm", {}, _tensors())
    with pytest.raises(TableError, match=f"0 artifacts .* starts with 00000000; there are .*{kept.digest[:12]}"):
        store.read("00000000")


@pytest.mark.parametrize("manifest", [{"a": object()}, {"a": float("nan")}])
def test_a_manifest_that_is_not_json_is_refused(store: ArtifactStore, manifest: dict[str, Any]) -> None:
    with pytest.raises(TableError, match="is not JSON"):
        store.write("dpm", manifest, {})
    assert store.list() == []


@pytest.mark.parametrize("kind", ["", "../dpm", "DPM", "a/b", "-", "a-"])
def test_a_kind_is_a_plain_word(store: ArtifactStore, kind: str) -> None:
    with pytest.raises(TableError, match="no kind of artifact"):
        store.write(kind, {}, {})


def test_tensors_of_python_objects_are_refused(store: ArtifactStore) -> None:
    with pytest.raises(TableError, match=r"'x': 'object'.*cannot be stored"):
        store.write("dpm", {}, {"x": np.array([{}])})
    assert not store.root.exists()


def test_an_artifact_without_tensors_is_one(store: ArtifactStore) -> None:
    assert store.read(store.write("pixels", {"size": 3}, {}).digest).tensors == {}


def test_an_unfinished_artifact_is_not_listed(store: ArtifactStore) -> None:
    (store.root / ".0123.tmp").mkdir(parents=True)
    (store.root / "dpm-0123456789ab").mkdir()  # the manifest, written last, is missing
    assert store.list() == []
