"""`python -m label`: a MONAI Label server with the bundle, for 3D Slicer and OHIF.

With the demo's model and cases, a model and images of one's own, or a DICOMweb server::

    python -m label
    python -m label --ckpt_path models/model.pt --studies /data/cases --normals /data/normals
    python -m label --ckpt_path models/model.pt --studies http://127.0.0.1:8042/dicom-web --modality MR
"""

from __future__ import annotations

import json
import os
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

from scripts.errors import InputError
from scripts.ship import ship
from scripts.whole_file import file_sha256, write_json

from .app_folder import link_normals, link_studies, make_app


def serve(
    ckpt_path: str = "demo_output/model.pt",
    studies: str = "demo_output/data/unseen",
    normals: str | None = None,
    bundles: str | tuple[str, ...] = (),
    modality: str = "MR",
    port: int = 8000,
    output_dir: str = "label_output",
    **settings: Any,
) -> None:
    """Serve on 127.0.0.1 until Ctrl-C.

    Args:
        ckpt_path: the fitted model, copied with the bundle to ``anomaly`` in ``output_dir`` at the first start. That
            copy is what a training in MONAI Label renews, so later starts leave it alone.
        studies: folder of images, or the address of a DICOMweb server.
        normals: folder of normal images, added to the studies with empty labels so that one can train on them.
        bundles: folders of bundles to serve instead, with commas between them, such as `python -m scripts.ship` makes.
        modality: of the series that a DICOMweb server is asked for.
        port: of the server.
        output_dir: app, links to studies, labels and what is fetched of a DICOMweb server.
        settings: config ids and their values for the copy of the bundle, such as ``--target_fpr 0.002``.

    Raises:
        InputError: a model, bundle or folder that cannot be used.
    """
    folder = Path(output_dir).resolve()
    given = bundles.split(",") if isinstance(bundles, str) else bundles
    paths = [Path(bundle).resolve() for bundle in given] or [folder / "anomaly"]
    if given and settings:
        raise InputError(
            f"Bundles keep their own settings; give {', '.join(settings)} to scripts.ship, which makes them."
        )
    if not given:
        ship_once(ckpt_path, paths[0], settings)
    make_app(folder / "app", paths)
    if not studies.startswith(("http://", "https://")):
        source = Path(studies).resolve()
        linked = folder / f"studies-{sha256(str(source).encode()).hexdigest()[:8]}"  # labels are of these images alone
        names = link_studies(linked, source)
        if normals:
            link_normals(linked, Path(normals), names)
        studies = str(linked)
    elif normals:
        raise InputError("normals are added to a folder of studies; a DICOMweb server holds no empty labels.")
    check_port(port)
    run_server(folder, [path.name for path in paths], studies, modality, port)


def ship_once(ckpt_path: str, target: Path, settings: dict[str, Any]) -> None:
    """Copy the bundle, unless an earlier start did so from the same model with the same settings.

    Raises:
        InputError: the copy is of another model or has other settings.
    """
    model = file_sha256(Path(ckpt_path)) if Path(ckpt_path).is_file() else None
    origin = {"model": model, "settings": settings}
    record = target.with_name(f"{target.name}_origin.json")
    if not (target.exists() and record.is_file()):
        ship(ckpt_path, target, **{"show_progress": False, **settings})
        write_json(origin, record)
    elif json.loads(record.read_text()) != json.loads(json.dumps(origin)):
        raise InputError(
            f"{target} was made from another model or with other settings, and may have been trained since; delete it "
            "to begin with these, or give another --output_dir."
        )


def check_port(port: int) -> None:
    """Make sure that no other server answers there.

    Raises:
        InputError: one does.
    """
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", port)):
            raise InputError(f"Port {port} is taken by another program; give --port.")


def run_server(folder: Path, models: list[str], studies: str, modality: str, port: int) -> None:
    """Start MONAI Label, say what to type once it answers, and wait for its end."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder / "app")]
    command += ["--studies", studies, "--host", "127.0.0.1", "--port", str(port), "--uvicorn_app", "server:app"]
    for name, value in (("models", ",".join(models)), ("zoo_source", "local"), ("sam2", "false")):
        command += ["--conf", name, value]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # of itkimage2segimage
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality}),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = subprocess.Popen(command, cwd=folder / "app", env=environment)  # where server.py is
    try:
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None and not answers(address):
            time.sleep(0.5)
        if server.poll() is None:
            print(instructions(address, models, studies), flush=True)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
    sys.exit(server.returncode if server.returncode > 0 else 0)


def answers(address: str) -> bool:
    """Whether a server is ready."""
    try:
        return requests.get(f"{address}/info/", timeout=60).ok
    except requests.RequestException:
        return False


def instructions(address: str, models: list[str], studies: str) -> str:
    """What to type where."""
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
