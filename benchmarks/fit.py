"""What a fit costs: `python -m benchmarks.fit --embeddings FOLDER`, a folder that a fit left as ``embedding_store``.

Every ratio is measured within one run, what it compares in turns, since other work on the machine changes the speed.
One file of the store in eight is held out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nilearn.datasets import load_mni152_template
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch.utils.data import DataLoader

from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.weights import load_encoder_weights
from scripts.training.embeddings import CachedEmbeddings
from scripts.training.handlers import INIT_PARAMS, initial_means
from scripts.training.sampler import DistributedBatchSampler

ROOT = Path(__file__).resolve().parent.parent
STEP_SIZE, BATCH_SLICES, REG_COVAR = 0.2, 12, {"diag": 1e-6, "low_rank": 1e-6, "full": 1e-3}
STEP_PATCHES, RANK = 12288, 4


def main() -> None:
    """Measure and print, or in a child process measure one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("--embeddings", type=Path, default=ROOT / "demo_output" / "fit" / "embeddings")
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--memory", choices=["step", "epoch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(options.embeddings.glob("*.npy"))
    if len(files) < 8:
        sys.exit(
            f"{options.embeddings} has {len(files)} files of embeddings; expected 8 at least, as `make demo` leaves."
        )
    if options.memory:
        print({"step": peak_of_step, "epoch": peak_of_epoch}[options.memory](slices_in(files)))
        return
    held_out, train = slices_in(files[::8]), slices_in([file for n, file in enumerate(files) if n % 8])
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {len(train)} slices, {len(held_out)} held out"
    )
    for name in options.measures:
        print(f"\n{(MEASURES[name].__doc__ or '').splitlines()[0]}", flush=True)
        for what, value in MEASURES[name](train, held_out):
            print(f"  {what:66s}{value}", flush=True)


def slices_in(files: Sequence[Path]) -> CachedEmbeddings:
    """The slices in files of a store."""
    return CachedEmbeddings(files, np.load(files[0], mmap_mode="r").shape[2])


