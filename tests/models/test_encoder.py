"""The encoder: patch tokens equal those of every official model variant."""

import pytest
import torch
import torch.nn.functional as F

from scripts.errors import InputError
from scripts.models.encoder import DINOv2PatchEncoder
from scripts.models.weights import load_encoder_weights, set_weights
from tests.oracles import load_oracle

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def tiny(name="dinov2_vits14", **arguments):
    torch.manual_seed(0)
    options = {**TINY, "embed_dim": 96} if "vitg" in name else TINY
    encoder = DINOv2PatchEncoder(name, 56, vit_options=options, **arguments)
    for parameter in encoder.parameters():  # so that no token, scale or bias has a start of 0 or 1
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def official_checkpoint(encoder, mask_token=True):
    """Return the weights of an encoder in the format of the official repository."""
    state = {name: tensor.clone() for name, tensor in encoder.vit.state_dict().items()}
    if "reg_token" in state:
        class_position = torch.randn(1, 1, encoder.vit.embed_dim)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] -= class_position
        state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    if "vitg" in encoder.name:
        state = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for name, t in state.items()}
    if mask_token:
        state["mask_token"] = torch.zeros(1, encoder.vit.embed_dim)
    return state


def images(height=56, width=84, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


class TestForward:
    @pytest.mark.real_weights
    @pytest.mark.parametrize("size", ["448x448", "224x224", "322x448"])
    def test_patch_tokens_equal_official_ones(self, size):
        oracle = load_oracle("encoder_vits14")
        inputs = torch.from_numpy(oracle[f"image_{size}"]).float().expand(-1, 3, -1, -1)
        encoder = load_encoder_weights(DINOv2PatchEncoder())
        (tokens,) = encoder.patch_tokens(inputs)
        found = tokens.flatten(2).transpose(1, 2)[:, ::17]
        expected = torch.from_numpy(oracle[f"patch_tokens_{size}"])
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-4

    def test_scales_are_averaged(self):
        whole, x = tiny(), images(56, 84)
        at_half = F.interpolate(x, size=[28, 42], mode="bilinear", antialias=True)
        half = F.interpolate(whole(at_half), size=[4, 6], mode="bilinear", antialias=True)
        expected = F.normalize(whole(x) + F.normalize(half, dim=1), dim=1)
        for scales in ((1.0, 0.5), (0.5, 1.0)):
            encoder = tiny(scales=scales)
            torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.jit.script(encoder)(x), encoder(x))
        torch.testing.assert_close(tiny(scales=[0.5])(x), F.normalize(half, dim=1), rtol=1e-4, atol=1e-5)
        assert tiny(scales=0.5).scales == tiny(scales=[0.501]).scales == [0.5]
        assert tiny(scales=[1.25])(x).shape == whole(x).shape

    def test_mean_of_layers(self):
        encoder = tiny(layers=(0, -1), layer_reduction="mean")
        first, last = (tiny(layers=(layer,)).forward(images()) for layer in (0, -1))
        assert encoder.n_features == 32
        torch.testing.assert_close(encoder(images()), F.normalize(first + last, dim=1))

    @pytest.mark.parametrize("reduction", ["mean", "concat"])
    def test_single_layer_is_not_reduced(self, reduction):
        encoder = tiny(layers=(0,), layer_reduction=reduction)
        assert encoder.layer_reduction == "concat"
        torch.testing.assert_close(encoder(images()), tiny(layers=(0,)).forward(images()))

    @pytest.mark.parametrize("layers", [(-1,), (0, -1)])
    def test_unit_length_on_the_patch_grid(self, layers):
        encoder = tiny(layers=layers)
        embeddings = encoder(images(56, 84))
        assert embeddings.shape == (2, 32 * len(layers), 4, 6)
        assert encoder.n_features == 32 * len(layers)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 6))

    def test_layers_have_equal_weight(self):
        first, last = (tiny(layers=(layer,)).forward(images()) for layer in (0, -1))
        both = tiny(layers=(0, -1)).forward(images())
        torch.testing.assert_close(both, torch.cat([first, last], dim=1) / 2**0.5)
        swapped = tiny(layers=(-1, 0)).forward(images())
        torch.testing.assert_close(swapped, torch.cat([last, first], dim=1) / 2**0.5)

    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
    @pytest.mark.parametrize(
        "arguments", [{}, {"layers": (0, -1)}, {"layers": (0, -1), "layer_reduction": "mean", "scales": (1, 0.5)}]
    )
    def test_scripted_equals_eager(self, name, arguments):
        encoder = tiny(name, **arguments)
        scripted = torch.jit.script(encoder)
        for size in [(56, 84), (98, 56)]:
            torch.testing.assert_close(scripted(images(*size)), encoder(images(*size)), rtol=1e-5, atol=1e-6)


