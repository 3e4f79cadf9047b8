"""Quantisation of the encoder to int8, calibrated on normal images, with its own decision thresholds."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from ..errors import InputError, reason
from ..files import atomic_write
from ..inference.inferer import DPMMInferer, nonempty_slices
from ..models.checkpoint import save
from ..models.network import PatchAnomalyNetwork
from ..training.calibrator import ThresholdCalibrator
from .auto import AgreementCache, decision_flip_rate
from .cache import RuntimeCache
from .encoder import INSTALL
from .onnxruntime_backend import CPU, OnnxRuntimeBackend
from .openvino_backend import OpenVINOBackend, has_openvino
from .torch_backend import TorchBackend

nncf, has_nncf = optional_import("nncf")
onnx, _ = optional_import("onnx")

logger = logging.getLogger(__name__)

SLICES = 64  # slices for the ranges of activations and for the comparison with single precision


def quantize(
    network: PatchAnomalyNetwork,
    ckpt_path: str | os.PathLike,
    cases: Sequence[dict[str, Any]],
    inferer: DPMMInferer,
    seed: int = 0,
) -> PatchAnomalyNetwork:
    """Quantise a fitted network's encoder to int8 (post-training, SmoothQuant: Xiao et al., 2023, arXiv 2211.10438).

    Args:
        network: fitted network on the CPU; its ``encoder.backend`` is set to the quantised blocks.
        ckpt_path: its checkpoint; the quantised blocks are kept next to it.
        cases: normal cases whose slices give the ranges of activations.
        inferer: extracts the slices of a volume.
        seed: seed of the choice of slices.

    Returns:
        The same network.

    Raises:
        InputError: nncf is not installed, no case can be used, or the blocks cannot be written.
    """
    if not has_nncf:
        raise InputError(f"To quantise the encoder nncf is needed and not installed; {INSTALL}.")
    cache = RuntimeCache(ckpt_path)
    encoder = network.encoder
    blocks = onnx.load(cache.blocks(encoder))
    inputs = []
    for image in draw_slices(cases, inferer, SLICES, seed):
        pixels = network.to_patches(image)
        positions = encoder.patch_positions(
            pixels.shape[2] // encoder.patch_size, pixels.shape[3] // encoder.patch_size
        )
        inputs.append({"images": pixels.numpy(), "positions": positions.numpy()})
    logger.info(f"quantising the encoder on {len(inputs)} normal slices")
    quantized = nncf.quantize(
        blocks, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
    )
    with _name_file(cache.quantized):
        cache.thresholds.unlink(missing_ok=True)  # they belong to the previous blocks
        with atomic_write(cache.quantized) as partial:
            onnx.save(quantized, partial)
    if has_openvino:
        encoder.backend = OpenVINOBackend(cache.quantized, "int8")
    else:
        encoder.backend = OnnxRuntimeBackend(cache.quantized, [CPU], "onnxruntime int8")
    return network


def save_limits(
    calibrator: ThresholdCalibrator,
    ckpt_path: str | os.PathLike,
    cases: Sequence[dict[str, Any]],
    inferer: DPMMInferer,
    seed: int = 0,
) -> None:
    """Calibrate a quantised network and save its decision thresholds next to its blocks.

    Args:
        calibrator: calibrator of a network that `quantize` returned, with embeddings of held-out normal images.
        ckpt_path: the checkpoint of the network.
        cases: the held-out normal cases, on which the mask is compared with that of single precision.
        inferer: extracts the slices of a volume.
        seed: seed of the choice of slices.

    Raises:
        InputError: the thresholds cannot be written.
    """
    network, cache = calibrator.network, RuntimeCache(ckpt_path)
    slices = list(draw_slices(cases, inferer, SLICES, seed))
    backend = network.encoder.backend
    network.encoder.backend = TorchBackend(network.encoder)
    expected = _decisions(network, slices)
    network.encoder.backend = backend
    network.calibration.fit(calibrator.scores().patches, network.target_fpr)
    decisions = _decisions(network, slices)
    flip_rate = decision_flip_rate(expected, decisions, network.target_fpr)
    agreement = AgreementCache(cache)
    for runtime in ("openvino", "onnxruntime"):
        agreement.put(f"{runtime} int8", flip_rate)
    with _name_file(cache.thresholds):
        save(network.calibration.thresholds(), cache.thresholds)
    logger.info(
        f"quantised: {cache.quantized}; of {len(decisions)} normal patches, those that change sides are "
        f"{flip_rate:.1%} of those beyond the decision threshold"
    )


def _decisions(network: PatchAnomalyNetwork, slices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return for every patch of slices ``[1,C,H,W]`` whether it reaches the decision threshold."""
    return torch.cat([network.exceeds_threshold(network.embed(image)).flatten() for image in slices])


@contextmanager
def _name_file(path: Path) -> Iterator[None]:
    """Raise one sentence if a file cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
        raise InputError(
            f"The quantised model cannot be kept in {path} ({reason(error)}); make room and quantise again."
        ) from error


@torch.no_grad()
def draw_slices(
    cases: Sequence[dict[str, Any]], inferer: DPMMInferer, n_slices: int, seed: int
) -> Iterator[torch.Tensor]:
    """Draw nonempty slices, about the same number from each case.

    Args:
        cases: items with ``image`` ``[C,H,W]`` or ``[C,H,W,D]``, or with ``error``.
        inferer: extracts the slices of a volume.
        n_slices: approximate number of slices, at least one per case.
        seed: seed of the draw.

    Yields:
        Slices ``[1,C,H,W]``.

    Raises:
        InputError: no case can be used.
    """
    rng = random.Random(seed)
    indices = rng.sample(range(len(cases)), min(len(cases), n_slices))
    slices_per_case = -(-n_slices // len(indices))
    errors = []
    for index in indices:
        case = cases[index]
        if "error" in case:
            errors.append(case["error"])
            continue
        (slices,) = inferer.slices(case["image"].unsqueeze(0))
        nonempty = nonempty_slices(slices).tolist()
        for position in rng.sample(nonempty, min(slices_per_case, len(nonempty))):
            yield slices[position : position + 1]
    if len(errors) == len(indices):
        raise InputError(f"None of the normal cases could be used: {'; '.join(errors)}")
