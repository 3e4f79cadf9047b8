"""Checks of MONAI's model zoo on a bundle, with the conventions of its bundles that no program of the zoo checks.

`check_archive` runs them in a process of their own that has the bundle's ``scripts``, as the zoo does. The zoo checks
the shape of the data on ``network_def``, which is not fitted in this bundle: here ``fitted_network`` takes its place.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch
import yaml
from monai.apps.utils import SUPPORTED_HASH_TYPES, check_hash, extractall
from monai.bundle import (
    ConfigWorkflow,
    ckpt_export,
    create_workflow,
    verify_metadata,
    verify_net_in_out,
)
from monai.bundle.properties import InferProperties, MetaProperties
from PIL import Image

from scripts.errors import InputError, cause_of, reason_of
from scripts.metadata import read_metadata

ROOT = Path(__file__).resolve().parent.parent
REQUIRED_FILES = (
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
# Keys and types of the metadata by the specification of bundles, and those that the zoo's bundles have in addition.
METADATA_TYPES = {
    "schema": str,
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "supported_apps": dict,
    "name": str,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "data_source": str,
    "data_type": str,
    "image_classes": str,
    "label_classes": str,
    "pred_classes": str,
    "eval_metrics": dict,
    "intended_use": str,
    "references": list,
    "network_data_format": dict,
}
MAY_BE_EMPTY = ("eval_metrics",)
TENSOR_TYPES = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
VERSION = re.compile(r"\d+\.\d+\.\d+")
SIDE = re.compile(r"\*|\d+|[\d*+pn]+")  # of a spatial shape
SECTIONS = [  # of docs/README.md
    "# Model Overview",
    "## Data",
    "## Training configuration",
    "### Memory Consumption",
    "### Input",
    "### Output",
    "## Performance",
    "## MONAI Bundle Commands",
    "# References",
    "# License",
]


def check_files(bundle: Path) -> None:
    """Check that the files are there that the zoo requires or prefers."""
    for name in REQUIRED_FILES:
        if not (bundle / name).is_file():
            raise InputError(f"{name} is missing")


def check_json(bundle: Path) -> None:
    """Check that the configs have the zoo's format of JSON."""
    for path in sorted((bundle / "configs").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        if text != json.dumps(json.loads(text), indent=4) + "\n":
            raise InputError(f"configs/{path.name} must be indented by 4 and end with one newline")


def check_large_files(bundle: Path) -> None:
    """Check the entries of ``large_files.yml``, and the hashes of those of its files that are there."""
    file = bundle / "large_files.yml"
    for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["large_files"] if file.is_file() else ():
        kind, value = entry.get("hash_type"), str(entry.get("hash_val"))
        if kind not in SUPPORTED_HASH_TYPES or len(value) != 2 * SUPPORTED_HASH_TYPES[kind]().digest_size:
            raise InputError(f"large_files.yml needs a hash_type and a hash_val of its length for {entry.get('path')}")
        if not str(entry.get("url")).startswith("https://"):
            raise InputError(f"large_files.yml needs an https address as url of {entry['path']}")
        path = bundle / entry["path"]
        if path.is_file() and not check_hash(path, value, kind):
            raise InputError(f"{entry['path']} has another hash than large_files.yml states")


def check_metadata(bundle: Path) -> None:
    """Check keys, types and versions of the metadata, and that its changelog has the version first."""
    metadata = read_metadata(bundle)
    if difference := set(metadata) ^ set(METADATA_TYPES):
        raise InputError(f"the metadata have too many or too few keys: {', '.join(sorted(difference))}")
    for name, kind in METADATA_TYPES.items():
        if type(metadata[name]) is not kind or not (metadata[name] or name in MAY_BE_EMPTY):
            raise InputError(f"{name} of the metadata must be a {kind.__name__} with content")
    stated = {name: metadata[name] for name in ("version", "monai_version", "pytorch_version", "numpy_version")}
    stated |= {**metadata["required_packages_version"], **metadata["supported_apps"]}
    for name, version in stated.items():
        if type(version) is not str or not VERSION.fullmatch(version):
            raise InputError(f"the metadata state {version!r} for {name}; it must be a version such as 1.2.3")
    if next(iter(metadata["changelog"])) != metadata["version"]:
        raise InputError(f"the newest entry of the changelog is not of version {metadata['version']}")
    if not all(type(reference) is str for reference in metadata["references"]):
        raise InputError("references of the metadata must be a list of texts")


def check_tensors(bundle: Path) -> None:
    """Check the description of the network's inputs and outputs."""
    formats = read_metadata(bundle)["network_data_format"]
    for part in ("inputs", "outputs"):
        for name, tensor in formats[part].items():
            for key, kind in TENSOR_TYPES.items():
                if type(tensor.get(key)) is not kind:
                    raise InputError(f"{key} of {name} in the {part} must be a {kind.__name__}")
            if not all(SIDE.fullmatch(str(side)) for side in tensor["spatial_shape"]):
                raise InputError(f"spatial_shape of {name} must be of numbers, * and terms of n and p")
            if not hasattr(torch, tensor["dtype"]):
                raise InputError(f"dtype of {name} is {tensor['dtype']!r}, which torch does not have")


def check_packages(bundle: Path) -> None:
    """Check that ``requirements.txt`` pins the packages of the metadata to their versions."""
    metadata, pins = read_metadata(bundle), (bundle / "requirements.txt").read_text(encoding="utf-8")
    frameworks = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    for name, version in {**metadata["required_packages_version"], **frameworks}.items():
        if not re.search(rf"^{re.escape(name)}=={re.escape(version)}( ;|$)", pins, re.MULTILINE):
            raise InputError(f"the metadata state {name} {version}, to which requirements.txt does not pin it")


def check_sections(bundle: Path) -> None:
    """Check that ``docs/README.md`` has the sections of the zoo's template in their order."""
    text = re.sub(r"```.*?```", "", (bundle / "docs" / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^(#+ .*)$", text, re.MULTILINE)
    if headings != SECTIONS:
        raise InputError(f"docs/README.md must have the headings {', '.join(SECTIONS)}; it has {', '.join(headings)}")


def check_properties(bundle: Path) -> None:
    """Check that the configs have the ids by which MONAI's applications find the parts of a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        Image.new("L", (64, 64)).save(Path(folder) / "case.png")  # MONAI evaluates the properties
        workflow = create_workflow(
            workflow_type="infer",
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=str(bundle / "configs" / "logging.conf"),
            bundle_root=str(bundle),
            dataset_dir=folder,
            output_dir=str(Path(folder) / "output"),
        )
        workflow.properties = {**MetaProperties, **InferProperties}
        missing = list(workflow.check_properties() or ())
        workflow.finalize()
    for name in ("train", "inference"):
        file = str(bundle / "configs" / f"{name}.json")
        workflow = ConfigWorkflow(config_file=file, workflow_type=name, logging_file=False)
        required = [entry["id"] for entry in workflow.properties.values() if entry.get("required")]
        missing += [f"{key} of {name}.json" for key in required if key not in workflow.parser]
    if missing:
        raise InputError(f"the configs lack {', '.join(missing)}")


def check_shape(bundle: Path, net_id: str = "fitted_network", **arguments: Any) -> None:
    """Check that the network takes and gives tensors as the metadata describe them."""
    verify_net_in_out(
        net_id=net_id,
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
        device="cpu",
        **arguments,
    )


def check_torchscript(bundle: Path, net_id: str = "network_def") -> None:
    """Check that the network can be exported to TorchScript, and then gives finite maps of the size of its input."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "verify_model.ts"
        ckpt_export(
            net_id=net_id,
            filepath=str(file),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
        )
        maps = torch.jit.load(file)(torch.rand(1, 1, 50, 60, 2))
    if maps.shape != (1, 1, 50, 60, 2) or not maps.isfinite().all():
        raise InputError(
            f"the exported network gives no finite maps of the size of images; their shape is {maps.shape}"
        )


CHECKS: dict[str, Callable[[Path], None]] = {
    "required files": check_files,
    "the format of configs": check_json,
    "large files": check_large_files,
    "metadata": check_metadata,
    "tensors in the metadata": check_tensors,
    "required packages": check_packages,
    "the sections of docs/README.md": check_sections,
    "properties": check_properties,
    "the shape of the data": check_shape,
    "TorchScript": check_torchscript,
}


def check_bundle(bundle: str | os.PathLike, schema: str | None = None) -> None:
    """Run all checks.

    Args:
        bundle: folder of the bundle.
        schema: a copy of the file that ``schema`` in the metadata names; without it that check is left out.

    Raises:
        InputError: a check fails; the message names it.
    """
    checks = dict(CHECKS)
    if schema is not None:
        checks["the metadata against their schema"] = lambda root: verify_metadata(
            meta_file=str(root / "configs" / "metadata.json"), filepath=schema
        )
    for name, check in checks.items():
        try:
            check(Path(bundle))
        except Exception as error:  # whatever MONAI and the bundle raise
            why = reason_of(cause_of(error), 300).rstrip(".")
            raise InputError(f"The bundle fails the model zoo's check of {name}: {why}.") from error


def check_archive(archive: Path, schema: Path | None = None) -> None:
    """Unpack an archive as MONAI's download does, and run all checks in a process that has its ``scripts``.

    Args:
        archive: the zip file.
        schema: see `check_bundle`.

    Raises:
        InputError: a check fails; the message names it.
    """
    with tempfile.TemporaryDirectory() as folder:
        extractall(archive, folder)
        (bundle,) = Path(folder).iterdir()
        command = [sys.executable, "-m", "release.checks", "--bundle", str(bundle)]
        command += [] if schema is None else ["--schema", str(schema)]
        paths = [str(bundle), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sentences = re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)
        raise InputError((sentences or [f"The model zoo's checks ended with status {done.returncode}."])[-1])


if __name__ == "__main__":
    fire.Fire(check_bundle)
