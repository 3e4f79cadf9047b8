"""Shared fixtures."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch

from scripts.errors import InputError
from scripts.export_bundle import export_bundle
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.models.weights import MODEL_NAME, MODELS_DIR, find_weights
from tests.tiny_bundle import TINY, run_bundle, run_workflow
from tests.tiny_cases import brain, save

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TINY_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        find_weights(MODEL_NAME, MODELS_DIR)
    except InputError as error:
        skip = pytest.mark.skip(reason=str(error))
        for item in items:
            if "real_weights" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of oracles and data, which is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the oracles and data in {SHARED} are not there")
    return SHARED


def make_encoder(image_size: int = 56, **arguments) -> DINOv2PatchEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DINOv2PatchEncoder(image_size=image_size, vit_options=TINY_VIT, **arguments)


@functools.cache
def _fitted_network(score: str, target_fpr: float, n_components: int) -> PatchAnomalyNetwork:
    """Fit and calibrate a tiny network on patches of noise."""
    encoder = make_encoder()
    network = PatchAnomalyNetwork(encoder, DirichletProcessMixture(n_components, 32), score, target_fpr)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 56, 56, generator=generator)
    embeddings = network.embed(images).flatten(2).transpose(1, 2).flatten(0, 1)
    fit_on, held_out = embeddings[:64], embeddings[64:]
    network.mixture.initialize(fit_on, generator=generator)
    for _ in range(3):
        network.mixture.partial_fit(fit_on, 0.5)
    scores = {kind: network.mixture.anomaly_score(held_out, kind).numpy() for kind in network.mixture.score_kinds}
    network.calibration.fit(scores, target_fpr)
    return network


def make_fitted_network(score: str = "cosine", target_fpr: float = 0.01, n_components: int = 4) -> PatchAnomalyNetwork:
    return copy.deepcopy(_fitted_network(score, target_fpr, n_components))


@pytest.fixture
def tiny_encoder() -> DINOv2PatchEncoder:
    return make_encoder()


@pytest.fixture
def fitted_network() -> PatchAnomalyNetwork:
    return make_fitted_network()


@pytest.fixture
def make_network():
    """Return a function that makes fitted tiny networks with other settings."""
    return make_fitted_network


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the bundle with a tiny model fitted on tiny brains; return the folder of the copy."""
    folder = tmp_path_factory.mktemp("shipped")
    for seed in range(5):
        save(folder / "normals" / f"normal-{seed}.nii.gz", brain(seed))
    run_bundle(
        "training",
        dataset_dir=str(folder / "normals"),
        output_dir=str(folder / "fit"),
        ckpt_path=str(folder / "model.pt"),
    )
    export_bundle(folder / "model.pt", folder / "anomaly", **TINY)
    return folder / "anomaly"


@pytest.fixture(scope="session")
def real_fit(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit briefly with the real weights; return a folder with ``model.pt``, ``normal/`` and ``validation/``."""
    folder = tmp_path_factory.mktemp("real_fit")
    for part, n_subjects in (("normal", 6), ("validation", 2)):
        (folder / part).mkdir()
        for file in sorted((shared / "data" / "brain_t1" / part).iterdir())[:n_subjects]:
            (folder / part / file.name).symlink_to(file)
    run_workflow(
        "training",
        ["train"],
        n_components=100,
        max_epochs=2,
        dataset_dir=str(folder / "normal"),
        validation_dir=str(folder / "validation"),
        output_dir=str(folder / "fit"),
        ckpt_path=str(folder / "model.pt"),
    )
    return folder