def epoch_of(data: CachedEmbeddings, number: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Batches ``[N,D]`` of an epoch, read as a fit reads them."""
    batches = DistributedBatchSampler(data, BATCH_SLICES, seed)
    batches.set_epoch(number)
    for batch in DataLoader(data, batch_sampler=batches, collate_fn=data.collate):
        yield batch.float()


def diagonal_step(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """A diagonal step with all of K=500 components in use, 12,288 patches."""
    x = train.sample(STEP_PATCHES, seed=0)
    fresh = started(train, "diag", 500)
    k = torch.arange(500)
    fresh.stick_fractions.copy_(1 / (500 - k))  # equal weights: no component can be left out
    flops = 4 * 2 * len(x) * 500 * x.shape[1]
    rates, seconds, matrix = [], [], torch.randn(4096, 4096)
    for _ in range(9):
        rates.append(2 * 4096**3 / seconds_of(partial(torch.mm, matrix, matrix)))
        mixture = copy.deepcopy(fresh)
        seconds.append(seconds_of(partial(mixture.partial_fit, x, STEP_SIZE)))
    share = flops / statistics.median(seconds) / statistics.median(rates)
    yield "components in use", str(fresh.n_active)
    yield "sgemm of this machine", f"{statistics.median(rates) / 1e9:.0f} GFLOP/s"
    yield "step", f"{1000 * statistics.median(seconds):.0f} ms"
    yield "four matrix products of it, share of sgemm", f"{share:.0%}"
    yield "peak memory above the batch", f"{in_child('step', train):.0f} MB"


def against_scikit_learn(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """A pass over the same patches with scikit-learn's BayesianGaussianMixture, and what both give after ten."""
    validation = held_out.sample(20000, seed=0)
    for kind, k, n in (("diag", 500, 61440), ("full", 100, 20000)):
        x = train.sample(n, seed=1)
        mixture = started(train, kind, k, x)
        ours = [seconds_of(partial(one_pass, mixture, x)) for _ in range(10)]
        arguments: dict[str, Any] = {
            "n_components": k,
            "covariance_type": kind,
            "reg_covar": REG_COVAR[kind],
            "weight_concentration_prior_type": "dirichlet_process",
            "weight_concentration_prior": 2.0,
            "init_params": "random_from_data",
            "random_state": 0,
            "tol": 0,
        }
        models = {passes: BayesianGaussianMixture(max_iter=passes, **arguments) for passes in (1, 10)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs = {passes: seconds_of(partial(model.fit, x.numpy())) for passes, model in models.items()}
        theirs_pass = (theirs[10] - theirs[1]) / 9
        yield (
            f"{kind}, K={k}, {n} patches: pass, here (median, first)",
            f"{statistics.median(ours):.2f} s, {ours[0]:.2f} s",
        )
        yield (
            f"{kind}: pass, scikit-learn",
            f"{theirs_pass:.2f} s, {theirs_pass / statistics.median(ours):.1f} times ours",
        )
        here, there = float(mixture.score_samples(validation).mean()), models[10].score(validation.numpy())
        yield f"{kind}: held-out log-likelihood after 10 passes, here and there", f"{here:.1f} and {there:.1f} nats"


def low_rank_step(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """Steps of rank 4 and diagonal ones over the same epochs, K=500."""
    mixtures = {kind: started(train, kind, 500) for kind in ("diag", "low_rank")}
    for epoch in (1, 2, 3):
        seconds: dict[str, list[float]] = {kind: [] for kind in mixtures}
        for batch in epoch_of(train, epoch):
            for kind, mixture in mixtures.items():
                seconds[kind].append(seconds_of(partial(mixture.partial_fit, batch, STEP_SIZE)))
        diag, low_rank = (sum(seconds[kind]) for kind in mixtures)
        yield f"epoch {epoch}: diag, low_rank", f"{diag:.2f} s, {low_rank:.2f} s: {low_rank / diag:.2f} times"
    x = held_out.sample(40000, seed=0)
    values = ", ".join(f"{float(mixture.score_samples(x).mean()):.0f}" for mixture in mixtures.values())
    yield "held-out log-likelihood of diag, low_rank", f"{values} nats"


@torch.no_grad()
def whole_fit(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """40 epochs on stored embeddings, with validation after each, and embedding the same slices once."""
    encoder = load_encoder_weights(DINOv2PatchEncoder(layers=[8]))
    brain = torch.from_numpy(load_mni152_template(resolution=2).get_fdata(dtype=np.float32))
    slices = (brain / brain.max()).clamp(0, 1).movedim(2, 0)[40:44].unsqueeze(1).repeat(1, 3, 1, 1)
    slices = torch.nn.functional.interpolate(slices, (448, 546))  # as many patches as a slice of 182 x 218
    per_slice = statistics.median(seconds_of(partial(encoder, slices)) for _ in range(5)) / len(slices)
    embedding = per_slice * (len(train) + len(held_out))
    mixture = started(train, "diag", 500)
    validation = DataLoader(held_out, batch_size=BATCH_SLICES, collate_fn=held_out.collate)
    begin = time.perf_counter()
    for epoch in range(1, 41):
        for batch in epoch_of(train, epoch):
            mixture.partial_fit(batch, STEP_SIZE)
        for batch in validation:
            mixture.score_samples(batch.float())
    fit = time.perf_counter() - begin
    yield "embedding, first nine blocks of ViT-S/14 at 448 x 546", f"{embedding:.0f} s ({per_slice:.2f} s a slice)"
    yield "40 epochs, diag, K=500", f"{fit:.0f} s: {fit / embedding:.2f} of embedding"


def starts(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """What the starting means decide: fits of 15 epochs from both starts over 5 seeds."""
    for kind in ("diag", "low_rank"):
        likelihoods: dict[str, list[float]] = {init_params: [] for init_params in INIT_PARAMS}
        active: dict[str, list[int]] = {init_params: [] for init_params in INIT_PARAMS}
        seconds: dict[str, list[float]] = {init_params: [] for init_params in INIT_PARAMS}
        for seed, init_params in itertools.product(range(5), INIT_PARAMS):
            x = train.sample(20000, seed)
            mixture = DirichletProcessMixture(500, x.shape[1], kind, reg_covar=REG_COVAR[kind], rank=RANK)
            begin = time.perf_counter()
            means = initial_means(x, 500, init_params, seed)
            seconds[init_params].append(time.perf_counter() - begin)
            mixture.initialize(x, means, torch.Generator().manual_seed(seed))
            for epoch in range(1, 16):
                for batch in epoch_of(train, epoch, seed):
                    mixture.partial_fit(batch, STEP_SIZE)
            batches = DataLoader(held_out, batch_size=BATCH_SLICES, collate_fn=held_out.collate)
            likelihoods[init_params].append(
                float(torch.cat([mixture.score_samples(batch.float()) for batch in batches]).mean())
            )
            active[init_params].append(mixture.n_active)
        for init_params, values in likelihoods.items():
            yield (
                f"{kind}, {init_params}",
                f"held-out {statistics.mean(values):.1f} +- {statistics.stdev(values):.1f} nats "
                f"({', '.join(f'{value:.1f}' for value in values)}), "
                f"{statistics.mean(active[init_params]):.0f} active, {statistics.mean(seconds[init_params]):.1f} s",
            )


def size_of_the_set(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """Cost of a step and memory with eight times the slices."""
    steps = {}
    with tempfile.TemporaryDirectory() as name:
        for copy_number, file in itertools.product(range(8), train.files):
            Path(name, f"{copy_number}-{file.name}").symlink_to(file.resolve())
        eightfold = slices_in(sorted(Path(name).iterdir()))
        for title, data in (("1x", train), ("8x", eightfold)):
            mixture = started(data, "diag", 500)
            for batch in itertools.islice(epoch_of(data, 1), 17):
                mixture.partial_fit(batch, STEP_SIZE)
            steps[title] = [
                seconds_of(partial(mixture.partial_fit, batch, STEP_SIZE))
                for batch in itertools.islice(epoch_of(data, 2), 17)
            ]
            memory = in_child("epoch", data)
            yield (
                f"{title}, {len(data)} slices: step, memory above the start",
                (f"{1000 * statistics.median(steps[title]):.0f} ms, {memory:.0f} MB"),
            )


def on_the_gpu(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Iterator[tuple[str, str]]:
    """A diagonal step on the GPU."""
    if not torch.cuda.is_available():
        yield "not measured", "no GPU here"
        return
    x = train.sample(STEP_PATCHES, seed=0).cuda()
    matrix, results = torch.randn(8192, 8192, device="cuda"), []
    for precision in ("highest", "high"):  # fp32 and TF32
        torch.set_float32_matmul_precision(precision)
        rate = 2 * 8192**3 / min(seconds_of(partial(torch.mm, matrix, matrix)) for _ in range(9))
        mixture = started(train, "diag", 500).cuda()
        seconds = [seconds_of(partial(mixture.partial_fit, x, STEP_SIZE)) for _ in range(20)]
        results.append(float(mixture.score_samples(x).mean()))
        share = 4 * 2 * len(x) * 500 * x.shape[1] / statistics.median(seconds) / rate
        yield f"{precision}: step, share of the matmul rate", f"{1000 * statistics.median(seconds):.2f} ms, {share:.0%}"
    torch.set_float32_matmul_precision("highest")
    yield "difference of the log-likelihoods, relative", f"{abs(results[1] / results[0] - 1):.1e}"


def started(train: CachedEmbeddings, kind: str, k: int, x: torch.Tensor | None = None) -> DirichletProcessMixture:
    """A mixture that starts from patches of the set."""
    x = train.sample(20000, seed=2) if x is None else x
    mixture = DirichletProcessMixture(k, x.shape[1], kind, reg_covar=REG_COVAR[kind], rank=RANK)
    mixture.initialize(x, generator=torch.Generator().manual_seed(0))
    return mixture


def one_pass(mixture: DirichletProcessMixture, x: torch.Tensor) -> None:
    """Steps over all of x, in batches of a usual size."""
    for batch in x.split(STEP_PATCHES):
        mixture.partial_fit(batch, STEP_SIZE)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long something takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def in_child(memory: str, data: CachedEmbeddings) -> float:
    """Peak memory in MB that a process of its own measures."""
    with tempfile.TemporaryDirectory() as name:
        for number, file in enumerate(data.files):
            Path(name, f"{number:06d}.npy").symlink_to(file.resolve())
        command = [sys.executable, "-m", "benchmarks.fit", "--embeddings", name, "--memory", memory]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_of_step(data: CachedEmbeddings) -> float:
    """MB by which a diagonal step with all components raises the peak."""
    x = data.sample(STEP_PATCHES, seed=0)
    mixture = started(data, "diag", 500, x)
    mixture.stick_fractions.copy_(1 / (500 - torch.arange(500)))
    return peak_above_now(partial(mixture.partial_fit, x, STEP_SIZE))


def peak_of_epoch(data: CachedEmbeddings) -> float:
    """MB by which an epoch, the start included, raises the peak."""

    def epoch() -> None:
        mixture = started(data, "diag", 500)
        for batch in epoch_of(data, 1):
            mixture.partial_fit(batch, STEP_SIZE)

    return peak_above_now(epoch)


def peak_above_now(work: Callable[[], Any]) -> float:
    """MB by which the resident memory of this process rises at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident_peak()
    work()
    return resident_peak() - before


def resident_peak() -> float:
    """Peak resident memory in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


MEASURES = {
    "diagonal_step": diagonal_step,
    "against_scikit_learn": against_scikit_learn,
    "low_rank_step": low_rank_step,
    "whole_fit": whole_fit,
    "size_of_the_set": size_of_the_set,
    "starts": starts,
    "on_the_gpu": on_the_gpu,
}

if __name__ == "__main__":
    main()
