"""Which folder of models the MONAI Deploy app takes; needs no environment of its own."""

import importlib.util

import pytest

from tests.tiny_bundle import ROOT

SPEC = importlib.util.spec_from_file_location("models_folder", ROOT / "deploy" / "app" / "models_folder.py")
models_folder = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models_folder)


def make_bundle(folder, *files):
    for file in ("configs/metadata.json", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_a_bundle_is_found_in_the_folder_or_as_the_folder(tmp_path):
    bundle = make_bundle(tmp_path / "models" / "anomaly", models_folder.NEWEST_NEEDED)
    assert models_folder.find_bundle(tmp_path / "models") == bundle == models_folder.find_bundle(bundle)


def test_a_bundle_of_an_earlier_version_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "anomaly", "scripts/inference/measurements.py")
    with pytest.raises(ValueError, match="by an earlier version than that of the app; export its model again") as error:
        models_folder.find_bundle(tmp_path)
    assert str(bundle) in str(error.value)


def test_no_bundle_or_several_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 bundles; expected one"):
        models_folder.find_bundle(tmp_path)
    for name in "ab":
        make_bundle(tmp_path / name)
    with pytest.raises(ValueError, match="holds 2 bundles; expected one"):
        models_folder.find_bundle(tmp_path)


def test_the_bundle_of_this_repository_is_taken():
    assert models_folder.find_bundle(ROOT) == ROOT
