"""Muon: updates with singular values near 1."""

import torch

from dalle_core.training.muon import Muon, orthogonalise


def test_muon_orthogonalises_and_keeps_its_momentum():
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
        assert singular.min() > 0.5 and singular.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    muon = Muon([weight])
    weight.grad = torch.eye(4)
    muon.step()
    assert torch.allclose(weight.detach(), -weight.detach().diagonal().mean().abs() * torch.eye(4), atol=1e-3)
    assert muon.state[weight]["momentum"].abs().sum() > 0
