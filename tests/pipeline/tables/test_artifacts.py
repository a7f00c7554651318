"""Artifacts: whole or absent, and never what their digest does not say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.tables.artifacts import ArtifactStore, read_artifact
from pipeline.tables.schema import TableError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def _tensors(shift: float = 0.0) -> dict[str, np.ndarray]:
    return {"mean_KD": np.arange(6.0).reshape(2, 3) + shift, "id_K": np.array([4, -1]), "seen": np.array(True)}


def test_the_digest_is_sha256_of_manifest_and_tensors_by_hand(store: ArtifactStore) -> None:
    tensor = np.array([1.5, 2.5], dtype=np.float32)
    artifact = store.write("dpm", {"b": 1, "a": [2]}, {"x": tensor})
    expected = hashlib.sha256(b'{"kind":"dpm","manifest":{"a":[2],"b":1}}\n' + save({"x": tensor})).hexdigest()
    assert artifact.digest == expected
    assert [path.name for path in store.list()] == [f"dpm-{expected[:12]}"]


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
