"""Import of MONAI without libraries that no run of the bundle uses.

`import monai` loads all modules of MONAI, and with them every optional library that is installed, although a run needs
few. Those below are made unavailable while MONAI is imported, and are there again for the bundle's own modules
afterwards. MONAI's components that need them say that they are missing; no config of the bundle has one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = (
    "jsonschema",
    "matplotlib.pyplot",
    "pandas",
    "rfc3987_syntax",
    "scipy.signal",
    "skimage.morphology",
    "sklearn",
    "torchvision",
    "transformers",
)
OF_TRACKING = ("mlflow",)
OF_TRAINING = ("tensorboard", "tensorboardX", "torch.utils.tensorboard")


@contextmanager
def unavailable(names: tuple[str, ...]) -> Iterator[None]:
    """Let imports of modules fail that are not imported yet."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_monai(training: bool, tracking: bool) -> None:
    """Import ``monai.bundle`` without the libraries that the run does not use.

    Args:
        training: whether the run is of the configs of a fit, which writes TensorBoard's files.
        tracking: whether MLflow records the run.
    """
    names = (*UNUSED, *(() if training else OF_TRAINING), *(() if tracking else OF_TRACKING))
    with unavailable(names):
        importlib.import_module("monai.bundle")
