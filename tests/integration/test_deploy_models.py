"""Which folder of models the MONAI Deploy app takes; needs no environment of its own."""

import importlib.util
import json

import pytest

from tests.tiny_bundle import ROOT

SPEC = importlib.util.spec_from_file_location("models_folder", ROOT / "deploy" / "app" / "models_folder.py")
models_folder = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models_folder)


def make_bundle(folder, version):
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": version}))
    return folder


@pytest.mark.parametrize("version", ["0.5.0", "0.5.1", "0.10.0", "1.0.0"])
def test_a_bundle_is_found_in_the_folder_or_as_the_folder(tmp_path, version):
    bundle = make_bundle(tmp_path / "models" / "anomaly", version)
    assert models_folder.find_bundle(tmp_path / "models") == bundle == models_folder.find_bundle(bundle)


@pytest.mark.parametrize("version", ["0.4.1", "0.4.0", "0.1", "", None])
def test_a_bundle_of_an_earlier_layout_is_refused(tmp_path, version):
    bundle = make_bundle(tmp_path / "anomaly", version)
    with pytest.raises(
        ValueError, match=f"has version {version}; expected 0.5 or later, so export its model again"
    ) as error:
        models_folder.find_bundle(tmp_path)
    assert str(bundle) in str(error.value)


def test_no_bundle_or_several_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 bundles; expected one"):
        models_folder.find_bundle(tmp_path)
    for name in "ab":
        make_bundle(tmp_path / name, "0.5.0")
    with pytest.raises(ValueError, match="holds 2 bundles; expected one"):
        models_folder.find_bundle(tmp_path)


def test_the_bundle_of_this_repository_is_taken():
    assert models_folder.find_bundle(ROOT) == ROOT


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null"])
def test_metadata_without_a_version_are_refused(tmp_path, content):
    (make_bundle(tmp_path / "anomaly", "0.5.0") / "configs" / "metadata.json").write_text(content)
    with pytest.raises(ValueError, match=r"metadata\.json names no version; export the model again"):
        models_folder.find_bundle(tmp_path)
