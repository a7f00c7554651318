"""Weights of backbones: read from a file without running code, fetched from a hub without hanging, loaded strictly."""

from __future__ import annotations

import argparse
import contextlib
import logging
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from models.checkpoints import Checkpoint, recognise
from models.errors import ShoalError, first_line

PROBE_TIMEOUT_S = 5.0  # hub clients retry for a minute when the network is absent; one question first is enough
SHOWN_KEYS = 3

# What training checkpoints hold beside tensors: learning rates that are numpy scalars (SwAV, DINO) and parsed
# arguments (DINO, timm, torchvision). Making one of these runs nobody's code.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?")},
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # type: ignore[attr-defined]
]

# What draws into a tensor that is there; erfinv_ makes truncated normals of uniform numbers. A mode sees these three
# functions of torch.nn.init and not what they call; it sees what the others call.
_DRAWS = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, init.normal_, init.uniform_, init.kaiming_uniform_}


class HubUnavailableError(Exception):
    """The hub does not answer, or has no weights for this model; the message says which."""


def read_checkpoint(path: Path) -> Checkpoint:
    """The backbone's tensors in a .safetensors, .pth, .pth.tar, .pt or .bin file, whatever training script wrote it.

    Nothing in it is run. Beside tensors and plain values it may hold what optimizers and argparse leave there.
    Raises ShoalError when the file is missing, damaged, or a pickle that asks for more than that.
    """
    if not path.is_file():
        raise ShoalError(
            f"Weights file {path} does not exist; give a .safetensors or .pth file, a backbone artifact, "
            "'default' or 'random'."
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ShoalError(
            f"Weights file {path} cannot be read as tensors only ({first_line(error)}); where it is a checkpoint you "
            "trust, save its model's state_dict alone, best as .safetensors, and give that file."
        ) from error
    return recognise(content, str(path))


class Undrawn(TorchFunctionMode):
    """Within it networks are built with zeros for random weights: for networks whose weights come from elsewhere.

    Saves most of the time that building takes. All else that a network computes when it is built stays as it is, also
    buffers that no file has. Holds for this thread.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Zeros from functions that draw into a tensor; other functions as they are."""
        if func not in _DRAWS:
            return func(*args, **(kwargs or {}))
        tensor: Tensor = args[0] if args else (kwargs or {})["tensor"]
        with torch.no_grad():
            return tensor.zero_()


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `net`. Raises ShoalError unless names and shapes agree.

    Only `num_batches_tracked`, which files of before 2018 lack and which inference never reads, may be missing.
    """
    have, want = dict(state), net.state_dict()
    missing = sorted(key for key in want.keys() - have.keys() if not key.endswith("num_batches_tracked"))
    unexpected = sorted(have.keys() - want.keys())
    odd = sorted(key for key in want.keys() & have.keys() if want[key].shape != have[key].shape)
    if missing or unexpected or odd:
        raise ShoalError(mismatch(source, missing, unexpected, odd))
    with torch.no_grad():  # not load_state_dict: MNASNet asks it for a version that plain tensors do not carry
        for key in want.keys() & have.keys():
            want[key].copy_(have[key])


def mismatch(source: str, missing: list[str], unexpected: list[str], odd_shapes: list[str]) -> str:
    """The sentence for weights that belong to another network."""
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", odd_shapes)]
    found = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in parts if keys)
    return f"Weights from {source} do not fit the backbone: {found}; choose the backbone that they were saved from."


def fetch_url(url: str) -> Path:
    """A weights file behind a URL, from torch's cache when it is there. Raises HubUnavailableError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    _require_answer(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = torch.hub.HASH_REGEX.search(path.name)
    with _as_unavailable():
        torch.hub.download_url_to_file(url, str(path), checksum.group(1) if checksum else None, progress=False)
    return path


def fetch_hub_file(repository: str, filenames: tuple[str, ...]) -> Path:
    """The first of `filenames` that a Hugging Face repository ("owner/name" or "owner/name@revision") has.

    Looks in the local cache first. Raises HubUnavailableError.
    """
    repo, _, revision = repository.partition("@")
    for filename in filenames:
        cached = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    _require_answer(huggingface_hub.hf_hub_url(repo, filenames[0], revision=revision or None))
    for filename in filenames:
        with _as_unavailable(), contextlib.suppress(EntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision or None))
    raise HubUnavailableError(f"{repository} holds none of {', '.join(filenames)}")


def _require_answer(url: str) -> None:
    """Raise HubUnavailableError unless the host of `url` answers soon (an error page is an answer)."""
    answers: list[bool] = []
    # A thread because looking up a name has no timeout of its own.
    probe = threading.Thread(target=lambda: answers.append(_answers(url)), daemon=True)
    probe.start()
    probe.join(PROBE_TIMEOUT_S)
    if answers != [True]:
        raise HubUnavailableError(f"no answer from {urlsplit(url).netloc} within {PROBE_TIMEOUT_S:.0f} s")


def _answers(url: str) -> bool:
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the URLs are those of torchvision and timm
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Quietly turn whatever a hub client raises into HubUnavailableError."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except EntryNotFoundError:
        raise
    except Exception as error:  # clients raise OSError, httpx and hub errors, RuntimeError for a wrong checksum
        raise HubUnavailableError(first_line(error)) from error
    finally:
        logger.setLevel(level)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", …" if len(keys) > SHOWN_KEYS else "")
