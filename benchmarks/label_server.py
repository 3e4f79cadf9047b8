"""Command ``python -m benchmarks.label_server``: latency of the MONAI Label server beside that of the encoder alone.

It serves the demo's model and its first unseen case, and prints a table in Markdown. The masks of the server must equal
those of ``run inference``, which the demo left.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from tests.integration.label_server import LabelServer, label_server

DEMO = Path("demo_output")
N_REPEATS = 5
N_QUEUED = 4


def encoder_seconds(image: Path) -> float:
    """Measure the time of the encoder alone on the slices of a case, in the runtime of the command line."""
    parser = ConfigParser()
    parser.read_meta("configs/metadata.json")
    parser.read_config("configs/inference.json")
    parser.update({"ckpt_path": str(DEMO / "model.pt"), "show_progress": False})
    network, inferer = (parser.get_parsed_content(name) for name in ("network", "inferer"))
    data = parser.get_parsed_content("preprocessing")({"image": str(image)})
    (slices,) = inferer.slices(data["image"].unsqueeze(0))
    seconds: list[float] = []
    encode = network.encoder.forward

    def timed(images: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        embeddings = encode(images)
        seconds.append(time.perf_counter() - start)
        return embeddings

    network.encoder.forward = timed
    totals = []
    with torch.inference_mode():
        for _ in range(N_REPEATS + 1):  # the runtime is chosen at the first slices
            seconds.clear()
            for batch in slices.split(inferer.slice_batch_size):
                network(batch)
            totals.append(sum(seconds))
    return statistics.median(totals[1:])


def median_seconds(function) -> float:
    """Return the median time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def infer(server: LabelServer, case: str, output: str = "image") -> bytes:
    """Return the content of an answer."""
    answer = server.infer("anomaly", case, output)
    answer.raise_for_status()
    return answer.content


def main() -> None:
    """Measure, and print the table."""
    image = min((DEMO / "data" / "unseen").glob("lesion-*.nii.gz"))
    case = image.name.removesuffix(".nii.gz")
    encoder = encoder_seconds(image)
    rows = [("encoder alone", encoder)]
    with tempfile.TemporaryDirectory() as folder, label_server(Path(folder, "served")) as server:
        start = time.perf_counter()
        content = infer(server, case)
        rows.append(("first request, just after the start", time.perf_counter() - start))
        rows.append(("later request", median_seconds(lambda: infer(server, case))))
        with ThreadPoolExecutor(N_QUEUED) as pool:
            start = time.perf_counter()
            answers = [pool.submit(infer, server, case) for _ in range(N_QUEUED)]
            waited = []
            while not all(answer.done() for answer in answers):
                asked = time.perf_counter()
                server.get("info/").raise_for_status()
                waited.append(time.perf_counter() - asked)
                time.sleep(0.25)
            rows.append((f"last of {N_QUEUED} at once", time.perf_counter() - start))
        rows.append(("longest `/info/` meanwhile", max(waited)))
        path = Path(folder, "mask.nii.gz")
        path.write_bytes(content)
        own = DEMO / "results" / case / f"{case}_mask.nii.gz"
        is_same = np.array_equal(*(LoadImage(image_only=True)(each) for each in (path, own)))
    print("| | seconds | times the encoder |\n|---|---|---|")
    for name, seconds in rows:
        print(f"| {name} | {seconds:.2f} | {seconds / encoder:.2f} |")
    print(f"\nThe mask equals that of `run inference`: {is_same}.")
    sys.exit(not is_same)


if __name__ == "__main__":
    main()
