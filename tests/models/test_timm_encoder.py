"""Encoders of timm: patch tokens equal those of timm, scripted and exported, and other models are refused."""

import logging

import pytest
import torch

from scripts.errors import InputError
from scripts.models.encoder import DINOv2PatchEncoder, block_indices
from scripts.models.licences import licence_of, licence_warning
from scripts.models.mixture import DirichletProcessMixture
from scripts.models.network import PatchAnomalyNetwork
from scripts.models.timm_encoder import RotaryPatchEncoder, make_encoder
from scripts.models.weights import load_encoder_weights

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
DINOV3 = "timm:vit_small_patch16_dinov3"
NAMES = [
    DINOV3,
    "timm:vit_small_plus_patch16_dinov3",
    "timm:vit_small_patch14_reg4_dinov2",
    "timm:vit_base_patch16_224",
    "timm:vit_base_patch32_clip_224",
    "timm:vit_base_patch16_siglip_224",
    "timm:deit_tiny_distilled_patch16_224",
    "timm:eva02_tiny_patch14_224",
    "timm:vit_small_patch16_rope_mixed_ape_224",
    "timm:vit_pe_spatial_tiny_patch16_512",
]


def tiny(name, image_size=448, **arguments):
    torch.manual_seed(0)
    encoder = make_encoder(name, image_size, vit_options=TINY, **arguments)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def images(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


class TestTokens:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("grid", [(1, 1), (3, 5), (16, 9), (14, 14)])
    def test_equal_those_of_timm(self, name, grid):
        encoder = tiny(name, layers=(0, -1))
        x = images(*(side * encoder.patch_size for side in grid))
        expected = encoder.vit.forward_intermediates(
            (x - encoder.mean) / encoder.std, indices=[0, 1], norm=True, intermediates_only=True
        )
        for tokens, of_timm in zip(encoder.patch_tokens(x), expected, strict=True):
            torch.testing.assert_close(tokens, of_timm, rtol=1e-5, atol=1e-5 * float(of_timm.abs().max()))

    @pytest.mark.parametrize("name", [DINOV3, *NAMES[-4:-1]])
    def test_scripted_equal_eager_ones(self, name):
        encoder = tiny(name, layers=(0, -1), layer_reduction="mean", scales=(1, 0.5))
        scripted = torch.jit.script(encoder)
        for grid in [(3, 5), (7, 2)]:
            x = images(*(side * encoder.patch_size for side in grid))
            torch.testing.assert_close(scripted(x), encoder(x), rtol=1e-5, atol=1e-6)

    def test_blocks_see_positions(self):
        encoder = tiny(DINOV3)
        assert isinstance(encoder, RotaryPatchEncoder)
        x, positions = images(48, 80), encoder.patch_positions(3, 5)
        (tokens,) = encoder.block_tokens(x, positions)
        (moved,) = encoder.block_tokens(x, positions.flip(1))
        assert positions.shape == (1, 15, 2 * 16)
        assert (tokens - moved).abs().max() > 1e-3

    def test_normalisation_of_pixels_is_that_of_the_model(self):
        assert tiny(f"{DINOV3}.lvd1689m").mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
        assert tiny("timm:vit_base_patch16_224").mean.flatten().tolist() == [0.5] * 3
        rad_dino, dinov2 = tiny("rad_dino"), tiny("dinov2_vitb14")
        assert rad_dino.mean.flatten().tolist() == pytest.approx([0.5307] * 3)
        assert rad_dino.std.flatten().tolist() == pytest.approx([0.2583] * 3)
        x = images(28, 42)
        torch.testing.assert_close(
            rad_dino(x), dinov2((x - rad_dino.mean) / rad_dino.std * dinov2.std + dinov2.mean), rtol=1e-4, atol=1e-5
        )


class TestNetwork:
    @pytest.mark.parametrize("name", [DINOV3, "timm:vit_base_patch32_clip_224"])
    @pytest.mark.parametrize("shape", [(1, 50, 90), (3, 117, 33)])
    def test_maps_of_every_size(self, name, shape):
        network = PatchAnomalyNetwork(tiny(name, 64, layers=0.5), DirichletProcessMixture(1, 32))
        network.mixture.initialize(torch.eye(1, 32), means=torch.eye(1, 32))
        network.calibration.rates.copy_(torch.linspace(0.5, 0.001, len(network.calibration.rates)))
        network.calibration.quantiles.fill_(1.0)
        network.calibration.quantiles[:, 0] = 0
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        maps = network(x)
        assert maps.shape == (2, 1, *shape[1:]) and bool(maps.isfinite().all())
        assert network.embed(x).shape[2:] == network.patch_grid(*shape[1:])
        torch.testing.assert_close(torch.jit.script(network)(x), maps, rtol=1e-4, atol=1e-5)

    def test_model_names_encoder_and_licence(self):
        network = PatchAnomalyNetwork(tiny(DINOV3, 64, layers=(0.5, 1)), DirichletProcessMixture(2, 64))
        state = network.state_dict()
        assert state["_extra_state"]["settings"]["encoder_name"] == DINOV3
        assert state["_extra_state"]["settings"]["layers"] == [0, 1]
        assert state["_extra_state"]["encoder_licence"].startswith("DINOv3 License")
        other = PatchAnomalyNetwork(tiny(DINOV3, 64, layers=(0, 1)), DirichletProcessMixture(2, 64))
        other.load_state_dict(state)
        del state["_extra_state"]["encoder_licence"]  # of 0.8 and earlier
        other.load_state_dict(state)


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("timm:resnet18", "no patch tokens of images of every size"),
            ("timm:beit_base_patch16_224", "no patch tokens of images of every size"),
            ("timm:swin_tiny_patch4_window7_224", "is a SwinTransformer"),
            ("timm:vit_tiny_r_s16_p8_224", "of another kind"),
            ("timm:vit_nowhere", "has no model timm:vit_nowhere"),
            ("timm:hf_hub:timm/vit_base_patch16_224", "has no model"),
            ("timm:", "has no model"),
            ("vit_base_patch16_224", "must be one of dinov2_vits14"),
        ],
    )
    def test_other_models_raise(self, name, said):
        options = TINY if "_r_" in name else {"embed_dim": 32} if "swin" in name else {}
        with pytest.raises(InputError, match=said):
            make_encoder(name, vit_options=options)

    @pytest.mark.parametrize(
        ("image_size", "near"), [(450, "448 or 464"), (15, "16"), (0, "16"), (-16, "16"), (447, "432 or 448")]
    )
    def test_near_image_sizes_are_named(self, image_size, near):
        with pytest.raises(InputError, match=f"multiple of 16, the patch size of {DINOV3}, such as {near}; got"):
            tiny(DINOV3, image_size)

    @pytest.mark.parametrize("size", [(16, 17), (8, 16), (14, 28)])
    def test_partial_patches_raise(self, size):
        with pytest.raises(ValueError, match="multiples of 16 pixels"):
            tiny(DINOV3)(torch.zeros(1, 3, *size))

    def test_other_names_make_dinov2(self):
        assert type(tiny("dinov2_vits14_reg")) is DINOv2PatchEncoder


