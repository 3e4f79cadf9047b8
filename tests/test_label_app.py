"""The folders that a MONAI Label server reads, and what `python -m label` refuses before it starts one."""

import shutil
import socket

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import TINY
from tiny_cases import brain, save

from label.__main__ import check_port, serve, ship_once
from label.app_folder import link_normals, link_studies
from scripts.errors import InputError


def test_studies_are_linked_and_labels_of_normals_are_empty(tmp_path):
    for group, name in (("cases", "ill"), ("normals", "well")):
        save(tmp_path / group / f"{name}.nii.gz", brain(1))
    names = link_studies(tmp_path / "studies", tmp_path / "cases")
    assert names == ["ill"] and link_normals(tmp_path / "studies", tmp_path / "normals", names) == ["well"]
    assert (tmp_path / "studies" / "ill.nii.gz").resolve() == (tmp_path / "cases" / "ill.nii.gz").resolve()
    label = nib.load(tmp_path / "studies" / "labels" / "final" / "well.nii.gz")
    image = nib.load(tmp_path / "normals" / "well.nii.gz")
    assert label.shape == image.shape and not np.asarray(label.dataobj).any()
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-5)


def test_what_somebody_drew_on_a_normal_stays(tmp_path):
    save(tmp_path / "normals" / "well.nii.gz", brain(1))
    link_normals(tmp_path / "studies", tmp_path / "normals")
    label = tmp_path / "studies" / "labels" / "final" / "well.nii.gz"
    save(label, np.ones(brain(1).shape, np.uint8))
    link_normals(tmp_path / "studies", tmp_path / "normals")
    assert np.asarray(nib.load(label).dataobj).all()


def test_a_name_in_studies_and_normals_is_refused(tmp_path):
    for group in ("cases", "normals"):
        save(tmp_path / group / "one.nii.gz", brain(1))
    names = link_studies(tmp_path / "studies", tmp_path / "cases")
    with pytest.raises(InputError, match="both have a case 'one'"):
        link_normals(tmp_path / "studies", tmp_path / "normals", names)


def test_a_copy_of_another_model_or_with_other_settings_is_not_served(shipped, tmp_path):
    model = tmp_path / "model.pt"
    shutil.copy(shipped / "models" / "model.pt", model)
    ship_once(str(model), tmp_path / "anomaly", TINY)
    trained = tmp_path / "anomaly" / "models" / "model.pt"
    trained.write_bytes(b"trained since")
    ship_once(str(model), tmp_path / "anomaly", TINY)
    with pytest.raises(InputError, match="other settings"):
        ship_once(str(model), tmp_path / "anomaly", {**TINY, "target_fpr": 0.05})
    model.write_bytes(b"another")
    with pytest.raises(InputError, match="another model"):
        ship_once(str(model), tmp_path / "anomaly", TINY)
    assert trained.read_bytes() == b"trained since"


def test_bundles_keep_their_own_settings(tmp_path):
    with pytest.raises(InputError, match=r"give target_fpr to scripts\.ship"):
        serve(bundles=str(tmp_path), output_dir=str(tmp_path / "out"), target_fpr=0.05)


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is taken"):
            check_port(taken.getsockname()[1])
