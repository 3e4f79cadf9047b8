"""A kit of real wheels, installed and used where there is no network: `make test-kit`, 12 GB and ten minutes.

``KIT`` names a kit to test; otherwise one is built for the running Python.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from kit.builder import build_kit
from kit.install import file_sha256
from scripts.models.weights import MODELS_DIR
from tests.tiny_cases import brain, save

OFFLINE = ["unshare", "--map-root-user", "--net", "--mount"]
can_be_offline = shutil.which("unshare") and not subprocess.run([*OFFLINE, "true"], capture_output=True).returncode
CONNECT = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"
SMALL = ["--image_size", "224", "--n_components", "20", "--show_progress", "no"]
LESION = (slice(55, 85), slice(70, 100), slice(1, 4))

pytestmark = [
    pytest.mark.kit,
    pytest.mark.slow,
    pytest.mark.real_weights,
    pytest.mark.skipif(not can_be_offline, reason="NOT TESTED: needs namespaces without a network (unshare)"),
]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Return the folder of a kit; one that was built is removed."""
    if os.environ.get("KIT"):
        yield Path(os.environ["KIT"]).absolute()
        return
    folder = tmp_path_factory.mktemp("built") / "a kit"
    build_kit(folder, [f"{sys.version_info[0]}.{sys.version_info[1]}"])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def offline(kit, tmp_path_factory):
    """Return a function that runs a command without a network, in a new home, with the kit read-only; and a folder."""
    folder = tmp_path_factory.mktemp("hospital")
    (folder / "home").mkdir()
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder / "home")}
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'

    def run(*command):
        command = [*OFFLINE, "sh", "-c", mount, str(kit), *map(str, command)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    yield run, folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def installed(kit, offline):
    """Install the kit; return the function that runs commands without a network, and the folder of the work."""
    run, folder = offline
    done = run("sh", os.path.relpath(kit / "install.sh", folder), "an installation")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "usage: dpmm COMMAND" in done.stdout and "Installed." in done.stdout
    return run, folder


def test_there_is_no_network_and_the_kit_is_read_only(kit, offline):
    run, _ = offline
    assert "unreachable" in run(sys.executable, "-c", CONNECT).stderr
    assert "Read-only" in run("touch", kit / "new").stderr


def test_packages_are_those_of_the_kit(kit, installed):
    run, _ = installed
    listed = run("an installation/environment/bin/python", "-m", "pip", "freeze", "--all").stdout.split()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    locked = (kit / f"requirements-{version}.txt").read_text().splitlines()
    names = {line.split("==")[0].lower().replace("_", "-").replace(".", "-") for line in listed if line != "@"}
    assert {line.split("==")[0] for line in locked} <= names


def test_weights_are_those_of_the_bundle(installed):
    run, folder = installed
    done = run("an installation/dpmm", "weights")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.removeprefix("encoder weights: ").strip())
    assert path.is_relative_to(folder) and file_sha256(path) == file_sha256(MODELS_DIR / path.name)


def test_fits_and_segments(installed):
    run, folder = installed
    for seed in range(5):
        save(folder / "normals" / f"normal-{seed}.nii.gz", brain(seed, (140, 160, 5)))
    save(folder / "cases" / "lesion.nii.gz", brain(9, (140, 160, 5), lesion=LESION))
    fit = run("an installation/dpmm", "fit", "normals", "--max_epochs", "1", *SMALL)
    assert fit.returncode == 0, fit.stderr[-3000:]
    done = run("an installation/dpmm", "segment", "cases", "results", *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    anomaly = nib.load(folder / "results" / "lesion" / "lesion_map.nii.gz").get_fdata()
    outside = anomaly.copy()
    outside[LESION] = 0
    assert anomaly[LESION].max() > 1 and anomaly[LESION].mean() > outside.mean()
    assert json.loads((folder / "results" / "summary.json").read_text())["failed"] == {}
