"""Command ``python -m label``: a MONAI Label server with the bundle, for 3D Slicer and OHIF.

It serves the sample model and the two heads of the demo, another model and folder of images, or a DICOMweb server::

    python -m label
    python -m label --ckpt_path models/model.pt --studies /data/cases --normals /data/normals
    python -m label --ckpt_path models/model.pt --studies http://127.0.0.1:8042/dicom-web --modality MR
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import fire
import requests
from fire.decorators import SetParseFns

from scripts.errors import InputError
from scripts.export_bundle import export_bundle
from scripts.files import PARTIAL, RecordedDirectory

from .app_folder import (
    copy_bundles,
    is_made_from,
    link_normals,
    link_studies,
    make_app,
    open_output,
)
from .fit_record import model_digest, settle_fit
from .origins import LOOPBACK
from .parent_process import PARENT

TEXT_OPTIONS = ("ckpt_path", "studies", "normals", "bundles", "modality", "host", "output_dir")  # 2024, a,b are names
AUTHENTICATION = "MONAI_LABEL_AUTH_ENABLE"
ORIGINS = "MONAI_LABEL_CORS_ORIGINS"


@SetParseFns(**dict.fromkeys(TEXT_OPTIONS, str))
def serve(
    ckpt_path: str = "demo_output/heads/model.pt",
    studies: str = "demo_output/heads/cases",
    normals: str | None = None,
    bundles: str | tuple[str, ...] = (),
    modality: str = "MR",
    port: int = 8000,
    host: str = "127.0.0.1",
    output_dir: str = "label_output",
    **settings: Any,
) -> None:
    """Serve until Ctrl-C.

    Args:
        ckpt_path: the fitted model, exported with the bundle to ``anomaly`` in ``output_dir`` at the first start. Later
            starts keep this export, because training in MONAI Label updates it.
        studies: folder of images, or the address of a DICOMweb server.
        normals: folder of normal images, added to the studies with empty labels for training.
        bundles: folders of bundles to serve instead, separated by commas; copied at the first start. See
            `scripts.export_bundle`.
        modality: modality of the series on a DICOMweb server.
        port: port of the server.
        host: address to listen on; one that other machines reach needs authentication, see docs/label.md.
        output_dir: folder for the app, copies of bundles, links to studies, labels, uploads and files fetched from a
            DICOMweb server. New, empty, or from an earlier start.
        settings: values by config id for the export, e.g. ``--false_regions 0.1``.

    Raises:
        InputError: a model, bundle or folder cannot be used, or another server uses ``output_dir``.
    """
    names = bundles.split(",") if isinstance(bundles, str) else bundles
    sources = [Path(name).resolve() for name in names if name]
    is_remote = studies.startswith(("http://", "https://"))
    if sources and settings:
        raise InputError(
            f"Bundles keep their own settings; give {', '.join(settings)} to scripts.export_bundle, which makes them."
        )
    if normals and is_remote:
        raise InputError("normals are added to a folder of studies; a DICOMweb server holds no empty labels.")
    if not studies:
        raise InputError("studies must name a folder of images or a DICOMweb server; got an empty name.")
    check_address(host, port)
    with open_output(output_dir) as output:
        copies = copy_bundles(output, sources) or [export_once(ckpt_path, output, settings)]
        make_app(output, copies)
        for sentence in filter(None, (settle_fit(path / "models" / "model.pt") for path in copies)):
            print(sentence, flush=True)
        if not is_remote:
            studies = str(link_all_studies(output, Path(studies).resolve(), normals))
        run_server(output, [path.name for path in copies], studies, modality, host, port)


def export_once(ckpt_path: str, output: RecordedDirectory, settings: dict[str, Any]) -> Path:
    """Export the bundle to ``anomaly``, unless an earlier start did so from the same model and settings.

    Returns:
        Folder of the export.

    Raises:
        InputError: the existing export has another model or other settings.
    """
    target = output.path / "anomaly"
    origin = {"model": model_digest(Path(ckpt_path)), "settings": json.loads(json.dumps(settings))}
    if not is_made_from(output, target, origin):
        export_bundle(ckpt_path, target, **{"show_progress": False, **settings})
    return target


def link_all_studies(output: RecordedDirectory, source: Path, normals: str | None) -> Path:
    """Link studies and normals into a folder that belongs to these studies, because it also holds their labels."""
    studies = output.path / f"studies-{sha256(str(source).encode()).hexdigest()[:8]}"
    names = link_studies(studies, source)
    if normals:
        link_normals(studies, Path(normals).resolve(), names)
    return studies


def check_address(host: str, port: int) -> None:
    """Check that a port is free, and that only an address of this machine is open without authentication.

    Raises:
        InputError: another program listens there, the number is not a port, or everybody could read the images.
    """
    if type(port) is not int or not 0 < port < 65536:
        raise InputError(f"port must be a whole number from 1 to 65535; got {port!r}.")
    if host not in LOOPBACK and os.environ.get(AUTHENTICATION, "").lower() not in ("1", "true"):
        raise InputError(
            f"host {host} can be reached from other machines, and anyone there could read the images; set "
            f"{AUTHENTICATION}=true with a token server (docs/label.md), or take 127.0.0.1 and an SSH tunnel."
        )
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", port)):
            raise InputError(f"Port {port} is taken by another program; give --port.")


def allowed_origins() -> list[str]:
    """Return the addresses of web pages that may send requests, from the environment.

    Raises:
        InputError: they are no list of addresses.
    """
    text = os.environ.get(ORIGINS) or "[]"
    try:
        origins = json.loads(text)
    except ValueError:
        origins = None
    if not isinstance(origins, list) or not all(str(each).startswith(("http://", "https://")) for each in origins):
        raise InputError(f"""{ORIGINS} must be a list such as '["http://viewer.hospital:3000"]'; got {text!r}.""")
    return [origin.rstrip("/") for origin in origins]


def run_server(output: RecordedDirectory, models: list[str], studies: str, modality: str, host: str, port: int) -> None:
    """Start MONAI Label, print instructions once it is ready, and wait for its end."""
    folder, origins = output.path, allowed_origins()
    temporary = (
        folder / f"{PARTIAL}server"
    )  # holds images of patients; if this process is killed, the next start clears it
    temporary.mkdir(mode=0o700)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder / "app")]
    command += ["--studies", studies, "--host", host, "--port", str(port), "--uvicorn_app", "server:app"]
    for name, value in (("models", ",".join(models)), ("zoo_source", "local"), ("sam2", "false")):
        command += ["--conf", name, value]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # of itkimage2segimage
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality}),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "TMPDIR": str(temporary),
        "DPMM_LABEL_HOST": host,
        "DPMM_LABEL_ORIGINS": json.dumps(origins),
        PARENT: str(os.getpid()),
    }
    environment.pop(ORIGINS, None)  # MONAI Label 0.8.5 does not start with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = subprocess.Popen(command, cwd=folder / "app", env=environment)  # where server.py is
    try:
        address = f"http://{host if host in LOOPBACK else '127.0.0.1'}:{port}"
        while server.poll() is None and not is_ready(address):
            time.sleep(0.5)
        if server.poll() is None:
            print(instructions(address, models, studies), flush=True)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(temporary, ignore_errors=True)
    sys.exit(server.returncode if server.returncode > 0 else 0)


def is_ready(address: str) -> bool:
    """Return whether a server answers, or wants a token first."""
    try:
        return requests.get(f"{address}/info/", timeout=60).status_code in (200, 401)
    except requests.RequestException:
        return False


def instructions(address: str, models: list[str], studies: str) -> str:
    """Return what to enter in 3D Slicer, OHIF or a shell."""
    is_dicomweb = studies.startswith("http")
    return f"""
MONAI Label answers at {address}   (Ctrl-C ends it; not for diagnosis)

3D Slicer   install the extension MONAILabel, open the module MONAI Label
            server address: {address}, then the button beside it
            Next Sample; Auto Segmentation: model {" or ".join(models)}; Run
OHIF        {f"{address}/ohif/" if is_dicomweb else "needs DICOMweb: give --studies http://127.0.0.1:8042/dicom-web"}
no viewer   curl -X POST '{address}/infer/{models[0]}?image=IMAGE&output=image' -o mask.nii.gz
            IMAGE: {"a SeriesInstanceUID" if is_dicomweb else f"a file of {studies}, without its suffix"}
"""


if __name__ == "__main__":
    fire.Fire(serve)
