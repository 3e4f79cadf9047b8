"""Models of 0.4, which have no digest, load and give the same maps.

`make_fixtures` wrote ``tests/fixtures/model_0.4.pt`` and ``map_0.4.npy`` at the last commit of 0.4. To make such files
again: ``python -m tests.models.test_models_of_0_4``.
"""

from pathlib import Path

import numpy as np
import torch

from scripts.models.checkpoint import load_network, save_network
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def unfitted():
    encoder = DINOv2PatchEncoder(image_size=56, layers=[0, 1], vit_options=VIT)
    mixture = DirichletProcessMixture(4, 32, covariance_type="low_rank", rank=2)
    return PatchAnomalyNetwork(encoder, mixture, "negative_log_likelihood", target_fpr=0.05)


def image():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 61), torch.linspace(-1, 1, 73), indexing="ij")
    return (0.5 + 0.3 * torch.sin(7 * rows) * torch.cos(5 * columns + rows)).expand(1, 1, -1, -1)


@torch.no_grad()
def make_fixtures():
    """Fit a tiny network on noise, and save it with its map of `image`."""
    torch.manual_seed(0)
    network, generator = unfitted(), torch.Generator().manual_seed(1)
    images = torch.rand(12, 3, 56, 56, generator=generator) * 0.2 + torch.rand(12, 3, 1, 1, generator=generator) * 0.8
    embeddings = network.embed(images).flatten(2).transpose(1, 2).flatten(0, 1)
    fit_on, held_out = embeddings[:128], embeddings[128:]
    network.mixture.initialize(fit_on, generator=generator)
    for _ in range(3):
        network.mixture.partial_fit(fit_on, 0.5)
    scores = {kind: network.mixture.anomaly_score(held_out, kind).numpy() for kind in network.mixture.score_kinds}
    network.calibration.fit(scores, network.target_fpr)
    save_network(network, FIXTURES / "model_0.4.pt")
    np.save(FIXTURES / "map_0.4.npy", network(image()).numpy())


@torch.no_grad()
def test_gives_the_same_map():
    network = load_network(unfitted(), FIXTURES / "model_0.4.pt")
    expected = np.load(FIXTURES / "map_0.4.npy")
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(network(image()).numpy(), expected, rtol=1e-4, atol=1e-4)  # another processor's rounding


def test_has_no_digest():
    state = torch.load(FIXTURES / "model_0.4.pt", weights_only=True)
    assert set(state["_extra_state"]) == {"settings", "weights_digest"}


if __name__ == "__main__":
    make_fixtures()
