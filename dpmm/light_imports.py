"""Import of MONAI and timm without libraries that no run of the bundle uses.

`import monai` loads all modules of MONAI, and with them every optional library that is installed, although a run needs
few. Those below are made unavailable while MONAI is imported, and are there again for the bundle's own modules
afterwards. MONAI's components that need them say that they are missing; no config of the bundle has one.

Ignite and torchvision, which timm imports, load PyTorch's compiler and SymPy for one name each. While both are
imported, modules with just these names stand in for the compiler's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

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
STAND_INS: dict[str, dict[str, Any]] = {
    # Ignite asks whether an optimizer is one; a mixture is fitted without optimizers
    "torch.distributed.optim": {"ZeroRedundancyOptimizer": type("ZeroRedundancyOptimizer", (), {})},
    # decorates what must not be compiled, in timm's encoders that take images of any size
    "torch._dynamo": {"disable": lambda function, *_, **__: function},
    # torchvision asks it for ROI align, which no encoder has
    "torch._dynamo.utils": {"is_compile_supported": lambda device: False},
}


@contextmanager
def stand_ins(contents: Mapping[str, Mapping[str, Any] | None]) -> Iterator[None]:
    """Let modules with a few names stand in for those that are not imported yet.

    Args:
        contents: values by name, by name of the module; None where imports of it fail.
    """
    standing = {name: content for name, content in contents.items() if name not in sys.modules}
    sys.modules.update({name: _module(name, content) for name, content in standing.items()})  # type: ignore[misc]
    try:
        yield
    finally:
        for name in standing:
            del sys.modules[name]


def _module(name: str, content: Mapping[str, Any] | None) -> ModuleType | None:
    if content is None:
        return None
    module = ModuleType(name)
    vars(module).update(content)
    return module


def unavailable(names: Iterable[str]) -> AbstractContextManager[None]:
    """Let imports of modules fail that are not imported yet."""
    return stand_ins(dict.fromkeys(names))


def import_libraries(training: bool, tracking: bool) -> None:
    """Import ``monai.bundle`` and timm without the libraries that the run does not use.

    Args:
        training: whether the run is of the configs of a fit, which writes TensorBoard's files.
        tracking: whether MLflow records the run.
    """
    names = (*UNUSED, *(() if training else OF_TRAINING), *(() if tracking else OF_TRACKING))
    with stand_ins(STAND_INS):
        with unavailable(names):
            importlib.import_module("monai.bundle")
        importlib.import_module("timm")
