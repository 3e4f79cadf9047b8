"""The MONAI Application Package: its build context, and a run in the file system that its Dockerfile describes.

No image is built: the base image is stood in for by Debian's packages of the same release, and the instructions of the
Dockerfile are carried out in a folder.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pydicom
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.integration.deploy_studies import good_studies
from tests.integration.dockerfile import Replay, read_instructions
from tests.tiny_bundle import ROOT

PYTHON = ROOT / ".venv-deploy" / "bin" / "python"
DEBIAN = "bookworm"  # the release of the base image
METADATA = """Metadata-Version: 2.4
Name: {name}
Version: {version}
License-Expression: MIT
Requires-Dist: numpy; python_version > "3"
"""
# Requirements that the installed packages do not meet; `pip check` stops at the wheel tag that itk's wheels state.
UNMET = """
from importlib.metadata import distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
installed = {canonicalize_name(one.name): one for one in distributions()}
needed = [Requirement(line) for one in installed.values() for line in one.requires or []]
needed = [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
versions = {name: one.version for name, one in installed.items()}
print([str(one) for one in needed if versions.get(canonicalize_name(one.name), "") not in one.specifier])
"""
needs_environment = pytest.mark.skipif(not PYTHON.exists(), reason=f"NOT TESTED: no {PYTHON}; `make test-deploy`")


def package(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [PYTHON, ROOT / "deploy" / "package.py", *command]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def wanted(platform):
    """Return the packages of the image as ``{name: version}``, by the pins themselves."""
    image = {"python_full_version": "3.11.14", "python_version": "3.11", "sys_platform": "linux"}
    image |= {"platform_machine": "x86_64", "implementation_name": "cpython"}
    pins = [Requirement(line) for line in (ROOT / "requirements-deploy.txt").read_text().splitlines()]
    names = {pin.name: pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate(image)}
    if platform == "cpu":
        for_gpus = re.compile(r"nvidia-(?!cuda-runtime)|cuda-|cupy-|triton$")
        names = {name: version for name, version in names.items() if not for_gpus.match(name)}
    return {canonicalize_name(name): str(version).removeprefix("==") for name, version in names.items()}


def write_wheelhouse(folder, platform):
    """Write wheels without content, and their hashes as `package.py wheelhouse` does."""
    folder.mkdir()
    lines = []
    for name, version in sorted(wanted(platform).items()):
        if platform == "cpu" and name in ("torch", "torchvision"):
            version += "+cpu"
        stem = f"{name.replace('-', '_')}-{version}"
        with ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{stem}.dist-info/METADATA", METADATA.format(name=name, version=version))
        digest = hashlib.sha256((folder / f"{stem}-py3-none-any.whl").read_bytes()).hexdigest()
        _, normal, _, _ = parse_wheel_filename(f"{stem}-py3-none-any.whl")
        lines.append(f"{name}=={normal} --hash=sha256:{digest}\n")
    (folder / "requirements.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with what the packager reads of an exported bundle."""
    folder = tmp_path_factory.mktemp("models")
    for file in ("configs/metadata.json", "scripts/inference/dicom_objects.py"):
        (folder / "anomaly" / file).parent.mkdir(parents=True)
        shutil.copy(ROOT / file, folder / "anomaly" / file)
    (folder / "anomaly" / "models").mkdir()
    (folder / "anomaly" / "models" / "model.pt").write_text("a model")
    return folder


@pytest.fixture(scope="module")
def context(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    wheels = write_wheelhouse(folder / "wheelhouse", "gpu")
    done = package("context", "--models", models, "--wheelhouse", wheels, "--output", folder / "context")
    assert done.returncode == 0, done.stderr
    return folder / "context"


@pytest.mark.deploy
@needs_environment
class TestContext:
    def test_sources_exist_and_nothing_needs_a_network(self, context):
        instructions = read_instructions(context / "Dockerfile")
        assert [one.keyword for one in instructions].count("FROM") == 1
        for instruction in instructions:
            if instruction.keyword == "COPY":
                assert all((context / source).exists() for source in instruction.words()[:-1])
            if instruction.keyword == "RUN":
                assert not re.search(r"apt|curl|wget|https?:|git ", instruction.text)
                assert "pip" not in instruction.text or "--no-index" in instruction.text
            assert instruction.keyword != "ADD"

    def test_user_is_not_root_and_entry_has_a_time_limit(self, context):
        texts = {one.keyword: one.text for one in read_instructions(context / "Dockerfile")}
        assert texts["USER"] == "1000:1000" and "sudo" not in (context / "Dockerfile").read_text()
        assert "health.py" in texts["HEALTHCHECK"]
        (entry,) = json.loads(texts["ENTRYPOINT"])
        assert os.access(context / Path(entry).name, os.X_OK)
        assert 'exec timeout --kill-after=30 "$HOLOSCAN_TIMEOUT"' in (context / Path(entry).name).read_text()

    def test_base_image_is_pinned(self, context):
        base = re.search(r"^ARG BASE_IMAGE=(.*)$", (context / "Dockerfile").read_text(), re.MULTILINE)[1]
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)

    def test_manifests(self, context, models):
        version = json.loads((models / "anomaly" / "configs" / "metadata.json").read_text())["version"]
        app, pkg = (json.loads((context / "map" / f"{name}.json").read_text()) for name in ("app", "pkg"))
        assert app["version"] == pkg["version"] == version
        assert json.loads(app["command"]) == ["python3", "/opt/holoscan/app"]
        assert app["input"]["formats"] == app["output"]["formats"] == ["file"]
        assert pkg["models"] == {"anomaly": "/opt/holoscan/models/anomaly"}
        assert (context / "app" / "__main__.py").is_file() and (context / "tools").is_file()

        dockerfile = (context / "Dockerfile").read_text()
        assert f"ARG VERSION={version}\n" in dockerfile and f"ARG TIMEOUT={app['timeout']}\n" in dockerfile
        replay = Replay(context, context, arguments={"TIMEOUT": "1"})
        for instruction in read_instructions(context / "Dockerfile"):
            if instruction.keyword == "ENV":
                replay.do_env(instruction)
        for name, value in app["environment"].items():
            in_image = Path(replay.environment[name])
            assert in_image == Path(app["workingDirectory"], value), name
        assert app["liveness"]["command"] == replay_health(context)

    def test_bill_of_materials_is_valid_and_complete(self, context):
        text = (context / "sbom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        bill = json.loads(text)
        libraries = {one["name"]: one for one in bill["components"] if one["type"] == "library"}
        assert {name: one["version"] for name, one in libraries.items()} == wanted("gpu")
        for one in libraries.values():
            assert one["licenses"] == [{"expression": "MIT"}]
            (wheel,) = (context / "wheelhouse").glob(f"{one['name'].replace('-', '_')}-{one['version']}-*.whl")
            assert one["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
        others = {one["type"]: one for one in bill["components"] if one["type"] != "library"}
        model = hashlib.sha256(b"a model").hexdigest()
        assert others["machine-learning-model"]["hashes"][0]["content"] == model
        assert others["container"]["version"] in (context / "Dockerfile").read_text()
        needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
        assert needs[libraries["torch"]["bom-ref"]] == [libraries["numpy"]["bom-ref"]]

    def test_platform_without_gpu(self, models, tmp_path):
        wheels = write_wheelhouse(tmp_path / "wheelhouse", "cpu")
        common = ["context", "--models", models, "--wheelhouse", wheels, "--output", tmp_path / "context"]
        assert package(*common).returncode == 1  # the wheels of CUDA are missing
        done = package(*common, "--platform", "cpu")
        assert done.returncode == 0, done.stderr
        names = {path.name.split("-")[0] for path in (tmp_path / "context" / "wheelhouse").glob("*.whl")}
        assert {"torch", "nvidia_cuda_runtime"} <= names and not {"triton", "nvidia_cublas"} & names
        assert "torch==2.14.1+cpu --hash" in (tmp_path / "context" / "wheelhouse" / "requirements.txt").read_text()

    def test_wheels_that_changed_are_refused(self, models, tmp_path):
        wheels = write_wheelhouse(tmp_path / "wheelhouse", "gpu")
        next(wheels.glob("torch-*.whl")).open("ab").write(b"changed")
        done = package("context", "--models", models, "--wheelhouse", wheels, "--output", tmp_path / "context")
        assert done.returncode == 1 and "does not describe the wheels next to it" in done.stderr

    def test_other_folders_are_left_alone(self, models, context, tmp_path):
        (tmp_path / "precious").write_text("data")
        done = package("context", "--models", models, "--wheelhouse", context / "wheelhouse", "--output", tmp_path)
        assert done.returncode == 1 and "something other than an earlier context" in done.stderr
        assert (tmp_path / "precious").read_text() == "data"

    def test_without_docker_the_command_is_said(self, context, monkeypatch):
        monkeypatch.setenv("PATH", str(PYTHON.parent))
        done = package("build", "--context", context)
        assert done.returncode == 1 and "NO IMAGE WAS BUILT" in done.stderr
        assert "docker build --network none" in done.stderr


def replay_health(context):
    """Return the command of the Dockerfile's health check."""
    replay = Replay(context, context)
    for instruction in read_instructions(context / "Dockerfile"):
        if instruction.keyword == "HEALTHCHECK":
            replay.do_healthcheck(instruction)
    return replay.health


class TestHealth:
    @pytest.fixture
    def environment(self, models, tmp_path):
        for name in ("input", "output"):
            (tmp_path / name).mkdir()
        for name in ("app", "pkg"):
            (tmp_path / f"{name}.json").write_text("{}")
        return {
            "HOLOSCAN_MODEL_PATH": str(models),
            "HOLOSCAN_INPUT_PATH": str(tmp_path / "input"),
            "HOLOSCAN_OUTPUT_PATH": str(tmp_path / "output"),
            "HOLOSCAN_APP_MANIFEST_PATH": str(tmp_path / "app.json"),
            "HOLOSCAN_PKG_MANIFEST_PATH": str(tmp_path / "pkg.json"),
        }

    def status(self, environment):
        command = [sys.executable, str(ROOT / "deploy" / "app" / "health.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def test_healthy(self, environment):
        assert self.status(environment) == (0, "healthy\n")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("HOLOSCAN_MODEL_PATH", "/nowhere", "holds 0 bundles"),
            ("HOLOSCAN_OUTPUT_PATH", "/nowhere", "/nowhere cannot be written"),
            ("HOLOSCAN_INPUT_PATH", "/nowhere", "/nowhere cannot be read"),
            ("HOLOSCAN_APP_MANIFEST_PATH", "/nowhere", "No such file"),
            ("HOLOSCAN_PKG_MANIFEST_PATH", "/dev/null", "Expecting value"),
        ],
    )
    def test_not_healthy(self, environment, name, value, message):
        status, text = self.status({**environment, name: value})
        assert status == 1 and text.startswith("not healthy: ") and message in text


def can_make_images():
    """Return whether the file system of an image can be made here."""
    tools = all(map(shutil.which, ("debootstrap", "unshare", "chroot")))
    return tools and PYTHON.exists() and not subprocess.run(["unshare", "--mount", "--net", "true"]).returncode


@pytest.fixture(scope="module")
def image(shipped, tmp_path_factory):
    """Return the replay of the image's Dockerfile, with the real wheels."""
    folder = tmp_path_factory.mktemp("image")
    try:
        yield build_image(shipped, folder, Path(os.environ.get("WHEELHOUSE", folder / "wheelhouse")))
    finally:
        shutil.rmtree(folder)


def build_image(bundle, folder, wheels):
    """Carry out in a folder what `make image` does; wheels that are there already are not downloaded."""
    shutil.copytree(bundle, folder / "models" / "anomaly")
    for command in (
        ["wheelhouse", "--output", wheels],
        ["context", "--models", folder / "models", "--wheelhouse", wheels, "--output", folder / "context"],
    ):
        done = package(*command)
        assert done.returncode == 0, done.stderr[-3000:]
    base = ["debootstrap", "--variant=minbase", "--include=python3", DEBIAN, str(folder / "root")]
    subprocess.run(base, check=True, stdout=subprocess.DEVNULL)
    replay = Replay(folder / "root", folder / "context")
    replay.build()
    print(f"wheels: {size_gb(wheels):.1f} GB, image: {size_gb(replay.root):.1f} GB")
    return replay


def size_gb(folder):
    """Return the space that a folder takes, in 10^9 bytes."""
    done = subprocess.run(["du", "--summarize", "--bytes", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1e9


def frames(folder, kind):
    (path,) = folder.glob(f"*/{kind}/*.dcm")
    return pydicom.dcmread(path).pixel_array


@pytest.mark.package
@pytest.mark.slow
@pytest.mark.skipif(not can_make_images(), reason="NOT TESTED: needs root, debootstrap, unshare and .venv-deploy")
class TestImage:
    @pytest.fixture(scope="class")
    def study(self, tmp_path_factory):
        series = good_studies(tmp_path_factory.mktemp("series"))
        return Path(series["axial"][0].filename).parent

    @pytest.fixture
    def folders(self, study, tmp_path):
        """Return the mounts of input and output, and the output folder of the image's user."""
        output = tmp_path / "output"
        output.mkdir()
        os.chown(output, 1000, 1000)
        return {"/var/holoscan/input": study, "/var/holoscan/output": output}

    def test_packages_fit_together(self, image):
        done = image.run_inside("python3", "-c", UNMET)
        assert (done.stdout, done.stderr) == ("[]\n", "")

    def test_user_owns_nothing_but_results_and_logs(self, image):
        owned = image.run_inside("find", "/", "-xdev", "-user", "1000").stdout.split()
        assert sorted(owned) == ["/var/holoscan/logs", "/var/holoscan/output"]
        assert image.run_inside("sh", "-c", "command -v sudo").returncode
        assert image.run_inside("id", "-G").stdout.split() == ["1000"]

    def test_read_only_and_without_network_the_app_gives_the_same_results(self, image, folders, study, tmp_path):
        done = image.run_inside(*image.entry, mounts=folders, read_only=True)
        assert done.returncode == 0, done.stderr[-3000:]
        outside = tmp_path / "outside"
        command = [PYTHON, ROOT / "deploy" / "app", "-i", study, "-o", outside, "-m", image.context / "models"]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        mask = frames(outside, "segmentation")
        assert mask.any()
        np.testing.assert_array_equal(frames(folders["/var/holoscan/output"], "segmentation"), mask)
        np.testing.assert_allclose(
            frames(folders["/var/holoscan/output"], "parametric_map"), frames(outside, "parametric_map"), atol=1e-5
        )

    def test_health(self, image, folders):
        done = image.run_inside(*image.health, mounts=folders, read_only=True)
        assert (done.returncode, done.stdout) == (0, "healthy\n"), done.stderr
        done = image.run_inside(
            *image.health, mounts=folders | {"/opt/holoscan/models": folders["/var/holoscan/input"]}
        )
        assert done.returncode == 1 and "holds 0 bundles" in done.stderr

    def test_time_limit(self, image, folders, monkeypatch):
        monkeypatch.setitem(image.environment, "HOLOSCAN_TIMEOUT", "1")
        assert image.run_inside(*image.entry, mounts=folders).returncode == 124
        assert not list(folders["/var/holoscan/output"].glob("[!.]*"))

    def test_manifests_are_shown(self, image):
        shown = image.run_inside(*image.entry, "show").stdout
        assert '"input": {"path": "input/", "formats": ["file"]}' in shown and "modelRoot" in shown
