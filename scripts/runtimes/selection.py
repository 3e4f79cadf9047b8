"""Selection of the runtime and precision of the encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError, reason_of
from ..models.calibration import ScoreCalibration
from ..models.encoder import EncoderBackend, PatchEncoder
from ..models.fitted_state import check_calibration, check_tensors
from ..models.network import PatchAnomalyNetwork
from .auto import AgreementCache, AutoBackend
from .cache import RuntimeCache
from .encoder import INSTALL
from .onnxruntime_backend import TENSORRT, OnnxRuntimeBackend, has_onnxruntime, has_provider, providers_for
from .openvino_backend import OpenVINOBackend, has_bf16, has_openvino
from .torch_backend import TorchBackend

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
QUANTIZE = "python -m monai.bundle run quantize --config_file \"['configs/train.json','configs/quantize.json']\""

# Supported combinations on each kind of device, fastest first; on the CPU as measured (docs/benchmarks/performance.md).
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
    """Set the backend of a network's encoder. Scores and decision thresholds are computed as before.

    A precision ``"auto"`` takes the fastest available combination that leaves the mask unchanged, see `AutoBackend`;
    int8, which has its own decision thresholds, only if the model was quantised. A named precision is not compared, and
    a runtime ``"auto"`` is then the fastest that has it.

    Args:
        network: fitted; its ``encoder.backend`` is set.
        ckpt_path: its checkpoint; compiled files are kept next to it.
        runtime: one of ``RUNTIMES``.
        precision: one of ``PRECISIONS``.
        compiled: whether torch compiles the blocks.

    Returns:
        The same network.

    Raises:
        InputError: the runtime or precision is unknown, not installed, or cannot run here.
    """
    for name, value, known in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    encoder = network.encoder
    device = encoder.mean.device
    supported = FASTEST_FIRST.get(device.type, (("torch", "fp32"),))
    candidates = [pair for pair in supported if runtime in ("auto", pair[0]) and precision in ("auto", pair[1])]
    if not candidates:
        raise InputError(
            f"runtime {runtime} has no precision {precision} on device {device.type}; there are "
            f"{', '.join(' '.join(pair) for pair in supported)}."
        )
    cache = RuntimeCache(ckpt_path)
    agreement = AgreementCache(cache)
    if precision == "auto":  # int8 has thresholds of its own, so it was compared when it was quantised
        candidates = [pair for pair in candidates if pair[1] != "int8" or agreement.get(" ".join(pair)) is not None]
    obstacles = {pair: unavailable_reason(*pair, cache) for pair in candidates}
    possible = [pair for pair in candidates if obstacles[pair] is None]
    if not possible:
        raise InputError("; ".join(dict.fromkeys(filter(None, obstacles.values()))))
    for reason in dict.fromkeys(obstacles[pair] for pair in candidates[: candidates.index(possible[0])]):
        logger.warning(f"The encoder could be faster: {reason}")
    starts = {
        " ".join(pair): partial(_start, *pair, encoder, network.calibration, cache, compiled) for pair in possible
    }
    if precision == "auto":
        AutoBackend(encoder, starts, network.exceeds_threshold, network.target_fpr, agreement).attach()
    else:
        encoder.backend = _start_named(*next(iter(starts.items())))
    return network


def _start_named(name: str, start: Callable[[], EncoderBackend]) -> EncoderBackend:
    try:
        return start()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not start here ({reason_of(error)}); take runtime auto.") from error


def unavailable_reason(runtime: str, precision: str, cache: RuntimeCache) -> str | None:
    """Return a sentence that says why a runtime cannot run a precision here; None if it can."""
    installed = {"openvino": has_openvino, "onnxruntime": has_onnxruntime, "tensorrt": has_provider(TENSORRT)}
    if not installed.get(runtime, True):
        package = "onnxruntime-gpu with TensorRT" if runtime == "tensorrt" else runtime
        return f"runtime {runtime} needs {package}, which is not installed; {INSTALL}, or take runtime torch."
    if precision == "int8" and not cache.is_quantized:
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
    encoder: PatchEncoder,
    calibration: ScoreCalibration,
    cache: RuntimeCache,
    compiled: bool,
) -> EncoderBackend:
    if runtime == "torch":
        return TorchBackend(encoder, precision, compiled)
    path = cache.quantized if precision == "int8" else cache.blocks(encoder)
    backend: EncoderBackend
    if runtime == "openvino":
        backend = OpenVINOBackend(path, precision)
    else:
        providers = providers_for(runtime, precision, encoder.mean.device, cache.folder)
        backend = OnnxRuntimeBackend(path, providers, f"{runtime} {precision}")
    if precision == "int8":  # after the start: if it fails, another precision runs, with other thresholds
        thresholds = read_thresholds(cache.thresholds, calibration)
        calibration.load_state_dict({**calibration.state_dict(), **thresholds})
    return backend


def read_thresholds(path: Path, calibration: ScoreCalibration) -> dict[str, torch.Tensor]:
    """Read the decision thresholds of int8.

    Args:
        path: see `RuntimeCache.thresholds`.
        calibration: the module that will hold them.

    Returns:
        Its state dict.

    Raises:
        InputError: the file is damaged.
    """
    remedy = f"quantise anew with `{QUANTIZE}`"
    try:
        thresholds = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"The decision thresholds in {path} cannot be read ({reason_of(error)}); {remedy}.") from error
    check_tensors(thresholds, calibration.thresholds(), str(path), remedy, finite=False)
    check_calibration(thresholds["rates"], thresholds["quantiles"], str(path), remedy)
    return thresholds
