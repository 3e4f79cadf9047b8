"""Trainer, evaluator and handlers of a fit."""

import copy
import itertools

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler
from torch.utils.data import DataLoader

from scripts.errors import InputError
from scripts.models.checkpoint import load_network
from scripts.models.mixture import SCORE_KINDS, DirichletProcessMixture
from scripts.training.calibrator import CheckpointSaver, ThresholdCalibrator
from scripts.training.geometry import CaseGeometry
from scripts.training.handlers import BestModelTracker, MixtureInitializer, MixtureSettler, TailFitter
from scripts.training.sampler import DistributedBatchSampler
from scripts.training.trainer import (
    LOG_LIKELIHOOD,
    VALIDATION,
    LikelihoodEvaluator,
    OnlineEMTrainer,
    settle,
    step_size_at,
)


def patches(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 32, generator=generator)
    rows = centres[torch.randint(3, (n,), generator=generator)] + 0.3 * torch.randn(n, 32, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


class Embeddings:
    """Stand in for an `EmbeddingDataset`, with a list of the drawn numbers of patches."""

    def __init__(self, n=300):
        self.patches = patches(n)
        self.drawn = []

    def sample(self, n_patches, seed):
        self.drawn.append(n_patches)
        generator = torch.Generator().manual_seed(seed)
        return self.patches[torch.randperm(len(self.patches), generator=generator)[:n_patches]]


def batches(sizes=(40, 40, 23)):
    """Stand in for a data loader."""
    return [patches(n, seed).half() for seed, n in enumerate(sizes, start=10)]


class HeldOut:
    """Stand in for the embeddings of cases of 56 x 56 pixels, all of them foreground."""

    def __init__(self, n_slices=(4, 2)):
        self.n_used = len(n_slices)
        self.cases = [patches(16 * n, seed).half().view(n, 16, 32) for seed, n in enumerate(n_slices, start=10)]

    def n_views(self, index):
        return 1

    def case(self, index, view=0):
        return self.cases[index].numpy()

    def geometry(self, index, view=0):
        n_slices = len(self.cases[index])
        return CaseGeometry(np.ones((n_slices, 56, 56), bool), np.arange(n_slices), 1.0, None)

    def all_patches(self):
        return torch.cat([case.flatten(0, 1) for case in self.cases]).float()


@pytest.fixture
def network(fitted_network):
    """Return a network with a mixture that is only initialised."""
    fitted_network.mixture.initialize(patches(100), generator=torch.Generator().manual_seed(0))
    return fitted_network


def trainer(network, loader, max_epochs=2, **arguments):
    return OnlineEMTrainer("cpu", max_epochs, loader, network, **arguments)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


class TestStepSize:
    def test_schedules(self):
        assert [step_size_at("ema", 0.2, step) for step in (1, 2, 50)] == [0.2, 0.2, 0.2]
        assert [step_size_at("exp", 0.6, step) for step in (1, 2, 50)] == [1.0, 2**-0.6, 50**-0.6]
        assert [step_size_at(schedule, None, 7) for schedule in ("ema", "exp")] == [1.0, 1.0]
        assert step_size_at("ema", 1.0, 3) == 1.0

    @pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), float("inf")])
    @pytest.mark.parametrize("schedule", ["ema", "exp"])
    def test_rate_out_of_range_raises(self, schedule, rate):
        with pytest.raises(InputError, match="step_size must be a number above 0"):
            step_size_at(schedule, rate, 1)

    @pytest.mark.parametrize("rate", [0.2, None])
    def test_unknown_schedule_raises(self, rate):
        with pytest.raises(InputError, match="schedule must be 'ema' or 'exp'; got 'cosine'"):
            step_size_at("cosine", rate, 1)