class TestSetWeights:
    @pytest.mark.parametrize("suffix", ["", "_reg"])
    @pytest.mark.parametrize("letter", "sblg")
    def test_official_checkpoints_load_strictly(self, letter, suffix):
        name = f"dinov2_vit{letter}14{suffix}"
        source = tiny(name)
        checkpoint = official_checkpoint(source)
        options = {**TINY, "embed_dim": 96} if letter == "g" else TINY
        target = DINOv2PatchEncoder(name, 56, vit_options=options)
        before = target(images())
        set_weights(target, checkpoint)
        assert not torch.allclose(before, source(images()), atol=1e-3)
        torch.testing.assert_close(target(images()), source(images()), rtol=1e-5, atol=1e-6)
        assert (target.vit.num_prefix_tokens, "register_tokens" in checkpoint) == ((5, True) if suffix else (1, False))

    def test_no_mask_token_is_needed(self):
        source, target = tiny(), DINOv2PatchEncoder(image_size=56, vit_options=TINY)
        set_weights(target, official_checkpoint(source, mask_token=False))
        torch.testing.assert_close(target(images()), source(images()))

    def test_checkpoint_is_not_modified(self):
        encoder = tiny("dinov2_vits14_reg")
        checkpoint = official_checkpoint(encoder)
        names = set(checkpoint)
        set_weights(encoder, checkpoint)
        assert set(checkpoint) == names

    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitg14"])
    @pytest.mark.parametrize("missing", ["norm.weight", "blocks.1.ls2.gamma", "cls_token", "pos_embed"])
    def test_missing_parameter_raises(self, name, missing):
        encoder = tiny(name)
        checkpoint = official_checkpoint(encoder)
        del checkpoint[missing]
        with pytest.raises(InputError, match=f"not the weights of {name}"):
            set_weights(encoder, checkpoint)

    def test_unknown_parameter_raises(self):
        encoder = tiny()
        checkpoint = {**official_checkpoint(encoder), "blocks.2.norm1.weight": torch.ones(32)}
        with pytest.raises(InputError, match=r"blocks\.2\.norm1\.weight"):
            set_weights(encoder, checkpoint)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("norm.weight", (31,)),
            ("blocks.0.attn.qkv.weight", (96, 31)),
            ("patch_embed.proj.weight", (32, 3, 16, 16)),
            ("pos_embed", (1, 1 + 16 * 16, 32)),
        ],
    )
    @pytest.mark.parametrize("model", ["dinov2_vits14", "dinov2_vits14_reg"])
    def test_other_shape_raises(self, model, name, shape):
        encoder = tiny(model)
        checkpoint = official_checkpoint(encoder)
        checkpoint[name] = torch.ones(shape)
        with pytest.raises(InputError, match=f"not the weights of {model}"):
            set_weights(encoder, checkpoint)

    def test_other_register_variant_raises(self):
        plain, registers = tiny("dinov2_vits14"), tiny("dinov2_vits14_reg")
        with pytest.raises(InputError, match="dinov2_vits14 expects weights with no register_tokens"):
            set_weights(plain, official_checkpoint(registers))
        with pytest.raises(InputError, match="dinov2_vits14_reg expects weights with register_tokens"):
            set_weights(registers, official_checkpoint(plain))


