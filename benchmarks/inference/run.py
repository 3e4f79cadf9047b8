"""One inference run, measured in a process of its own: `python -m benchmarks.inference.run JSON`."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch.utils.benchmark import timer

from benchmarks.cost import median_seconds, peak_mb

ROOT = Path(__file__).resolve().parents[2]
HANDLER_METHODS = ("__call__", "write_case", "write_summary", "write")


class Stopwatch:
    """Seconds inside the parts of a run, without those inside a part that another part calls.

    Each thread is timed by itself: parts that overlap may add up to more than the run took.

    Attributes:
        seconds: by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = threading.local()  # seconds inside the calls that the present call has made

    def watch(self, part: str, instance: Any, *methods: str) -> None:
        """Time the calls of methods of an object, where it has them.

        The object gets a subclass, because Python looks ``__call__`` up in the class. The subclass keeps the name of
        the class, because the digest of a run's settings contains it.
        """
        cls = type(instance)
        timed = {name: self._timed(part, getattr(cls, name)) for name in methods if hasattr(cls, name)}
        instance.__class__ = type(cls.__name__, (cls,), {**timed, "__module__": cls.__module__})

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            begin = timer()
            try:
                return method(*args, **kwargs)
            finally:
                seconds = timer() - begin
                self.seconds[part] += seconds - self._inner.seconds
                self._inner.seconds = before + seconds

        return timed


def measure(
    case: str, output_dir: str, settings: Mapping[str, Any], process_start: float | None = None
) -> dict[str, Any]:
    """Run inference on a file, then the encoder and the score repeatedly on its largest slice.

    Args:
        case: the file.
        output_dir: the folder of the results.
        settings: config ids and their values.
        process_start: seconds since 1970.

    Returns:
        ``backend_name``; seconds from the start of the process until the run begins (``start``), of the ``run``, and
        inside its ``parts``; ``encoder`` and ``score``, the seconds of one slice; ``n_slices`` and ``n_patches`` that
        the encoder saw; ``pixels``, ``gflop`` and ``patches_per_slice`` of the largest slice; ``n_features`` and
        ``n_active`` components; ``model_mb``, ``mixture_mb``, and the peaks ``peak_mb`` and ``gpu_mb`` of the run.
    """
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.json"),
        workflow_type="inference",
        run_id="inference",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=case,
        output_dir=output_dir,
        **{"show_progress": False, "overwrite": True, **settings},
    )
    workflow.initialize()
    content = workflow.parser.get_parsed_content
    stopwatch = Stopwatch()
    (load, *steps), writer = content("preprocessing").transforms, content("case_writer")
    stopwatch.watch("load", load, "__call__")
    for step in steps:
        stopwatch.watch("preprocess", step, "__call__")
    stopwatch.watch("postprocess", content("postprocessing"), "__call__")
    for handler in content("handlers"):
        stopwatch.watch("write" if handler is writer else "report", handler, *HANDLER_METHODS)
    network = content("evaluator").network
    encoder, mixture = network.encoder, network.mixture
    stopwatch.watch("encode", encoder, "forward")
    stopwatch.watch("score", mixture, "forward", "anomaly_score")
    stopwatch.watch("score", network, "patch_scores")
    stopwatch.watch("resize", network, "to_patches", "to_pixels")
    slices, shapes = [torch.empty(0)], []  # the largest slice [1,3,H,W], and the shapes of all embeddings [B,D,h,w]

    def observe(_: torch.nn.Module, inputs: Sequence[torch.Tensor], embeddings: torch.Tensor) -> None:
        shapes.append(embeddings.shape)
        if inputs[0][:1].numel() > slices[0].numel():
            slices[0] = inputs[0][:1].clone()

    hook = encoder.register_forward_hook(observe)
    begin = time.time()
    workflow.run()
    run = time.time() - begin
    hook.remove()
    parts, peak = dict(stopwatch.seconds), peak_mb()
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0
    with torch.inference_mode():
        embeddings = encoder(slices[0])
        return {
            "backend_name": encoder.backend_name,
            "start": begin - (process_start or begin),
            "run": run,
            "parts": parts,
            "encoder": median_seconds(partial(encoder, slices[0])),
            "score": median_seconds(partial(network.patch_scores, embeddings, network.score)),
            "n_slices": sum(shape[0] for shape in shapes),
            "n_patches": sum(shape[0] * shape[2:].numel() for shape in shapes),
            "pixels": list(slices[0].shape[2:]),
            "gflop": flop_per_slice(encoder, slices[0]) / 1e9,
            "patches_per_slice": embeddings.shape[2:].numel(),
            "n_features": encoder.n_features,
            "n_active": mixture.n_active,
            "model_mb": Path(content("ckpt_path")).stat().st_size / 1e6,
            "mixture_mb": sum(buffer.nbytes for buffer in mixture.buffers()) / 1e6,
            "peak_mb": peak,
            "gpu_mb": gpu,
        }


def flop_per_slice(encoder: Any, image: torch.Tensor) -> int:
    """Count the floating-point operations of the matrix products for an image ``[1,3,H,W]``, in the blocks in use."""
    n, d = 1 + image.shape[2:].numel() // encoder.patch_size**2, encoder.n_features // len(encoder.layers)
    return (1 + max(encoder.layers)) * (24 * n * d**2 + 4 * n**2 * d) + 2 * n * 3 * encoder.patch_size**2 * d


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