class TestEndOfAFit:
    def loader(self):
        slices = patches(16 * 30).view(30, 16, 32)
        return DataLoader(slices, batch_sampler=DistributedBatchSampler(slices, 4), collate_fn=torch.cat)

    def test_decaying_steps_make_fits_agree_that_end_on_other_batches(self, network):
        everything, distances = patches(16 * 30), []
        for n_settling in (0, 4):
            means = []
            for last in (2, 3):
                mixture = copy.deepcopy(network.mixture)
                for batch in [everything, everything, everything[last::40], everything[last::40]]:
                    mixture.partial_fit(batch, 0.5)
                settle(mixture, self.loader(), n_settling)
                means.append(mixture.means)
            distances.append(float((means[0] - means[1]).norm()))
        assert distances[1] < distances[0] / 1.5

    def test_handlers_follow_the_best_epoch(self, network):
        mixture = DirichletProcessMixture(4, 32, "diag", distribution="student_t")
        mixture.load_state_dict({**mixture.state_dict(), **network.mixture.state_dict()})
        network.mixture = mixture
        embeddings = Embeddings()
        fit = trainer(network, batches(), max_epochs=1)
        MixtureSettler(network, self.loader(), 2).attach(fit)
        TailFitter(network, embeddings, seed=0).attach(fit)
        fit.run()
        assert int(mixture.n_steps) == len(batches()) + 2 * 8
        assert embeddings.drawn == [20000] and float(mixture.degrees_of_freedom) != 20

    def test_no_settling_changes_nothing(self, network):
        before = state_of(network.mixture)
        settle(network.mixture, self.loader(), 0)
        TailFitter(network, Embeddings(), seed=0)(Engine(lambda engine, batch: None))  # Gaussians have no tails
        assert_same(state_of(network.mixture), before)

    def test_negative_epochs_raise(self, network):
        with pytest.raises(InputError, match="settling_epochs must be at least 0; got -1"):
            MixtureSettler(network, self.loader(), -1)


class TestOnlineEMTrainer:
    @pytest.mark.parametrize(("schedule", "rate"), [("ema", 0.2), ("exp", 0.6), ("ema", None)])
    def test_equals_a_plain_loop_bit_by_bit(self, network, schedule, rate):
        plain = DirichletProcessMixture(4, 32)
        plain.load_state_dict(network.mixture.state_dict())
        loader = batches()
        expected = [
            plain.partial_fit(batch.float(), step_size_at(schedule, rate, step))
            for step, batch in enumerate(itertools.chain(loader, loader), start=1)
        ]
        outputs = []
        engine = trainer(network, loader, step_size=rate, schedule=schedule)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(engine.state.output))
        engine.run()
        assert_same(network.mixture.state_dict(), plain.state_dict())
        assert int(network.mixture.n_steps) == 6
        assert [output[LOG_LIKELIHOOD] for (output,) in outputs] == expected
        assert [output["loss"] for (output,) in outputs] == [-value for value in expected]

    def test_interrupted_fit_keeps_its_step_sizes(self, network):
        loader, whole = batches(), DirichletProcessMixture(4, 32)
        whole.load_state_dict(network.mixture.state_dict())
        for _ in range(2):
            trainer(network, loader, max_epochs=1, step_size=0.6, schedule="exp").run()
        for step, batch in enumerate(itertools.chain(loader, loader), start=1):
            whole.partial_fit(batch.float(), step**-0.6)
        assert_same(network.mixture.state_dict(), whole.state_dict())

    def test_encoder_is_unchanged(self, network):
        before = state_of(network.encoder)
        trainer(network, batches()).run()
        assert_same(network.encoder.state_dict(), before)

    def test_events_of_monai_are_fired(self, network):
        engine, fired = trainer(network, batches(), max_epochs=1), []
        for event in (
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ):
            engine.add_event_handler(event, lambda event=event: fired.append((event, engine.state.output is not None)))
        engine.run()
        assert len(fired) == 9
        assert all(has_output for _, has_output in fired)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"max_epochs": 0}, "max_epochs"),
            ({"step_size": 0.0}, "step_size"),
            ({"step_size": 1.5}, "step_size"),
            ({"schedule": "linear"}, "schedule"),
        ],
    )
    def test_wrong_arguments_raise_before_the_fit(self, network, arguments, said):
        with pytest.raises(InputError, match=said):
            trainer(network, batches(), **arguments)

    def test_initializes_its_mixture(self, network):
        network.mixture.means.fill_(7)
        engine = trainer(
            network, batches(), max_epochs=1, train_handlers=[MixtureInitializer(network, Embeddings(), 3)]
        )
        engine.run()
        state = state_of(network.mixture)
        start(network, 3)
        for batch in batches():
            network.mixture.partial_fit(batch, 0.2)
        assert_same(state, network.mixture.state_dict())

    def test_writes_the_best_calibrated_mixture(self, make_network, tmp_path):
        network, path = make_network(), tmp_path / "models" / "model.pt"
        network.calibration.quantiles.fill_(float("nan"))
        evaluator = LikelihoodEvaluator("cpu", batches((60, 31)), network)
        handlers = [
            MixtureInitializer(network, Embeddings(), 3),
            ValidationHandler(1, evaluator),
            BestModelTracker(network, evaluator),
            CheckpointSaver(network, path, ThresholdCalibrator(network, HeldOut())),
        ]
        trainer(network, batches(), max_epochs=5, train_handlers=handlers).run()
        loaded = load_network(make_network(), path)
        assert int(loaded.mixture.n_steps) == 3 * evaluator.state.best_metric_epoch
        images = torch.rand(1, 1, 56, 56)
        assert torch.equal(loaded(images), network(images))
        raw = loaded.mixture.anomaly_score(HeldOut().all_patches(), "cosine").numpy()
        assert float(loaded.calibration.decision_threshold(0, 0.01)) == pytest.approx(np.quantile(raw, 0.99), rel=1e-5)


