"""The cost of a fit: `python -m benchmarks.fit --embeddings FOLDER`, with the ``embedding_store`` of a fit.

Each ratio comes from one run that measures both sides in turns, because other work on the machine changes the speed.
Every eighth file of the store is held out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
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
from scripts.training.embeddings import CachedEmbeddings, CachedView
from scripts.training.handlers import INIT_PARAMS, initial_means
from scripts.training.sampler import DistributedBatchSampler

from .cost import peak_mb, seconds_of

ROOT = Path(__file__).resolve().parent.parent
STEP_SIZE, BATCH_SLICES, REG_COVAR = 0.2, 12, {"diag": 1e-6, "low_rank": 1e-6, "full": 1e-3}
STEP_PATCHES, RANK = 12288, 4

Measurements = Iterator[tuple[str, str]]  # names and values


def main() -> None:
    """Print all measurements, or in a child process one peak of memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("--embeddings", type=Path, default=ROOT / "demo_output" / "fit" / "embeddings")
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--memory", choices=["step", "epoch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(options.embeddings.glob("*.npy"))
    if len(files) < 8:
        sys.exit(
            f"{options.embeddings} has {len(files)} files of embeddings; expected at least 8, as from `make demo`."
        )
    if options.memory:
        print({"step": peak_of_step, "epoch": peak_of_epoch}[options.memory](read_embeddings(files)))
        return
    held_out, train = read_embeddings(files[::8]), read_embeddings([file for n, file in enumerate(files) if n % 8])
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{threads}; {len(train)} slices, {len(held_out)} held out")
    for name in options.measures:
        print(f"\n{(MEASURES[name].__doc__ or '').splitlines()[0]}", flush=True)
        for quantity, value in MEASURES[name](train, held_out):
            print(f"  {quantity:66s}{value}", flush=True)


def read_embeddings(files: Sequence[Path]) -> CachedEmbeddings:
    """Open the slices in files of a store."""
    return CachedEmbeddings([[CachedView(file)] for file in files], np.load(files[0], mmap_mode="r").shape[2])