class TestBlockIndices:
    @pytest.mark.parametrize(
        ("layers", "depth", "indices"),
        [
            (0.75, 12, [8]),
            ([0.75], 24, [17]),
            ([0.01, 0.99], 12, [0, 11]),
            ([0.5, -1, 3], 12, [5, 11, 3]),
            (8, 12, [8]),
        ],
    )
    def test_shares_of_the_depth(self, layers, depth, indices):
        assert block_indices(layers, depth) == indices

    @pytest.mark.parametrize("layers", [1.0, 0.0, -0.5, 1.5, [12], [-13], [], float("nan")])
    def test_others_raise(self, layers):
        with pytest.raises(InputError, match="layers must name blocks between -12 and 11, or shares"):
            block_indices(layers, 12)


class TestLicences:
    @pytest.mark.parametrize(
        ("name", "licence", "commercial"),
        [
            ("dinov2_vits14", "Apache-2.0", True),
            ("rad_dino", "MIT", True),
            (DINOV3, "DINOv3 License", True),
            ("timm:vit_large_patch16_dinov3.sat493m", "DINOv3 License", True),
            ("timm:vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", "FAIR Noncommercial Research License", False),
            ("timm:vit_base_patch16_224.mae", "CC BY-NC 4.0", False),
            ("timm:vit_base_patch16_224", "Apache-2.0", True),
            ("timm:vit_nowhere", "unknown", None),
            ("brightness", "unknown", None),
        ],
    )
    def test_of_a_name(self, name, licence, commercial):
        assert licence_of(name)[:2] == (licence, commercial)

    def test_restricted_ones_warn(self, tmp_path, caplog):
        assert licence_warning("dinov2_vitg14_reg") is None and licence_warning("timm:vit_base_patch16_224") is None
        assert "not for clinical practice" in licence_warning("rad_dino")
        assert "no commercial use" in licence_warning("timm:vit_base_patch16_224.mae")
        encoder = tiny(DINOV3)
        torch.save(encoder.vit.state_dict(), tmp_path / "dinov3.pth")
        with caplog.at_level(logging.WARNING):
            load_encoder_weights(encoder, tmp_path / "dinov3.pth")
        assert f"The weights of {DINOV3} have their own terms: DINOv3 License" in caplog.text
