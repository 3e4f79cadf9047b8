"""Compact fitted state: the same maps without the encoder, and the file of the sample model."""

import copy
import functools

import pytest
import torch

from scripts.errors import InputError
from scripts.models.compact import compact_state, restore_state
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from tests.conftest import make_encoder

FULL = ("low_rank", "student_t")


@pytest.fixture
def images():
    return torch.rand(3, 1, 60, 70, generator=torch.Generator().manual_seed(5))


def unfitted(covariance_type="low_rank", distribution="student_t"):
    encoder = make_encoder()
    mixture = DirichletProcessMixture(
        12, encoder.n_features, covariance_type=covariance_type, rank=2, distribution=distribution, reg_covar=1e-4
    )
    network = PatchAnomalyNetwork(encoder, mixture, "negative_log_likelihood", target_fpr=0.05)
    network.field_of_view_mm = 150.0
    return network


@functools.cache
@torch.no_grad()
def fitted(*args):
    """Fit on noise."""
    network, generator = unfitted(*args), torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 56, 56, generator=generator) * 0.2 + torch.rand(6, 3, 1, 1, generator=generator) * 0.8
    embeddings = network.embed(images).flatten(2).transpose(1, 2).flatten(0, 1)
    network.mixture.initialize(embeddings, generator=generator)
    for _ in range(8):
        network.mixture.partial_fit(embeddings, 0.3)
    network.mixture.stick_fractions[3:6] = 0  # components without weight
    scores = {kind: network.mixture.anomaly_score(embeddings, kind).numpy() for kind in network.mixture.score_kinds}
    network.calibration.fit(scores, network.target_fpr)
    return network


@pytest.mark.parametrize(
    "kind", [FULL, ("diag", "gaussian"), ("full", "gaussian"), ("spherical", "student_t")], ids=str
)
class TestCompactState:
    @torch.no_grad()
    def test_maps_are_the_same(self, kind, images):
        network, restored = fitted(*kind), unfitted(*kind)
        restored.field_of_view_mm = None
        compact = compact_state(network)
        assert 0 < len(compact["active"]) < network.mixture.n_components
        restore_state(restored, compact)
        torch.testing.assert_close(restored(images), network(images), rtol=1e-3, atol=1e-3)
        assert restored.field_of_view_mm == network.field_of_view_mm

    def test_is_smaller_than_the_state(self, kind):
        network = fitted(*kind)

        def size(tensors):
            return sum(each.numel() * each.element_size() for name, each in tensors.items() if "gaussians" in name)

        assert size(compact_state(network)["tensors"]) < size(network.state_dict()) / 2

    def test_restored_state_is_saved_and_loaded(self, kind, images):
        restored, loaded = unfitted(*kind), unfitted(*kind)
        restore_state(restored, compact_state(fitted(*kind)))
        loaded.load_state_dict(restored.state_dict())
        assert torch.equal(loaded(images), restored(images))


@pytest.mark.parametrize(
    "damage",
    [
        lambda compact: compact.pop("tensors"),
        lambda compact: compact["tensors"].pop("mixture.stick_fractions"),
        lambda compact: compact.update(active=torch.tensor([99])),
        lambda compact: compact["tensors"].update({"mixture.gaussians.means": torch.zeros(3)}),
        lambda compact: compact["tensors"]["mixture.gaussians.means"].fill_(torch.nan),
        lambda compact: compact["settings"].update(image_size=112),
    ],
    ids=["no tensors", "a tensor missing", "index out of range", "another shape", "not finite", "other settings"],
)
def test_damaged_state_is_refused(damage):
    compact, network = copy.deepcopy(compact_state(fitted())), unfitted()
    before = network.get_extra_state()["digest"]
    damage(compact)
    with pytest.raises(InputError):
        restore_state(network, compact)
    assert network.get_extra_state()["digest"] == before
