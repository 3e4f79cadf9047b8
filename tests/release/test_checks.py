"""The checks of the model zoo: whatever they are there for makes them fail."""

import hashlib
import json
import shutil
import sys
import zipfile

import pytest

from release import checks
from scripts.errors import InputError
from tests.tiny_bundle import ROOT


@pytest.fixture
def bundle(tmp_path):
    """Return a copy of the bundle without code, and with a file in the place of a model."""
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, tmp_path / "bundle" / name)
    for name in ("LICENSE", "large_files.yml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "bundle")
    (tmp_path / "bundle" / "models").mkdir()
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(b"model")
    return tmp_path / "bundle"


def change(file, *edits):
    """Change values in a JSON file, given as the path to each and its value; None removes it."""
    content = json.loads(file.read_text())
    for *path, key, value in edits:
        place = content
        for step in path:
            place = place[step]
        if value is None:
            del place[key]
        else:
            place[key] = value
    file.write_text(json.dumps(content, indent=4) + "\n")


STATIC = [
    check
    for check in checks.CHECKS.values()
    if check.__name__ not in ("check_properties", "check_shape", "check_torchscript")
]


def test_the_bundle_passes(bundle):
    for check in STATIC:
        check(bundle)


@pytest.mark.parametrize("name", checks.REQUIRED_FILES)
def test_missing_file(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        checks.check_files(bundle)


@pytest.mark.parametrize("text", ['{"a": 1}\n', '{\n    "a": 1\n}', '{\n  "a": 1\n}\n'])
def test_other_format_of_json(bundle, text):
    (bundle / "configs" / "mine.json").write_text(text)
    with pytest.raises(InputError, match=r"configs/mine\.json"):
        checks.check_json(bundle)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("version", "0.10"), "'0.10' for version"),
        (("version", "9.0.0"), r"not of version 9\.0\.0"),
        (("changelog", {}), "changelog of the metadata must be a dict with content"),
        (("required_packages_version", "nibabel", ">=5"), "'>=5' for nibabel"),
        (("authors", ["A"]), "authors of the metadata must be a str"),
        (("task", None), "keys: task"),
        (("note", "more"), "keys: note"),
        (("references", [1]), "references"),
    ],
)
def test_wrong_metadata(bundle, edit, message):
    change(bundle / "configs" / "metadata.json", edit)
    with pytest.raises(InputError, match=message):
        checks.check_metadata(bundle)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_channels", 1.0, "num_channels of image in the inputs must be a int"),
        ("channel_def", None, "channel_def of image"),
        ("spatial_shape", ["m"], "spatial_shape of image"),
        ("dtype", "float33", "'float33'"),
    ],
)
def test_wrong_tensor(bundle, key, value, message):
    change(bundle / "configs" / "metadata.json", ("network_data_format", "inputs", "image", key, value))
    with pytest.raises(InputError, match=message):
        checks.check_tensors(bundle)


@pytest.mark.parametrize("path", [("monai_version",), ("required_packages_version", "timm")])
def test_version_that_is_not_pinned(bundle, path):
    change(bundle / "configs" / "metadata.json", (*path, "0.0.1"))
    with pytest.raises(InputError, match=r"0\.0\.1, to which requirements\.txt does not pin it"):
        checks.check_packages(bundle)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('url: "http://host/model"', "https address"),
        ('hash_type: "crc"', "needs a hash_type"),
        ('hash_val: "abc"', "needs a hash_type and a hash_val of its length"),
    ],
)
def test_wrong_entry_of_large_files(bundle, line, message):
    key = line.partition(":")[0]
    file = bundle / "large_files.yml"
    lines = [f"  {line}" if old.strip().startswith(f"{key}:") else old for old in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        checks.check_large_files(bundle)


def test_large_file_must_have_its_hash(bundle):
    digest = hashlib.sha256(b"model").hexdigest()
    entry = f"- path: models/model.pt\n  url: https://host/model.pt\n  hash_type: sha256\n  hash_val: {digest}\n"
    (bundle / "large_files.yml").write_text(f"large_files:\n{entry}")
    checks.check_large_files(bundle)
    (bundle / "models" / "model.pt").write_bytes(b"other")
    with pytest.raises(InputError, match=r"models/model\.pt has another hash"):
        checks.check_large_files(bundle)


def test_other_order_of_sections(bundle):
    page = bundle / "docs" / "README.md"
    page.write_text(page.read_text().replace("## Performance", "## Speed"))
    with pytest.raises(InputError, match="must have the headings"):
        checks.check_sections(bundle)


def test_failed_check_is_named(bundle):
    (bundle / "LICENSE").unlink()
    with pytest.raises(
        InputError, match=r"^The bundle fails the model zoo's check of required files: LICENSE is missing\.$"
    ):
        checks.check_bundle(bundle)


def test_errors_of_other_libraries_are_named_too(bundle):
    (bundle / "configs" / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"^The bundle fails the model zoo's check of the format of configs: "):
        checks.check_bundle(bundle)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("a warning\nerror: The bundle fails.\nanother", r"^The bundle fails\.$"),
        ("a warning", r"checks ended with status 3\.$"),
    ],
)
def test_sentence_of_the_checking_process_is_passed_on(tmp_path, monkeypatch, lines, sentence):
    (tmp_path / "python").write_text(f"#!/bin/sh\ntest -f LICENSE || exit 0\necho '{lines}' >&2\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with zipfile.ZipFile(tmp_path / "bundle_v1.0.0.zip", "w") as archive:
        archive.writestr("bundle/LICENSE", "licence")
    with pytest.raises(InputError, match=sentence):
        checks.check_archive(tmp_path / "bundle_v1.0.0.zip")
