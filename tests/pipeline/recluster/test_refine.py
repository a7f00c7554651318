from __future__ import annotations

import numpy as np
import torch

from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.recluster.refine import _remade
from pipeline.recluster.relabel import Anew, Refined


def test_a_component_that_its_rows_have_left_has_an_heir_and_indices_follow() -> None:
    centres = np.array([[0, 0], [30, 0], [0, 30], [33, 0]], np.float32)
    label_N = np.repeat(np.arange(3), 80)
    x_ND = centres[label_N] + np.random.default_rng(0).standard_normal((240, 2)).astype(np.float32)
    model = fit_array(x_ND, ClusterConfig(algorithm=DPMConfig(grouping=None)))[1].model
    assert isinstance(model, DPM)
    assert len(model.component_K) == 3
    x = torch.from_numpy(x_ND)
    found = model.assign(x)
    left = int(found.component_N[0])  # of the first centre: its rows are counted elsewhere from now on
    here = found.component_N != left
    refined = Refined(model, model.counted(x[here], found.component_N[here]), ())
    ids = model.component_K.tolist()
    anew = {"file": Anew(np.flatnonzero(here.numpy()), type(found)(*(each[here] for each in vars(found).values())))}
    before = model.component_K[anew["file"].found.component_N]
    heirs = _remade(refined, anew, unsettled=True)
    assert set(heirs) == {ids[left]}
    assert heirs[ids[left]] in set(ids) - {ids[left]}
    assert refined.model.component_K.tolist() == [each for each in ids if each != ids[left]]
    assert torch.equal(refined.model.component_K[anew["file"].found.component_N], before)
    again = refined.model.counted(x[here], anew["file"].found.component_N)  # type: ignore[attr-defined]
    torch.testing.assert_close(refined.stats.tensors()["count_K"], again.tensors()["count_K"])
    rest = Refined(refined.model, refined.stats, ())
    assert _remade(rest, {}, unsettled=False) == {}
    assert rest.model is refined.model
