"""Command that joins the sample model with the weights of its encoder, or makes its file from a fit.

Examples::

    python -m scripts.sample_model                                      # writes models/model.pt if there is none
    python -m scripts.sample_model --ckpt_path fit/model.pt --output models/t1_heads.pt
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from .errors import InputError, reason_of
from .models.checkpoint import load_network, read_network, save, save_network
from .models.compact import compact_state, restore_state
from .models.fitted_state import fitted_settings
from .models.network import PatchAnomalyNetwork
from .models.sample import SAMPLE_FILE
from .models.weights import FITTED_FILE, MODELS_DIR, load_encoder_weights

CONFIG = MODELS_DIR.parent / "configs" / "inference.json"


def write_model(target: Path, models_dir: Path = MODELS_DIR, replace: bool = False) -> bool:
    """Write the sample model, unless the file exists.

    Args:
        target: the file, such as ``models/model.pt``.
        models_dir: folder of the encoder's weights.
        replace: whether a file that exists is replaced.

    Returns:
        Whether it was written; not where a file is, which is left alone, nor in a copy of the bundle without a sample.

    Raises:
        InputError: the sample is damaged, or the weights of its encoder are missing.
    """
    sample = MODELS_DIR / SAMPLE_FILE
    if (target.exists() and not replace) or not sample.is_file():
        return False
    compact = _read(sample)
    network = network_of(compact["settings"])
    load_encoder_weights(network.encoder, models_dir=models_dir)
    restore_state(network, compact)
    save_network(network, target)
    return True


def write_compact(ckpt_path: Path, output: Path) -> None:
    """Write the compact state of a fitted model.

    Args:
        ckpt_path: the fitted model.
        output: the new file.

    Raises:
        InputError: there is no fitted model, or ``output`` exists.
    """
    if output.exists():
        raise InputError(f"output {output} exists and is left alone; give a new file.")
    network = network_of(fitted_settings(read_network(ckpt_path)["_extra_state"]))
    save(compact_state(load_network(network, ckpt_path)), output)


def network_of(settings: Mapping[str, Any]) -> PatchAnomalyNetwork:
    """Build the network of a fit, by the settings of the fit."""
    config = json.loads(CONFIG.read_text())
    parser = ConfigParser({**config, **{name: value for name, value in settings.items() if name in config}})
    network: PatchAnomalyNetwork = parser.get_parsed_content("network_def")
    return network


def _read(path: Path) -> dict[str, Any]:
    try:
        compact = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(compact["settings"], dict):
            raise TypeError("it has no settings")
    except Exception as error:  # torch.load raises what the file makes it raise
        raise InputError(f"The sample model {path} cannot be read ({reason_of(error)}); take another copy.") from error
    return dict(compact)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m scripts.sample_model", description=__doc__.splitlines()[0])
    parser.add_argument("--models_dir", type=Path, default=MODELS_DIR, help="folder of the weights and of model.pt")
    parser.add_argument("--ckpt_path", type=Path, help="a fit, to make the sample's file of")
    parser.add_argument("--output", type=Path, help="file to make")
    options = parser.parse_args(arguments)
    if (options.ckpt_path is None) != (options.output is None):
        parser.error("--ckpt_path and --output go together")
    if options.ckpt_path:
        write_compact(options.ckpt_path, options.output)
        return
    target = options.models_dir / FITTED_FILE
    print(f"sample model: {target}" if write_model(target, options.models_dir) else f"{target} is left as it is")


if __name__ == "__main__":
    main()
