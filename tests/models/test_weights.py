"""Weights: nothing is executed, nothing hangs, nothing half fits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import ShoalError
from models.weights import HubUnavailableError, Undrawn, fetch_hub_file, fetch_url, load_strictly, read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proxy that refuses connections, and an empty cache."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


class Opens:
    """Unpickling this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_torch_file_with_or_without_its_usual_wrappers(tmp_path: Path, wrapper: str | None) -> None:
    path = tmp_path / "weights.pth"
    content = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    state = read_checkpoint(path).state
    assert state.keys() == STATE.keys() and torch.equal(state["a.weight"], STATE["a.weight"])


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    assert torch.equal(read_checkpoint(path).state["a.weight"], STATE["a.weight"])


def test_a_pickle_that_wants_more_than_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Opens(str(proof))))
    with pytest.raises(ShoalError, match=r"evil\.pth cannot be read as tensors only"):
        read_checkpoint(path)
    torch.save({"state": Opens(str(proof))}, path)
    with pytest.raises(ShoalError, match="safetensors"):
        read_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 truncated zip"])
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShoalError, match="cannot be read as tensors only"):
        read_checkpoint(tmp_path / name)


def test_missing_files_and_files_without_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ShoalError, match="no mapping of names to tensors"):
        read_checkpoint(tmp_path / "list.pth")


def test_loading_names_what_does_not_fit_and_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = net[0].weight.clone()
    state = {**net.state_dict(), "0.weight": torch.ones(5, 3), "extra": torch.ones(1)}
    del state["1.bias"]
    with pytest.raises(
        ShoalError, match=r"1 missing \(1.bias\); 1 unexpected \(extra\); 1 of another shape \(0.weight\)"
    ):
        load_strictly(net, state, "a file")
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_lite0", "test_vit", "test_vit_relpos", "swin_tiny_patch4_window7_224"]
)
def test_undrawn_networks_have_all_but_their_random_weights(name: str) -> None:
    drawn = timm.create_model(name, num_classes=0)
    before = torch.get_rng_state()
    with Undrawn():
        undrawn = timm.create_model(name, num_classes=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert any(value.any() and not undrawn.get_parameter(key).any() for key, value in drawn.named_parameters())
    for key, value in drawn.named_buffers():
        assert torch.equal(undrawn.get_buffer(key), value)
    for key, value in undrawn.named_parameters():
        assert not value.any() or torch.equal(value, drawn.get_parameter(key))  # zeros, or a constant
    assert nn.Linear(2, 2).weight.any()


def test_a_long_list_of_names_is_cut() -> None:
    with pytest.raises(ShoalError, match=r"8 missing \(0.bias, 0.weight, 1.bias, …\)"):
        load_strictly(nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]), {}, "a file")


@pytest.mark.usefixtures("offline")
def test_without_a_network_fetching_says_so_at_once() -> None:
    with pytest.raises(HubUnavailableError, match=r"no answer from example\.org"):
        fetch_url("https://example.org/weights-01234567.pth")
    with pytest.raises(HubUnavailableError, match="no answer from"):
        fetch_hub_file("nobody/nothing@main", ("model.safetensors",))


@pytest.mark.usefixtures("offline")
def test_what_is_in_torchs_cache_needs_no_network(tmp_path: Path) -> None:
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "weights-01234567.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert fetch_url("https://example.org/weights-01234567.pth") == cached
