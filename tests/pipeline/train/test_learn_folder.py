"""Whose a folder is: bound by what was trained in it, and by nothing before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import ShoalError
from pipeline.train.checkpoints import Checkpoint, CheckpointStore
from pipeline.train.learn_folder import LearnFolder

SETTINGS = {"train": {"loop": {"lr": 0.6}}, "input": {"shards": 2}}


def trained(folder: LearnFolder) -> LearnFolder:
    """The same with a checkpoint, opened anew."""
    CheckpointStore(folder.checkpoints, "any").save(Checkpoint(8, {}, {"net": torch.ones(1)}))
    return LearnFolder(folder.path)


def test_until_there_is_a_checkpoint_settings_and_images_may_change(tmp_path: Path) -> None:
    folder = LearnFolder(tmp_path / "run")
    folder.mark("first photos")
    folder.claim(SETTINGS, "first images")
    changed = {**SETTINGS, "train": {"loop": {"lr": 0.3}}}
    folder = LearnFolder(tmp_path / "run")
    folder.require(changed, {})
    folder.mark("other photos")
    folder.claim(changed, "other images")
    folder = trained(folder)
    assert folder.settings == changed
    folder.require(changed, {})
    folder.claim(changed, "other images")
    folder.mark("other photos")
    with pytest.raises(ShoalError, match=r"train\.loop\.lr is 0\.6 and was 0\.3"):
        folder.require(SETTINGS, {})
    with pytest.raises(ShoalError, match="images changed since"):
        folder.claim(changed, "first images")
    with pytest.raises(ShoalError, match="images changed since"):
        folder.mark("first photos")


def test_a_key_that_a_later_shoal_has_is_its_default_in_an_older_run(tmp_path: Path) -> None:
    folder = LearnFolder(tmp_path / "run")
    folder.mark()
    folder.claim(SETTINGS, "images")
    folder = trained(folder)
    defaults = {"train": {"loop": {"lr": 1.0, "twist": 7}}}
    folder.require({**SETTINGS, "train": {"loop": {"lr": 0.6, "twist": 7}}}, defaults)
    with pytest.raises(ShoalError, match=r"train\.loop\.twist is 8 and was 7"):
        folder.require({**SETTINGS, "train": {"loop": {"lr": 0.6, "twist": 8}}}, defaults)
    assert folder.settings == SETTINGS
