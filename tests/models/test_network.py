"""The network: shapes and geometry of maps, fitted state, settings."""

import io
import math

import pytest
import torch

from scripts.digests import tensor_digest
from scripts.errors import InputError
from scripts.models.encoder import DINOv2PatchEncoder, EncoderBackend
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.runtimes.export import ExportableNetwork
from scripts.training.trainer import step_size_at

KINDS = ["cosine", "euclidean", "mahalanobis", "negative_log_likelihood"]


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class BrightnessEncoder(torch.nn.Module):
    """Replace DINOv2: the brighter a patch, the further its embedding points upwards."""

    def __init__(self, image_size=112):
        super().__init__()
        self.image_size = image_size
        self.patch_size = 14
        self.n_features = 2
        self.name = "brightness"
        self.layers = [0]
        self.layer_reduction = "concat"
        self.scales = [1.0]
        self.weights_digest = ""

    def forward(self, images):
        angle = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 14) * math.pi / 2
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def brightness_network(image_size=112):
    """Make a network that scores brightness: 0 for black, the decision threshold for white."""
    mixture = DirichletProcessMixture(1, 2)
    mixture.initialize(torch.tensor([[1.0, 0.0]]), means=torch.tensor([[1.0, 0.0]]))
    network = PatchAnomalyNetwork(BrightnessEncoder(image_size), mixture)
    network.calibration.rates.copy_(torch.linspace(0.5, 0.001, len(network.calibration.rates)))
    network.calibration.quantiles.fill_(1.0)
    network.calibration.quantiles[:, 0] = 0
    return network


class TestForward:
    @pytest.mark.parametrize(
        ("height", "width"), [(56, 56), (57, 61), (14, 14), (14, 200), (33, 90), (181, 217), (300, 40), (29, 28)]
    )
    @pytest.mark.parametrize("channels", [1, 3])
    def test_maps_have_the_shape_of_images(self, fitted_network, height, width, channels):
        maps = fitted_network(images(2, channels, height, width))
        assert maps.shape == (2, 1, height, width)
        assert torch.isfinite(maps).all()

    def test_volumes_are_scored_by_slice(self, fitted_network):
        volume = images(2, 1, 40, 61, 3)
        maps = fitted_network(volume)
        assert maps.shape == (2, 1, 40, 61, 3)
        for index in range(3):
            torch.testing.assert_close(maps[..., index], fitted_network(volume[..., index]))

    def test_one_channel_equals_three_copies(self, fitted_network):
        grey = images(1, 1, 60, 70)
        torch.testing.assert_close(fitted_network(grey), fitted_network(grey.repeat(1, 3, 1, 1)))

    def test_images_of_a_batch_are_independent(self, fitted_network):
        batch = images(3, 1, 50, 70)
        for index, alone in enumerate(batch.split(1)):
            torch.testing.assert_close(
                fitted_network(batch)[index : index + 1], fitted_network(alone), rtol=1e-3, atol=1e-4
            )

    @pytest.mark.parametrize(
        ("size", "grid"), [((56, 56), (4, 4)), ((28, 56), (4, 8)), ((100, 61), (7, 4)), ((20, 15), (6, 4))]
    )
    def test_shorter_edge_has_the_image_size(self, fitted_network, size, grid):
        assert fitted_network.embed(images(1, 1, *size)).shape[2:] == grid

    @pytest.mark.parametrize("shape", [(1, 2, 50, 50), (1, 4, 50, 50), (3, 50, 50), (1, 1, 1, 1, 50, 50)])
    def test_other_shapes_raise(self, fitted_network, shape):
        with pytest.raises(ValueError, match=r"\[B, 1 or 3, H, W\]"):
            fitted_network(images(*shape))

    @pytest.mark.parametrize("size", [(13, 50), (50, 13), (1, 1)])
    def test_less_than_a_patch_raises(self, fitted_network, size):
        with pytest.raises(ValueError, match="at least 14 x 14"):
            fitted_network(images(1, 1, *size))


class TestScripting:
    @pytest.mark.parametrize("kind", KINDS)
    def test_scripted_equals_eager(self, make_network, kind):
        network = make_network(kind)
        scripted = torch.jit.script(network)
        for shape in [(2, 1, 60, 45), (1, 3, 56, 56), (1, 1, 30, 20, 2)]:
            torch.testing.assert_close(scripted(images(*shape)), network(images(*shape)), rtol=1e-3, atol=1e-4)

    def test_scripted_network_can_be_saved(self, fitted_network):
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(fitted_network), file)
        file.seek(0)
        given = images(1, 1, 40, 61)
        torch.testing.assert_close(torch.jit.load(file)(given), fitted_network(given), rtol=1e-3, atol=1e-4)


