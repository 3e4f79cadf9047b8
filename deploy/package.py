"""Command ``python deploy/package.py --models FOLDER``, which builds the MONAI Application Package, a docker image.

Without a docker daemon, the packager does every step before the image; the build context (Dockerfile, app.json,
pkg.json, requirements, app and models) is kept in a folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from holoscan_cli.__main__ import main as packager
from holoscan_cli.common.enum_types import PlatformConfiguration
from holoscan_cli.packager.container_builder import BuilderBase
from holoscan_cli.packager.parameters import PlatformBuildResults, PlatformParameters

APP = Path(__file__).parent / "app"
METADATA = APP.parents[1] / "configs" / "metadata.json"
# The packager asks the network for the base image of the SDK, which it does not need without building.
UNKNOWN_IMAGE = "the-base-image-of-the-sdk"


def main() -> None:
    """Package the app."""
    release = json.loads(METADATA.read_text())["version"]
    parser = argparse.ArgumentParser(prog="python deploy/package.py", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with the exported bundle in it")
    parser.add_argument(
        "--context", type=Path, default=Path("map_context"), help="folder for the build context without docker"
    )
    parser.add_argument("--tag", default=f"anomaly:{release}")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        config, source = Path(folder, "app.yaml"), Path(folder, "images.json")
        settings = (APP / "app.yaml").read_text()
        config.write_text(settings.replace("application:\n", f"application:\n  version: {release}\n", 1))
        command = ["monai-deploy", "package", str(APP), "--config", str(config), "--models", str(options.models)]
        command += ["--tag", options.tag, "--platform", "x86_64", "--sdk", "monai-deploy"]
        if docker_answers():
            packager(command)
            return
        keep_context(options.context)
        source.write_text(json.dumps(unknown_images()))
        packager([*command, "--source", str(source)])
    print(f"docker's daemon does not answer: NO IMAGE WAS BUILT. What it would be made of is in {options.context}.")


def docker_answers() -> bool:
    """Return whether docker can build images."""
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True).returncode


def keep_context(folder: Path) -> None:
    """Make the packager copy its build context instead of building an image.

    Args:
        folder: folder for the copy; an older copy is replaced.

    Raises:
        SystemExit: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "map" / "pkg.json").is_file():
        raise SystemExit(f"{folder} holds something other than an earlier context; give a new folder as --context.")

    def copy(self: BuilderBase, dockerfile: str, platform: PlatformParameters) -> PlatformBuildResults:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._temp_dir, folder, ignore=shutil.ignore_patterns("__pycache__"))
        result = PlatformBuildResults(platform)
        result.succeeded = True
        result.docker_tag = "none, only its context was kept"
        return result

    BuilderBase._build_internal = copy


def unknown_images() -> dict:
    """Return the part of the SDK's release information that the packager needs without building."""
    release = version("holoscan-cli")
    kinds = [kind.value for kind in PlatformConfiguration]
    holoscan = {
        "wheel-version": release,
        "debian-version": release,
        "base-images": dict.fromkeys(kinds, UNKNOWN_IMAGE),
        "build-images": {kind: {} for kind in kinds},
    }
    return {release: {"holoscan": holoscan, "health-probes": {}}}


if __name__ == "__main__":
    main()
