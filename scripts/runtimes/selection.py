"""Which runtime and precision run the encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError, reason_of
from ..models.calibration import ScoreCalibration
from ..models.encoder import DINOv2PatchEncoder
from ..models.fitted_state import check_calibration, check_tensors
from ..models.network import PatchAnomalyNetwork
from .auto import AgreementCache, AutoBackend
from .cache import RuntimeCache
from .encoder import INSTALL, EncoderBackend, RunBlocks
from .onnxruntime_backend import TENSORRT, OnnxRuntimeBlocks, has_onnxruntime, has_provider, providers_for
from .openvino_backend import OpenVINOBlocks, has_bf16, has_openvino
from .torch_backend import TorchBlocks

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
QUANTIZE = "python -m monai.bundle run quantize --config_file \"['configs/train.json','configs/quantize.json']\""

# What there is on each kind of device, fastest first, on the CPU as measured (docs/performance.md).
FASTEST_FIRST = {
    "cpu": (
        ("openvino", "int8"),
        ("openvino", "bf16"),
        ("onnxruntime", "int8"),
        ("torch", "bf16"),
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
        ("torch", "fp32"),
    ),
    "cuda": (
        ("torch", "bf16"),
        ("torch", "fp16"),
        ("torch", "fp32"),
        ("tensorrt", "bf16"),
        ("tensorrt", "fp16"),
        ("tensorrt", "int8"),
        ("tensorrt", "fp32"),
        ("onnxruntime", "fp32"),
    ),
}


def select_runtime(
    network: PatchAnomalyNetwork,
    ckpt_path: str | os.PathLike,
    runtime: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
) -> PatchAnomalyNetwork:
    """Let another runtime run a network's encoder. Scores and limits are computed as before.

    A precision ``"auto"`` takes the fastest that can run here and keeps the mask, see `AutoBackend`; int8, which has
    limits of its own, only where the model was quantised. A precision that is named is taken in any case, and a runtime
    ``"auto"`` is then the fastest that has it.

    Args:
        network: fitted; its ``encoder`` is replaced.
        ckpt_path: the file it was loaded from, beside which compiled files are kept.
        runtime: one of ``RUNTIMES``.
        precision: one of ``PRECISIONS``.
        compiled: whether torch compiles kernels of its own.

    Returns:
        The same network.

    Raises:
        InputError: what was asked for is not known, not installed, or cannot run here.
    """
    for name, value, known in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    encoder = network.encoder
    device = encoder.mean.device
    there = FASTEST_FIRST.get(device.type, (("torch", "fp32"),))
    wanted = [pair for pair in there if runtime in ("auto", pair[0]) and precision in ("auto", pair[1])]
    if not wanted:
        raise InputError(
            f"runtime {runtime} has no precision {precision} on device {device.type}; there are "
            f"{', '.join(' '.join(pair) for pair in there)}."
        )
    artefacts = RuntimeCache(ckpt_path)
    verdicts = AgreementCache(artefacts)
    if precision == "auto":  # int8 was compared when it was made: its limits are not those of the others
        wanted = [pair for pair in wanted if pair[1] != "int8" or verdicts.get(" ".join(pair)) is not None]
    obstacles = {pair: unavailable_reason(*pair, artefacts) for pair in wanted}
    possible = [pair for pair in wanted if obstacles[pair] is None]
    if not possible:
        raise InputError("; ".join(dict.fromkeys(filter(None, obstacles.values()))))
    for reason in dict.fromkeys(obstacles[pair] for pair in wanted[: wanted.index(possible[0])]):
        logger.warning(f"The encoder could be faster: {reason}")
    starts = {
        " ".join(pair): partial(_start, *pair, encoder, network.calibration, artefacts, compiled) for pair in possible
    }
    if precision == "auto":
        network.encoder = AutoBackend(encoder, starts, network.exceeds_threshold, network.target_fpr, verdicts)
    else:
        network.encoder = _unchecked(encoder, *next(iter(starts.items())))
    return network


def _unchecked(encoder: DINOv2PatchEncoder, name: str, start: Callable[[], RunBlocks]) -> EncoderBackend:
    try:
        return EncoderBackend(encoder, start(), name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not start here ({reason_of(error)}); take runtime auto.") from error


def unavailable_reason(runtime: str, precision: str, artefacts: RuntimeCache) -> str | None:
    """Why a runtime cannot run a precision here, as a sentence; None where it can."""
    installed = {"openvino": has_openvino, "onnxruntime": has_onnxruntime, "tensorrt": has_provider(TENSORRT)}
    if not installed.get(runtime, True):
        package = "onnxruntime-gpu with TensorRT" if runtime == "tensorrt" else runtime
        return f"runtime {runtime} needs {package}, which is not installed; {INSTALL}, or take runtime torch."
    if precision == "int8" and not artefacts.is_quantized:
        return (
            f"precision int8 needs a quantised form of this very model, which is not there; make it with `{QUANTIZE}`."
        )
    if precision == "bf16" and not _has_bf16(runtime):
        return f"precision bf16 with {runtime} needs a processor that multiplies in it; take fp32 or auto."
    return None


def _has_bf16(runtime: str) -> bool:
    if runtime == "openvino":
        return has_bf16()
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _start(
    runtime: str,
    precision: str,
    encoder: DINOv2PatchEncoder,
    calibration: ScoreCalibration,
    artefacts: RuntimeCache,
    compiled: bool,
) -> RunBlocks:
    if runtime == "torch":
        return TorchBlocks(encoder, precision, compiled)
    path = artefacts.quantized if precision == "int8" else artefacts.blocks(encoder)
    blocks: RunBlocks
    if runtime == "openvino":
        blocks = OpenVINOBlocks(path, precision)
    else:
        blocks = OnnxRuntimeBlocks(path, providers_for(runtime, precision, encoder.mean.device, artefacts.folder))
    if precision == "int8":  # only now: what runs in its place, where it does not start, has other limits
        calibration.load_state_dict(read_limits(artefacts.limits, calibration))
    return blocks


def read_limits(path: Path, calibration: ScoreCalibration) -> dict[str, torch.Tensor]:
    """Read the decision thresholds of int8.

    Args:
        path: see `RuntimeCache.limits`.
        calibration: what is to hold them.

    Returns:
        Its state dict.

    Raises:
        InputError: the file is damaged.
    """
    remedy = f"quantise anew with `{QUANTIZE}`"
    try:
        limits = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The limits in {path} cannot be read ({reason_of(error)}); {remedy}.") from error
    check_tensors(limits, calibration.state_dict(), str(path), remedy, finite=False)
    check_calibration(limits["rates"], limits["quantiles"], str(path), remedy)
    return limits