class TestGeometry:
    @pytest.mark.parametrize("image_size", [56, 112])
    @pytest.mark.parametrize(
        ("height", "width"),
        [(112, 112), (113, 117), (223, 97), (97, 223), (61, 45), (45, 61), (301, 230), (40, 199), (199, 40)],
    )
    @pytest.mark.parametrize(("down", "right"), [(0.5, 0.5), (0.3, 0.7), (0.72, 0.28), (0.75, 0.75)])
    def test_square_keeps_its_place(self, image_size, height, width, down, right):
        patch = 14 * min(height, width) / image_size  # in pixels of the input
        side = max(3, round(2 * patch))
        top, left = round(down * height - side / 2), round(right * width - side / 2)
        planted = torch.zeros(1, 1, height, width)
        planted[..., top : top + side, left : left + side] = 1
        anomaly_map = brightness_network(image_size)(planted)[0, 0].double()

        weights = anomaly_map / anomaly_map.sum()
        centroid = (
            float((weights.sum(1) * (torch.arange(height) + 0.5)).sum()),
            float((weights.sum(0) * (torch.arange(width) + 0.5)).sum()),
        )
        # Scores are not linear in brightness: a square across the patch grid may move by less than half a patch
        assert abs(centroid[0] - (top + side / 2)) < 0.5 * patch
        assert abs(centroid[1] - (left + side / 2)) < 0.5 * patch
        peak = divmod(int(anomaly_map.argmax()), width)
        assert top - 0.5 * patch <= peak[0] < top + side + 0.5 * patch
        assert left - 0.5 * patch <= peak[1] < left + side + 0.5 * patch

    @pytest.mark.parametrize(("height", "width"), [(200, 84), (84, 200), (61, 147), (341, 226)])
    def test_square_on_the_patch_grid_is_exact(self, height, width):
        network = brightness_network(56)
        scale = min(height, width) / 56
        rows, columns = (round(height / scale / 14) - 1, round(width / scale / 14) - 1)
        for row, column in [(0, 0), (rows - 1, 0), (0, columns - 1), (rows // 2, columns // 2)]:
            scores = torch.zeros(1, 1, math.ceil(height / scale / 14), math.ceil(width / scale / 14))
            scores[0, 0, row, column] = 1
            anomaly_map = network.to_pixels(scores, height, width)[0, 0]
            vertical, horizontal = anomaly_map.sum(1), anomaly_map.sum(0)
            if 0 < row < rows - 1:
                centre = float((vertical * (torch.arange(height) + 0.5)).sum() / vertical.sum())
                assert centre == pytest.approx((row + 0.5) * 14 * scale, abs=0.02 * 14 * scale + 0.6)
            if 0 < column < columns - 1:
                centre = float((horizontal * (torch.arange(width) + 0.5)).sum() / horizontal.sum())
                assert centre == pytest.approx((column + 0.5) * 14 * scale, abs=0.02 * 14 * scale + 0.6)
            peak = divmod(int(anomaly_map.argmax()), width)
            assert row * 14 * scale - 1 <= peak[0] <= (row + 1) * 14 * scale
            assert column * 14 * scale - 1 <= peak[1] <= (column + 1) * 14 * scale

    @pytest.mark.parametrize(("height", "width"), [(112, 112), (113, 117), (61, 45), (14, 99), (301, 230)])
    def test_uniform_image_has_a_uniform_map(self, height, width):
        anomaly_map = brightness_network()(torch.full((1, 1, height, width), 0.4))
        expected = torch.full_like(anomaly_map, 1 - math.cos(0.4 * math.pi / 2))
        torch.testing.assert_close(anomaly_map, expected, rtol=1e-4, atol=1e-5)

    def test_fine_pattern_is_averaged(self):
        stripes = torch.zeros(1, 1, 224, 224)
        stripes[..., ::2] = 1
        embeddings = brightness_network(56).embed(stripes)
        grey = brightness_network(56).embed(torch.full_like(stripes, 0.5))
        torch.testing.assert_close(embeddings, grey, rtol=0, atol=0.03)

    @pytest.mark.parametrize("vertical", [True, False])
    def test_bright_border_stays_at_the_border(self, vertical):
        image = torch.zeros(1, 1, 115, 121)
        image[:, :, -14:] = 1
        anomaly_map = brightness_network()(image if vertical else image.mT.contiguous())[0, 0]
        anomaly_map = anomaly_map if vertical else anomaly_map.T
        assert (anomaly_map[-3:] > 0.7).all()
        assert (anomaly_map[: 115 - 3 * 15] < 1e-3).all()


class TestFittedState:
    def test_unfitted_network_raises(self, tiny_encoder):
        network = PatchAnomalyNetwork(tiny_encoder, DirichletProcessMixture(4, 32))
        with pytest.raises(RuntimeError, match=r"configs/train\.json"):
            network(images(1, 1, 56, 56))
        with pytest.raises(RuntimeError, match=r"configs/train\.json"):
            network(images(1, 1, 56, 56, 2))
        with pytest.raises(InputError, match=r"configs/train\.json"):
            torch.jit.script(network)
        with pytest.raises(RuntimeError, match=r"configs/train\.json"):
            ExportableNetwork(network)

    def test_uncalibrated_network_raises(self, tiny_encoder):
        network = PatchAnomalyNetwork(tiny_encoder, DirichletProcessMixture(4, 32))
        network.mixture.initialize(torch.randn(20, 32))
        network.mixture.partial_fit(torch.randn(20, 32), step_size_at("ema", None, 1))
        with pytest.raises(RuntimeError, match="calibrated"):
            network(images(1, 1, 56, 56))

    def test_maps_are_calibrated_patch_scores(self, fitted_network):
        given = images(1, 3, 56, 56)
        raw = fitted_network.patch_scores(fitted_network.embed(given), "cosine")
        assert raw.shape == (1, 1, 4, 4)
        median, limit = (
            fitted_network.calibration.quantiles[0, 0],
            fitted_network.calibration.decision_threshold(0, 0.01),
        )
        pixels = torch.nn.functional.interpolate((raw - median) / (limit - median), size=[56, 56], mode="bilinear")
        torch.testing.assert_close(fitted_network(given), pixels, rtol=1e-4, atol=1e-4)

    def test_patch_scores_have_the_patch_grid(self, fitted_network):
        embeddings = fitted_network.embed(images(2, 1, 56, 84))
        scores = fitted_network.patch_scores(embeddings, "euclidean")
        for b, row, column in [(0, 0, 0), (1, 2, 5), (0, 3, 1)]:
            alone = fitted_network.mixture.anomaly_score(embeddings[b, :, row, column].unsqueeze(0), "euclidean")
            torch.testing.assert_close(scores[b, 0, row, column], alone[0], rtol=1e-4, atol=1e-4)

    def test_smoothing_mixes_neighbouring_patches_alone(self, fitted_network):
        scores = torch.zeros(1, 1, 9, 7)
        scores[..., 4, 3] = 1
        assert torch.equal(fitted_network.smooth(scores), scores)
        fitted_network.patch_smoothing = 0.5
        smoothed = fitted_network.smooth(scores)
        assert smoothed.sum() == pytest.approx(1, abs=1e-3)
        assert 0.5 < smoothed[0, 0, 4, 3] < 0.7 and smoothed[0, 0, 4, 3] > 5 * smoothed[0, 0, 4, 4] > 0.1
        torch.testing.assert_close(fitted_network.smooth(torch.full((1, 1, 9, 7), 3.0)), torch.full((1, 1, 9, 7), 3.0))
        embeddings = fitted_network.embed(images(2, 1, 56, 84))
        raw = fitted_network.mixture.anomaly_score(embeddings.permute(0, 2, 3, 1).flatten(0, 2), "cosine")
        expected = fitted_network.smooth(raw.reshape(2, 1, 4, 6))
        torch.testing.assert_close(fitted_network.patch_scores(embeddings, "cosine"), expected)
        assert fitted_network.settings()["patch_smoothing"] == 0.5

    @pytest.mark.parametrize("kind", KINDS)
    def test_state_dict_restores_the_maps(self, make_network, kind):
        network, given = make_network("cosine"), images(1, 1, 60, 45)
        encoder = DINOv2PatchEncoder(image_size=56, vit_options={"depth": 2, "embed_dim": 32, "num_heads": 2})
        other = PatchAnomalyNetwork(encoder, DirichletProcessMixture(4, 32), kind)
        other.load_state_dict(saved_and_loaded(network.state_dict()))
        assert torch.equal(other(given), make_network(kind)(given))  # any kind, without a new fit

    def test_other_target_needs_no_new_fit(self, make_network):
        network, given = make_network(), images(1, 1, 56, 56)
        other = make_network(target_fpr=0.1)
        other.load_state_dict(network.state_dict())
        median = network.calibration.quantiles[0, 0]
        factor = (network.calibration.decision_threshold(0, 0.01) - median) / (
            network.calibration.decision_threshold(0, 0.1) - median
        )
        assert factor > 1.01
        torch.testing.assert_close(other(given), network(given) * factor, rtol=1e-4, atol=1e-4)

    def test_digest_of_the_weights_is_saved(self, make_network):
        network, other = make_network(), make_network()
        network.encoder.weights_digest = tensor_digest(network.encoder.vit.state_dict())
        other.load_state_dict(saved_and_loaded(network.state_dict()))
        assert other.encoder.weights_digest == network.encoder.weights_digest


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("n_components", 5),
            ("image_size", 70),
            ("encoder_name", "dinov2_vitb14"),
            ("layers", [0]),
            ("layer_reduction", "mean"),
            ("scales", [1.0, 0.5]),
            ("covariance_type", "full"),
        ],
    )
    def test_other_settings_raise(self, fitted_network, setting, value):
        state_dict = fitted_network.state_dict()
        state_dict["_extra_state"]["settings"][setting] = value
        own = fitted_network.settings()[setting]
        with pytest.raises(InputError) as raised:
            fitted_network.load_state_dict(state_dict)
        assert f"fitted with {setting}={value}" in str(raised.value)
        assert f"this network has {setting}={own}" in str(raised.value)

    def test_control_characters_are_not_printed(self, fitted_network):
        state_dict = fitted_network.state_dict()
        state_dict["_extra_state"]["settings"]["layers"] = "\x1b[31m\n"
        with pytest.raises(InputError) as raised:
            fitted_network.load_state_dict(state_dict)
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize("setting", ["scales", "layer_reduction"])
    def test_model_of_a_version_without_the_setting_loads(self, make_network, setting):
        state_dict = make_network().state_dict()
        del state_dict["_extra_state"]["settings"][setting], state_dict["_extra_state"]["digest"]
        make_network().load_state_dict(saved_and_loaded(state_dict))

    @pytest.mark.parametrize(
        ("setting", "encoder", "mixture"),
        [
            ("n_components", {}, {"n_components": 7}),
            ("image_size", {"image_size": 70}, {}),
            ("encoder_name", {"name": "dinov2_vitb14"}, {}),
            ("layers", {"layers": (0,)}, {}),
            ("scales", {"scales": (1, 0.5)}, {}),
        ],
    )
    def test_network_of_other_settings_raises(self, fitted_network, setting, encoder, mixture):
        vit_options = {"depth": 2, "embed_dim": 32, "num_heads": 2}
        other = PatchAnomalyNetwork(
            DINOv2PatchEncoder(**{"image_size": 56, "vit_options": vit_options, **encoder}),
            DirichletProcessMixture(**{"n_components": 4, "n_features": 32, **mixture}),
        )
        with pytest.raises(InputError, match=f"{setting}="):
            other.load_state_dict(saved_and_loaded(fitted_network.state_dict()))


