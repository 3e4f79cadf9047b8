"""Command ``python deploy/package.py``, which makes the MONAI Application Package, a docker image.

Examples::

    python deploy/package.py wheelhouse --output wheelhouse
    python deploy/package.py context --models MODELS --wheelhouse wheelhouse --output map_context
    python deploy/package.py build --context map_context --tag anomaly

The first needs a network and the last a docker daemon with the base image, which may be on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import wheelhouse
from manifests import write_manifests
from sbom import bill_of_materials

DEPLOY = Path(__file__).resolve().parent
APP = DEPLOY / "app"
sys.path.append(str(APP))
from models_folder import find_bundle  # noqa: E402

TIMEOUT = 3600  # seconds; as in the Dockerfile


def main() -> None:
    """Run a subcommand."""
    parser = argparse.ArgumentParser(
        prog="python deploy/package.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    download = commands.add_parser("wheelhouse", help="download the wheels of the image's packages")
    download.add_argument("--output", type=Path, default=Path("wheelhouse"), help="folder for the wheels")
    context = commands.add_parser("context", help="write the folder of which the image is built")
    context.add_argument("--models", type=Path, required=True, help="folder with the exported bundle's folder in it")
    context.add_argument("--wheelhouse", type=Path, default=Path("wheelhouse"), help="folder of the wheels")
    context.add_argument("--output", type=Path, default=Path("map_context"), help="folder; an older one is replaced")
    context.add_argument("--timeout", type=int, default=TIMEOUT, help="limit for a run, seconds; 0 for none")
    for command in (download, context):
        command.add_argument("--platform", choices=wheelhouse.PLATFORMS, default="gpu", help="default: gpu")
    build = commands.add_parser("build", help="build the image by docker")
    build.add_argument("--context", type=Path, default=Path("map_context"), help="folder that `context` wrote")
    build.add_argument("--tag", help="default: anomaly:VERSION")
    options = parser.parse_args()
    if options.command == "wheelhouse":
        wheelhouse.download(options.output, options.platform)
    elif options.command == "context":
        write_context(options.output, options.models, options.wheelhouse, options.platform, options.timeout)
    else:
        build_image(options.context, options.tag)


def write_context(folder: Path, models: Path, wheels_folder: Path, platform: str, timeout: int) -> None:
    """Write the build context: Dockerfile, wheelhouse, app, models, manifests and bill of materials.

    Args:
        folder: folder for the context; an older context is replaced.
        models: folder with the exported bundle's folder in it.
        wheels_folder: folder of the wheels.
        platform: ``gpu`` or ``cpu``.
        timeout: limit for a run, seconds; 0 for none.

    Raises:
        SystemExit: the folder holds something else, or bundle or wheels are missing.
    """
    if folder.exists() and any(folder.iterdir()) and not is_context(folder):
        raise SystemExit(f"{folder} holds something other than an earlier context; give a new folder as --output.")
    try:
        bundle = find_bundle(models)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if bundle == models:
        raise SystemExit(f"{models} is the bundle itself; give the folder that contains it as --models.")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    wheels = wheelhouse.read(wheels_folder, platform)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheelhouse").mkdir(parents=True)
    for path in (wheels_folder / wheelhouse.LOCK, *(wheel.path for wheel in wheels)):
        link_or_copy(path, folder / "wheelhouse" / path.name)
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(APP, folder / "app", ignore=without_caches)
    shutil.copytree(bundle, folder / "models" / bundle.name, ignore=without_caches)
    settings = (APP / "app.yaml").read_text()
    (folder / "app.yaml").write_text(
        settings.replace("application:\n", f"application:\n  version: {metadata['version']}\n", 1)
    )
    shutil.copyfile(DEPLOY / "entry.sh", folder / "entry.sh")
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    base_image = argument(dockerfile, "BASE_IMAGE")
    write_manifests(folder, APP, folder / "app.yaml", folder / "models", base_image, timeout)
    model = folder / "models" / bundle.name / "models" / "model.pt"
    (folder / "sbom.cdx.json").write_text(bill_of_materials(metadata, base_image, model, wheels))
    for name, value in {"VERSION": metadata["version"], "TIMEOUT": timeout}.items():
        dockerfile = re.sub(rf"^ARG {name}\b.*$", f"ARG {name}={value}", dockerfile, flags=re.MULTILINE)
    (folder / "Dockerfile").write_text(dockerfile)
    make_readable(folder)
    print(f"{folder} holds what the image is made of; build it with `python deploy/package.py build`.")


def build_image(folder: Path, tag: str | None) -> None:
    """Build the image.

    Args:
        folder: folder that `write_context` filled.
        tag: name and tag of the image; None for ``anomaly:`` and the version.

    Raises:
        SystemExit: there is no context, docker's daemon does not answer, or the build fails.
    """
    if not is_context(folder):
        raise SystemExit(f"{folder} is no build context; write one with `package.py context`.")
    tag = tag or f"anomaly:{argument((folder / 'Dockerfile').read_text(), 'VERSION')}"
    command = ["docker", "build", "--network", "none", "--tag", tag, str(folder)]
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        raise SystemExit(
            f"docker's daemon does not answer: NO IMAGE WAS BUILT. Copy {folder} to a machine with docker and run "
            f"`{' '.join(command)}` there."
        )
    raise SystemExit(subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode)


def argument(dockerfile: str, name: str) -> str:
    """Return the default of an ARG of the Dockerfile."""
    return re.findall(rf"^ARG {name}=(.*)$", dockerfile, re.MULTILINE)[0]


def is_context(folder: Path) -> bool:
    """Return whether `write_context` filled the folder."""
    return (folder / "map" / "pkg.json").is_file() and (folder / "Dockerfile").is_file()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy if the file systems differ."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def make_readable(folder: Path) -> None:
    """Let the image's user read all files; the wheels, which may be links, keep their modes."""
    for path in (folder, *folder.rglob("*")):
        if path.suffix != ".whl":
            path.chmod(0o755 if path.is_dir() or path.name in ("entry.sh", "tools") else 0o644)


if __name__ == "__main__":
    main()
