"""Measures one inference run in a process of its own: `python -m benchmarks.inference.run JSON`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from .clock import Clock
from .memory import peak_mb

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 7


class Onlooker:
    """Looks at what goes through the encoder.

    Attributes:
        image: the first of the largest images ``[1,3,H,W]``.
        n_slices: how many images there were.
        n_patches: of all of them.
    """

    def __init__(self) -> None:
        self.image = torch.empty(0)
        self.n_slices = 0
        self.n_patches = 0

    def __call__(self, encoder: torch.nn.Module, inputs: Sequence[torch.Tensor], embeddings: torch.Tensor) -> None:
        """Look at images ``[B,3,H,W]`` and embeddings ``[B,D,h,w]``."""
        self.n_slices += len(inputs[0])
        self.n_patches += embeddings.shape[0] * embeddings.shape[2:].numel()
        if inputs[0][:1].numel() > self.image.numel():
            self.image = inputs[0][:1].clone()


def measure(
    case: str, output_dir: str, settings: Mapping[str, Any], overlays: Sequence[str] = (), started: float | None = None
) -> dict[str, Any]:
    """Run inference on a file, then the encoder and the score on one of its slices again and again.

    Args:
        case: the file.
        output_dir: where the run leaves its results.
        settings: config ids and their values.
        overlays: names of configs over ``inference``.
        started: when this process was started, in seconds since 1970.

    Returns:
        Seconds from the start of the process until the run begins (``start``), of the ``run``, and inside each of its
        ``parts``; ``encoder`` and ``score`` of one slice, the median of repeated calls; what the encoder saw
        (``n_slices``, ``n_patches``; of the largest slice ``pixels``, ``patches_of_slice`` and ``gflop``);
        ``n_features`` and ``n_active`` components; ``model_mb``, ``mixture_mb``, and the ``peak_mb`` of memory and
        ``gpu_mb`` when the run was over; the runtime and precision that it ``backend_name``.
    """
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / f"{name}.json") for name in ("inference", *overlays)],
        workflow_type="inference",
        run_id="inference",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=case,
        output_dir=output_dir,
        **{"show_progress": False, "overwrite": True, **settings},
    )
    workflow.initialize()
    sys.path.insert(1, str(ROOT))
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    clock = Clock(finish)
    content = workflow.parser.get_parsed_content
    load, *steps = content("preprocessing").transforms
    clock.watch("load", load, "__call__")
    for step in steps:
        clock.watch("preprocess", step, "__call__")
    clock.watch("postprocess", content("postprocessing"), "__call__")
    clock.watch("write", content("case_writer"), "__call__", "write_case", "write_summary")
    for handler in content("handlers"):
        if handler is not content("case_writer"):
            clock.watch("report", handler, "__call__", "write")
    network = content("evaluator").network
    clock.watch("encode", network.encoder, "forward")
    clock.watch("score", network, "patch_scores")
    clock.watch("resize", network, "to_patches", "to_pixels")
    seen = Onlooker()
    hook = network.encoder.register_forward_hook(seen)

    begin = time.time()
    workflow.run()
    run = time.time() - begin
    hook.remove()
    parts = dict(clock.seconds)
    peak, gpu = peak_mb(), torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0
    with torch.inference_mode():
        embeddings = network.encoder(seen.image)
        of_slice = {
            "encoder": median_seconds(partial(network.encoder, seen.image), finish),
            "score": median_seconds(partial(network.patch_scores, embeddings, network.score), finish),
        }
    return {
        "backend_name": network.encoder.backend_name,
        "start": begin - (begin if started is None else started),
        "run": run,
        "parts": parts,
        **of_slice,
        "n_slices": seen.n_slices,
        "n_patches": seen.n_patches,
        "pixels": list(seen.image.shape[2:]),
        "gflop": flop_of_slice(network.encoder, seen.image) / 1e9,
        "patches_of_slice": embeddings.shape[2:].numel(),
        "n_features": network.encoder.n_features,
        "n_active": network.mixture.n_active,
        "model_mb": Path(content("ckpt_path")).stat().st_size / 1e6,
        "mixture_mb": sum(buffer.nbytes for buffer in network.mixture.buffers()) / 1e6,
        "peak_mb": peak,
        "gpu_mb": gpu,
    }


def flop_of_slice(encoder: Any, image: torch.Tensor) -> int:
    """Floating-point operations of the matrix products for one image ``[1,3,H,W]``, of the blocks that are used."""
    n, d = 1 + image.shape[2:].numel() // 14**2, encoder.n_features // len(encoder.layers)
    return (1 + max(encoder.layers)) * (24 * n * d**2 + 4 * n**2 * d) + 2 * n * 3 * 14**2 * d


def median_seconds(call: Callable[[], object], finish: Callable[[], object]) -> float:
    """The median of some calls, after one that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        begin = time.perf_counter()
        call()
        finish()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