class TestArguments:
    @pytest.mark.parametrize("size", [(56, 60), (57, 56), (14, 0), (0, 14), (13, 13)])
    def test_partial_patches_raise(self, tiny_encoder, size):
        with pytest.raises(ValueError, match=f"multiples of 14 pixels; got {size[0]} x {size[1]}"):
            tiny_encoder(torch.zeros(1, 3, *size))

    def test_single_patch(self, tiny_encoder):
        assert tiny_encoder(images(14, 14)).shape == (2, 32, 1, 1)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"name": "dinov3_vits16"}, "dinov3_vits16"),
            ({"image_size": 0}, "image_size"),
            ({"image_size": -14}, "image_size"),
            ({"image_size": 450}, "image_size .* got 450"),
            ({"layers": ()}, "layers"),
            ({"layers": (2,)}, "layers"),
            ({"layers": (0, -3)}, "layers"),
            ({"layer_reduction": "max"}, "layer_reduction must be one of mean, concat; got 'max'"),
            ({"scales": ()}, "scales"),
            ({"scales": (1, 0)}, "scales"),
        ],
    )
    def test_wrong_arguments_raise(self, arguments, said):
        with pytest.raises(InputError, match=said):
            DINOv2PatchEncoder(**{"image_size": 56, "vit_options": TINY, **arguments})

    def test_encoder_is_frozen(self, tiny_encoder):
        tiny_encoder.train()
        assert not any(module.training for module in tiny_encoder.modules())
        torch.nn.Sequential(tiny_encoder).train()
        assert not any(module.training for module in tiny_encoder.modules())
        assert not any(parameter.requires_grad for parameter in tiny_encoder.parameters())


def recompute(encoder, checkpoint, inputs, layers):
    """Compute the official forward pass from an official checkpoint, with the blocks of timm."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    weight, bias = checkpoint["patch_embed.proj.weight"], checkpoint["patch_embed.proj.bias"]
    patches = F.conv2d((inputs - mean) / std, weight, bias, stride=14)
    batch, width, h, w = patches.shape
    grid = checkpoint["pos_embed"][0, 1:].T.reshape(1, width, 37, 37)
    if "register_tokens" in checkpoint:
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True)
    else:
        grid = F.interpolate(grid, scale_factor=((h + 0.1) / 37, (w + 0.1) / 37), mode="bicubic")
    rows = []
    for image in (patches + grid).flatten(2).transpose(1, 2):
        cls = checkpoint["cls_token"][0] + checkpoint["pos_embed"][0, :1]
        rows.append(torch.cat([cls, *checkpoint.get("register_tokens", []), image]))
    x = torch.stack(rows)
    outputs = []
    for block in encoder.vit.blocks:
        x = block(x)
        normed = F.layer_norm(x, (width,), checkpoint["norm.weight"], checkpoint["norm.bias"], eps=1e-6)
        outputs.append(F.normalize(normed[:, -h * w :], dim=2).transpose(1, 2).reshape(batch, width, h, w))
    return F.normalize(torch.cat([outputs[layer] for layer in layers], dim=1), dim=1)


class TestPlainComputation:
    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
    @pytest.mark.parametrize("size", [(56, 84), (518, 56), (532, 28)])
    def test_embeddings(self, name, size):
        source = tiny(name)
        checkpoint = official_checkpoint(source)
        encoder = DINOv2PatchEncoder(name, 56, (0, 1), vit_options=TINY)
        set_weights(encoder, checkpoint)
        inputs = images(*size, batch=1)
        torch.testing.assert_close(encoder(inputs), recompute(source, checkpoint, inputs, (0, 1)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
    def test_pretrained_positions_are_unchanged(self, name):
        encoder = tiny(name)
        positions = torch.randn(1, 37 * 37, 32)
        assert torch.equal(encoder._resample(positions, 37, 37), positions)
        assert encoder._resample(positions, 37, 36).shape == (1, 37 * 36, 32)

    def test_later_blocks_are_skipped(self):
        encoder = tiny(layers=(0,))
        encoder.vit.blocks[1].register_forward_hook(lambda *_: pytest.fail("a block behind the last named one was run"))
        encoder(images())