class TestLikelihoodEvaluator:
    @pytest.mark.parametrize("sizes", [(40, 40, 23), (1, 99), (7,)])
    def test_metric_is_the_mean_over_all_patches(self, network, sizes):
        loader = batches(sizes)
        evaluator = LikelihoodEvaluator("cpu", loader, network)
        evaluator.run()
        everything = torch.cat(list(loader)).float()
        expected = float(network.mixture.score_samples(everything).double().mean())
        assert evaluator.state.metrics[VALIDATION] == pytest.approx(expected, rel=1e-6)
        assert evaluator.state.key_metric_name == VALIDATION
        evaluator.run()  # a second validation starts anew
        assert evaluator.state.metrics[VALIDATION] == pytest.approx(expected, rel=1e-6)

    def test_mixture_is_unchanged(self, network):
        before = state_of(network.mixture)
        LikelihoodEvaluator("cpu", batches(), network).run()
        assert_same(network.mixture.state_dict(), before)


def start(network, seed, embeddings=None, **arguments):
    MixtureInitializer(network, embeddings or Embeddings(), seed, **arguments)(Engine(lambda *_: None))
    return state_of(network.mixture)


class TestMixtureInitializer:
    def test_follows_its_seed(self, network):
        first, again = start(network, 1), start(network, 1)
        assert_same(first, again)
        assert not torch.equal(first["gaussians.means"], start(network, 2)["gaussians.means"])
        assert not torch.equal(first["stick_fractions"], start(network, 2)["stick_fractions"])

    def test_k_means_plus_plus_is_far_apart_and_seeded(self, network):
        near = torch.randn(60, 32, generator=torch.Generator().manual_seed(0)) * 1e-3
        far = torch.eye(32)[:3]

        class Clumped(Embeddings):
            def sample(self, n_patches, seed):
                return torch.cat([near, far])

        first, again = (start(network, 1, Clumped(), init_params="k-means++") for _ in range(2))
        assert_same(first, again)
        means = first["gaussians.means"]
        assert all((means == row).all(1).any() for row in far)

    def test_unknown_init_params_raises(self, network):
        with pytest.raises(InputError, match="init_params must be"):
            MixtureInitializer(network, Embeddings(), 0, "kmeans")

    def test_global_random_state_is_unchanged(self, network):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        start(network, 5)
        assert torch.equal(torch.rand(3), expected)

    def test_draws_enough_patches(self, network):
        embeddings = Embeddings()
        start(network, 0, embeddings, n_patches=50)
        start(network, 0, embeddings, n_patches=2)
        assert embeddings.drawn == [50, 4]

    def test_too_few_patches_raise(self, network):
        with pytest.raises(InputError, match="Reduce n_components"):
            start(network, 0, Embeddings(3))


