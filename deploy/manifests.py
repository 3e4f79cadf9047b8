"""The package manifests, made by the SDK's packager, which here builds no image."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from holoscan_cli.__main__ import main as run_packager
from holoscan_cli.common.enum_types import PlatformConfiguration
from holoscan_cli.packager import packager

HEALTH_CHECK = {
    "type": "command",
    "command": ["python3", "/opt/holoscan/app/health.py"],
    "initialDelaySeconds": 30,
    "periodSeconds": 60,
    "timeoutSeconds": 10,
    "failureThreshold": 2,
}


def write_manifests(folder: Path, app: Path, settings: Path, models: Path, base_image: str, timeout: int) -> None:
    """Write ``map/app.json``, ``map/pkg.json`` and the SDK's script ``tools``.

    Args:
        folder: folder for them.
        app: folder of the app.
        settings: ``app.yaml`` with the app's version.
        models: folder with the bundle's folder in it.
        base_image: name of the base image.
        timeout: limit for a run, seconds; 0 for none.

    Raises:
        SystemExit: the packager fails.
    """

    def keep(args: Any, made: str) -> list:
        shutil.copytree(Path(made, "map"), folder / "map")
        shutil.copyfile(Path(packager.__file__).parent / "templates" / "tools.sh", folder / "tools")
        return []

    packager._build_image = keep
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "images.json")
        source.write_text(json.dumps(images(base_image)))  # the packager would ask a server for them
        command = ["monai-deploy", "package", str(app), "--config", str(settings), "--models", str(models)]
        command += ["--tag", "unused", "--platform", "x86_64", "--sdk", "monai-deploy", "--timeout", str(timeout)]
        run_packager([*command, "--source", str(source)])
    manifest = folder / "map" / "app.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "liveness": HEALTH_CHECK}))


def images(base_image: str) -> dict[str, Any]:
    """Return the SDK's release information as far as the packager needs it."""
    release = version("holoscan-cli")
    kinds = [kind.value for kind in PlatformConfiguration]
    holoscan = {
        "wheel-version": release,
        "debian-version": release,
        "base-images": dict.fromkeys(kinds, base_image),
        "build-images": {kind: {} for kind in kinds},
    }
    return {release: {"holoscan": holoscan, "health-probes": {}}}
