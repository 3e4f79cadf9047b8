"""Student's t components: their density, their degrees of freedom, and what they leave as it is."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from scripts.errors import InputError
from scripts.models.mixture import COVARIANCE_TYPES, DirichletProcessMixture
from scripts.models.mixture.student_t import fit_degrees_of_freedom, log_normalizer
from tests.models.test_mixture import fitted, samples

DENSE = {
    "diag": lambda gaussians: torch.diag_embed(gaussians.covariances),
    "spherical": lambda gaussians: torch.diag_embed(gaussians.covariances),
    "full": lambda gaussians: gaussians.covariances,
    "low_rank": lambda gaussians: (
        gaussians.loadings.mT @ gaussians.loadings
        + torch.diag_embed(gaussians.covariances.unsqueeze(1).expand(-1, gaussians.n_features))
    ),
}


def settings_of(covariance_type):
    return {"covariance_type": covariance_type, "rank": 2, "reg_covar": 1e-3, "distribution": "student_t"}


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
class TestDensity:
    def test_equals_scipy(self, covariance_type):
        x = samples()
        mixture = fitted(x, **settings_of(covariance_type))
        mixture.fit_degrees_of_freedom(x)
        components = mixture.active()
        found = mixture.log_density(x, components).double().numpy()
        covariances = DENSE[covariance_type](mixture.gaussians).double().numpy()
        for column, index in enumerate(components.tolist()):
            mean, nu = mixture.means[index].double().numpy(), float(mixture.degrees_of_freedom)
            expected = scipy.stats.multivariate_t(mean, covariances[index], df=nu).logpdf(x.double().numpy())
            np.testing.assert_allclose(found[:, column], expected, rtol=2e-3, atol=2e-3)

    def test_many_degrees_of_freedom_are_the_gaussian(self, covariance_type):
        x = samples()
        mixture = fitted(x, **settings_of(covariance_type))
        mixture.set_degrees_of_freedom(1e5)
        gaussians = mixture.gaussians.log_density(x, mixture.active())
        near = gaussians > gaussians.max() - 30
        found = mixture.log_density(x, mixture.active())
        torch.testing.assert_close(found[near], gaussians[near], rtol=1e-2, atol=2e-2)

    def test_online_em_is_that_of_the_gaussians(self, covariance_type):
        given = settings_of(covariance_type)
        ours, gaussian = fitted(samples(), **given), fitted(samples(), **{**given, "distribution": "gaussian"})
        state = gaussian.state_dict()
        assert set(ours.state_dict()) - set(state) == {"degrees_of_freedom", "log_normalizer"}
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in state.items())

    def test_scripted_equals_eager(self, covariance_type):
        x = samples()
        mixture = fitted(x, **settings_of(covariance_type))

        class Scores(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.mixture = mixture

            def forward(self, x):
                return self.mixture.anomaly_score(x, "negative_log_likelihood")

        torch.testing.assert_close(torch.jit.script(Scores())(x), -mixture.score_samples(x))


def drawn(nu, n=4000, d=16, seed=0):
    """Samples of one component around 0 with unit covariance, ``nu`` infinite for a Gaussian."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, d))
    return x if math.isinf(nu) else x / np.sqrt(generator.chisquare(nu, (n, 1)) / nu)


class TestDegreesOfFreedom:
    @pytest.mark.parametrize("nu", [2, 5, 20, 100])
    def test_are_recovered(self, nu):
        found = fit_degrees_of_freedom((drawn(nu) ** 2).sum(1, keepdims=True), np.zeros(1), 16)
        assert found == pytest.approx(nu, rel=0.3)

    def test_of_a_gaussian_are_many(self):
        assert fit_degrees_of_freedom((drawn(math.inf) ** 2).sum(1, keepdims=True), np.zeros(1), 16) > 300

    def test_fit_raises_the_likelihood(self):
        x = torch.from_numpy(drawn(3, d=5)).float()
        mixture = fitted(x[:2000], **settings_of("low_rank"))
        likelihoods = []
        for nu in (1.0, 1000.0, mixture.fit_degrees_of_freedom(x[2000:])):
            mixture.set_degrees_of_freedom(nu)
            likelihoods.append(float(mixture.score_samples(x[2000:]).mean()))
        assert likelihoods[2] > max(likelihoods[:2]) + 0.01

    def test_survive_another_start_and_a_save(self):
        x = samples()
        mixture = fitted(x, **settings_of("diag"))
        nu = mixture.fit_degrees_of_freedom(x)
        mixture.initialize(x)
        copy = DirichletProcessMixture(6, 5, **settings_of("diag"))
        copy.load_state_dict(mixture.state_dict())
        assert float(copy.degrees_of_freedom) == pytest.approx(nu)
        assert float(copy.log_normalizer) == pytest.approx(log_normalizer(nu, 5), rel=1e-5)


def test_far_patches_differ_less_than_under_gaussians():
    x = samples()
    ours = fitted(x, **settings_of("low_rank"))
    gaussian = fitted(x, **{**settings_of("low_rank"), "distribution": "gaussian"})
    far = torch.stack([x[0] * 0 + 50, x[0] * 0 + 500])
    near, distant = ours.anomaly_score(far, "negative_log_likelihood")
    assert near < distant < near + 100
    near, distant = gaussian.anomaly_score(far, "negative_log_likelihood")
    assert distant > near + 1000


def test_another_distribution_raises():
    with pytest.raises(InputError, match="distribution must be one of gaussian, student_t; got 'cauchy'"):
        DirichletProcessMixture(2, 2, distribution="cauchy")