class TestArguments:
    @pytest.mark.parametrize("score", ["subspace", "l2", ""])
    def test_unknown_score_raises(self, tiny_encoder, score):
        with pytest.raises(InputError, match=f"score must be one of cosine, .*; got '{score}'"):
            PatchAnomalyNetwork(tiny_encoder, DirichletProcessMixture(4, 32), score)

    def test_other_n_features_raises(self, tiny_encoder):
        with pytest.raises(InputError, match=r"n_features .* 32; got 31"):
            PatchAnomalyNetwork(tiny_encoder, DirichletProcessMixture(4, 31))

    def test_target_out_of_range_raises(self, tiny_encoder):
        with pytest.raises(InputError, match="target_fpr"):
            PatchAnomalyNetwork(tiny_encoder, DirichletProcessMixture(4, 32), target_fpr=0.6)


class TestBackend:
    def test_loading_a_state_resets_it(self, fitted_network):
        fitted_network.encoder.backend = EncoderBackend("int8, which has other decision thresholds")
        fitted_network.load_state_dict(fitted_network.state_dict())
        assert fitted_network.encoder.backend is None


class TestScorePatches:
    @pytest.mark.parametrize("score", ["cosine", "negative_log_likelihood"])
    def test_patches_come_with_the_same_map(self, make_network, score):
        network = make_network(score)
        given = images(2, 1, 50, 70)
        output = network.score_patches(given)
        components, log_likelihood = network.mixture(network.embed(given).permute(0, 2, 3, 1).flatten(0, 2))
        assert torch.equal(output.anomaly_map, network(given))
        assert torch.equal(output.components.flatten(), components)
        assert torch.equal(output.log_likelihood.flatten(), log_likelihood)