def epoch_batches(data: CachedEmbeddings, epoch: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Read the batches ``[N,D]`` of an epoch as a fit does."""
    sampler = DistributedBatchSampler(data, BATCH_SLICES, seed)
    sampler.set_epoch(epoch)
    for batch in DataLoader(data, batch_sampler=sampler, collate_fn=data.collate):
        yield batch.float()


def fit_epochs(
    mixture: DirichletProcessMixture, data: CachedEmbeddings, n_epochs: int, seed: int = 0
) -> DirichletProcessMixture:
    """Fit a mixture online for some epochs, and return it."""
    for epoch in range(1, n_epochs + 1):
        for batch in epoch_batches(data, epoch, seed):
            mixture.partial_fit(batch, STEP_SIZE)
    return mixture


def sequential_batches(data: CachedEmbeddings) -> Iterator[torch.Tensor]:
    """Read the batches ``[N,D]`` of all slices in their order."""
    for batch in DataLoader(data, batch_size=BATCH_SLICES, collate_fn=data.collate):
        yield batch.float()


def diagonal_step(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """A diagonal step with all of K=500 components active, 12,288 patches."""
    x = train.sample(STEP_PATCHES, seed=0)
    initial = with_equal_weights(initialized(train, "diag", 500))
    flops = 4 * 2 * len(x) * 500 * x.shape[1]
    rates, seconds, matrix = [], [], torch.randn(4096, 4096)
    for _ in range(9):
        rates.append(2 * 4096**3 / seconds_of(partial(torch.mm, matrix, matrix)))
        mixture = copy.deepcopy(initial)
        seconds.append(seconds_of(partial(mixture.partial_fit, x, STEP_SIZE)))
    share = flops / statistics.median(seconds) / statistics.median(rates)
    yield "active components", str(initial.n_active)
    yield "sgemm of this machine", f"{statistics.median(rates) / 1e9:.0f} GFLOP/s"
    yield "step", f"{1000 * statistics.median(seconds):.0f} ms"
    yield "its four matrix products, share of sgemm", f"{share:.0%}"
    yield "peak memory above the batch", f"{peak_in_child('step', train):.0f} MB"


def against_scikit_learn(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """Passes over the same patches, here and with scikit-learn's BayesianGaussianMixture."""
    validation = held_out.sample(20000, seed=0)
    for kind, k, n in (("diag", 500, 61440), ("full", 100, 20000)):
        x = train.sample(n, seed=1)
        mixture = initialized(train, kind, k, x)
        passes = [seconds_of(partial(one_pass, mixture, x)) for _ in range(10)]
        median = statistics.median(passes)
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
        models = {n_passes: BayesianGaussianMixture(max_iter=n_passes, **arguments) for n_passes in (1, 10)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            seconds = {n_passes: seconds_of(partial(model.fit, x.numpy())) for n_passes, model in models.items()}
        sklearn_pass = (seconds[10] - seconds[1]) / 9
        yield f"{kind}, K={k}, {n} patches: pass, here (median, first)", f"{median:.2f} s, {passes[0]:.2f} s"
        yield f"{kind}: pass, scikit-learn", f"{sklearn_pass:.2f} s, {sklearn_pass / median:.1f} times as long"
        likelihoods = float(mixture.score_samples(validation).mean()), models[10].score(validation.numpy())
        text = "{:.1f} and {:.1f} nats".format(*likelihoods)
        yield f"{kind}: held-out log-likelihood after 10 passes, here and scikit-learn", text


def low_rank_step(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """Steps of rank 4 and diagonal steps over the same epochs, K=500."""
    mixtures = {kind: initialized(train, kind, 500) for kind in ("diag", "low_rank")}
    for epoch in (1, 2, 3):
        seconds: dict[str, float] = dict.fromkeys(mixtures, 0.0)
        for batch in epoch_batches(train, epoch):
            for kind, mixture in mixtures.items():
                seconds[kind] += seconds_of(partial(mixture.partial_fit, batch, STEP_SIZE))
        diag, low_rank = seconds.values()
        yield f"epoch {epoch}: diag, low_rank", f"{diag:.2f} s, {low_rank:.2f} s: {low_rank / diag:.2f} times"
    x = held_out.sample(40000, seed=0)
    values = ", ".join(f"{float(mixture.score_samples(x).mean()):.0f}" for mixture in mixtures.values())
    yield "held-out log-likelihood of diag, low_rank", f"{values} nats"


@torch.no_grad()
def whole_fit(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """40 epochs on stored embeddings, each with validation, against embedding the same slices once."""
    encoder = load_encoder_weights(DINOv2PatchEncoder(layers=[8]))
    brain = torch.from_numpy(load_mni152_template(resolution=2).get_fdata(dtype=np.float32))
    slices = (brain / brain.max()).clamp(0, 1).movedim(2, 0)[40:44].unsqueeze(1).repeat(1, 3, 1, 1)
    slices = torch.nn.functional.interpolate(slices, (448, 546))  # as many patches as a slice of 182 x 218
    per_slice = statistics.median(seconds_of(partial(encoder, slices)) for _ in range(5)) / len(slices)
    embedding = per_slice * (len(train) + len(held_out))
    mixture = initialized(train, "diag", 500)
    begin = time.perf_counter()
    for epoch in range(1, 41):
        for batch in epoch_batches(train, epoch):
            mixture.partial_fit(batch, STEP_SIZE)
        for batch in sequential_batches(held_out):
            mixture.score_samples(batch)
    fit = time.perf_counter() - begin
    yield "embedding, first nine blocks of ViT-S/14 at 448 x 546", f"{embedding:.0f} s ({per_slice:.2f} s a slice)"
    yield "40 epochs, diag, K=500", f"{fit:.0f} s: {fit / embedding:.2f} of embedding"


def starts(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """The effect of the starting means: fits of 15 epochs from both starts, 5 seeds."""
    for kind in ("diag", "low_rank"):
        likelihoods: dict[str, list[float]] = defaultdict(list)
        active: dict[str, list[int]] = defaultdict(list)
        seconds: dict[str, list[float]] = defaultdict(list)
        for seed, init_params in itertools.product(range(5), INIT_PARAMS):
            x = train.sample(20000, seed)
            mixture = DirichletProcessMixture(500, x.shape[1], kind, reg_covar=REG_COVAR[kind], rank=RANK)
            begin = time.perf_counter()
            means = initial_means(x, 500, init_params, seed)
            seconds[init_params].append(time.perf_counter() - begin)
            mixture.initialize(x, means, torch.Generator().manual_seed(seed))
            fit_epochs(mixture, train, 15, seed)
            scores = torch.cat([mixture.score_samples(batch) for batch in sequential_batches(held_out)])
            likelihoods[init_params].append(float(scores.mean()))
            active[init_params].append(mixture.n_active)
        for init_params, values in likelihoods.items():
            spread = f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f} nats"
            each = ", ".join(f"{value:.1f}" for value in values)
            cost = f"{statistics.mean(active[init_params]):.0f} active, {statistics.mean(seconds[init_params]):.1f} s"
            yield f"{kind}, {init_params}", f"held-out {spread} ({each}), {cost}"


def size_of_the_set(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """Time of a step, and memory, with eight times the slices."""
    with tempfile.TemporaryDirectory() as name:
        for copy_number, file in itertools.product(range(8), train.files):
            Path(name, f"{copy_number}-{file.name}").symlink_to(file.resolve())
        eightfold = read_embeddings(sorted(Path(name).iterdir()))
        for title, data in (("1x", train), ("8x", eightfold)):
            mixture = initialized(data, "diag", 500)
            for batch in itertools.islice(epoch_batches(data, 1), 17):
                mixture.partial_fit(batch, STEP_SIZE)
            batches = itertools.islice(epoch_batches(data, 2), 17)
            seconds = [seconds_of(partial(mixture.partial_fit, batch, STEP_SIZE)) for batch in batches]
            text = f"{1000 * statistics.median(seconds):.0f} ms, {peak_in_child('epoch', data):.0f} MB"
            yield f"{title}, {len(data)} slices: step, memory above the start", text


def on_the_gpu(train: CachedEmbeddings, held_out: CachedEmbeddings) -> Measurements:
    """A diagonal step on the GPU."""
    if not torch.cuda.is_available():
        yield "not measured", "no GPU here"
        return
    x = train.sample(STEP_PATCHES, seed=0).cuda()
    matrix, results = torch.randn(8192, 8192, device="cuda"), []
    for precision in ("highest", "high"):  # fp32 and TF32
        torch.set_float32_matmul_precision(precision)
        rate = 2 * 8192**3 / min(seconds_of(partial(torch.mm, matrix, matrix)) for _ in range(9))
        mixture = initialized(train, "diag", 500).cuda()
        seconds = [seconds_of(partial(mixture.partial_fit, x, STEP_SIZE)) for _ in range(20)]
        results.append(float(mixture.score_samples(x).mean()))
        share = 4 * 2 * len(x) * 500 * x.shape[1] / statistics.median(seconds) / rate
        yield f"{precision}: step, share of the matmul rate", f"{1000 * statistics.median(seconds):.2f} ms, {share:.0%}"
    torch.set_float32_matmul_precision("highest")
    yield "difference of the log-likelihoods, relative", f"{abs(results[1] / results[0] - 1):.1e}"


def initialized(train: CachedEmbeddings, kind: str, k: int, x: torch.Tensor | None = None) -> DirichletProcessMixture:
    """Initialise a mixture from patches of the set."""
    x = train.sample(20000, seed=2) if x is None else x
    mixture = DirichletProcessMixture(k, x.shape[1], kind, reg_covar=REG_COVAR[kind], rank=RANK)
    mixture.initialize(x, generator=torch.Generator().manual_seed(0))
    return mixture


def with_equal_weights(mixture: DirichletProcessMixture) -> DirichletProcessMixture:
    """Give all components of a mixture the same weight, so that none can be left out, and return it."""
    mixture.stick_fractions.copy_(1 / (mixture.n_components - torch.arange(mixture.n_components)))
    return mixture


def one_pass(mixture: DirichletProcessMixture, x: torch.Tensor) -> None:
    """Step over all of x ``[N,D]``, in batches of a usual size."""
    for batch in x.split(STEP_PATCHES):
        mixture.partial_fit(batch, STEP_SIZE)


def peak_in_child(memory: str, data: CachedEmbeddings) -> float:
    """Measure a peak of memory in MB, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        for number, file in enumerate(data.files):
            Path(name, f"{number:06d}.npy").symlink_to(file.resolve())
        command = [sys.executable, "-m", "benchmarks.fit", "--embeddings", name, "--memory", memory]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_of_step(data: CachedEmbeddings) -> float:
    """Measure the MB by which a diagonal step with all components raises the peak."""
    x = data.sample(STEP_PATCHES, seed=0)
    mixture = with_equal_weights(initialized(data, "diag", 500, x))
    return peak_above_now(partial(mixture.partial_fit, x, STEP_SIZE))


def peak_of_epoch(data: CachedEmbeddings) -> float:
    """Measure the MB by which an epoch, its initialisation included, raises the peak."""
    return peak_above_now(lambda: fit_epochs(initialized(data, "diag", 500), data, 1))


def peak_above_now(work: Callable[[], Any]) -> float:
    """Measure the MB by which the resident memory of this process rises at most (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_mb()
    work()
    return peak_mb() - before


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