class TestBestModelTracker:
    @pytest.mark.parametrize("best", [0, 1, 3])
    def test_best_epoch_is_restored(self, network, best):
        metrics = [1.0, 2.0, 1.5, 0.5]
        metrics[best] = 9.0
        after_epoch = []

        class Scripted(LikelihoodEvaluator):
            """Evaluator with given metrics."""

            def _iteration(self, engine, batchdata):
                after_epoch.append(state_of(network.mixture))
                return torch.tensor([metrics[len(after_epoch) - 1]], dtype=torch.float64)

        evaluator = Scripted("cpu", batches((5,)), network)
        handlers = [ValidationHandler(1, evaluator), BestModelTracker(network, evaluator)]
        trainer(network, batches(), max_epochs=4, train_handlers=handlers).run()
        assert_same(network.mixture.state_dict(), after_epoch[best])
        assert int(network.mixture.n_steps) == 3 * (best + 1)

    def test_fit_keeps_its_best_likelihood(self, network):
        evaluator = LikelihoodEvaluator("cpu", batches((60, 31)), network)
        likelihoods = []
        evaluator.add_event_handler(Events.COMPLETED, lambda: likelihoods.append(evaluator.state.metrics[VALIDATION]))
        handlers = [ValidationHandler(1, evaluator), BestModelTracker(network, evaluator)]
        trainer(network, batches(), max_epochs=6, step_size=1.0, train_handlers=handlers).run()
        again = LikelihoodEvaluator("cpu", batches((60, 31)), network)
        again.run()
        assert again.state.metrics[VALIDATION] == pytest.approx(max(likelihoods), rel=1e-6)

    def test_without_epochs_changes_nothing(self, network):
        before = state_of(network.mixture)
        evaluator = LikelihoodEvaluator("cpu", batches(), network)
        BestModelTracker(network, evaluator).restore(Engine(lambda *_: None))
        assert_same(network.mixture.state_dict(), before)


class TestThresholdCalibrator:
    def test_every_score_is_calibrated_on_all_patches(self, make_network):
        network = make_network(target_fpr=0.05)
        network.calibration.quantiles.fill_(float("nan"))
        ThresholdCalibrator(network, HeldOut((9, 7)))(Engine(lambda *_: None))
        for kind in network.mixture.score_kinds:
            raw = network.mixture.anomaly_score(HeldOut((9, 7)).all_patches(), kind).numpy()
            index = SCORE_KINDS.index(kind)
            assert network.calibration.is_fitted(index)
            for rate in (0.5, 0.05, 0.01):
                limit = float(network.calibration.decision_threshold(index, rate))
                assert limit == pytest.approx(np.quantile(raw, 1 - rate), rel=1e-4, abs=1e-4)
        assert (network.calibration.rates == 0.05).sum() == 2

    def test_other_target_fpr_is_calibrated(self, make_network):
        network = make_network(target_fpr=0.03)
        ThresholdCalibrator(network, HeldOut())(Engine(lambda *_: None))
        raw = network.mixture.anomaly_score(HeldOut().all_patches(), "cosine").numpy()
        assert float(network.calibration.decision_threshold(0, 0.03)) == pytest.approx(np.quantile(raw, 0.97), rel=1e-5)
