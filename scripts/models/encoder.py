"""The frozen DINOv2 encoder: images to patch embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from ..errors import InputError, reason_of
from .resize import cubic_point_weights, cubic_weights, resize

PATCH_SIZE = 14
LAYER_REDUCTIONS = ("mean", "concat")
PRETRAINED_GRID = 37  # patches per side of the learned position embeddings of DINOv2 (518 px)

_TIMM_NAMES = {
    f"dinov2_vit{letter}14{suffix}": f"vit_{size}_patch14_{registers}dinov2"
    for letter, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
    for suffix, registers in {"": "", "_reg": "reg4_"}.items()
}


class EncoderBackend:
    """Base class of runtimes that compute `DINOv2PatchEncoder.block_tokens`.

    Args:
        name: runtime and precision, such as ``"openvino bf16"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, images: torch.Tensor) -> None:
        """Get ready for a batch of images ``[B,3,H,W]``; called once before each is embedded."""

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens on any device, in single precision; see `DINOv2PatchEncoder.block_tokens`."""
        raise NotImplementedError


class DINOv2PatchEncoder(nn.Module):
    """L2-normalised DINOv2 patch embeddings (Oquab et al., 2023, arXiv 2304.07193).

    Patch tokens equal those of the official implementation. Position embeddings are resampled bicubically as in the
    official code: with scale ``(n + 0.1) / 37`` without antialiasing, or to ``n`` with antialiasing in the models with
    register tokens.

    Args:
        name: official model name, ``dinov2_vit{s,b,l,g}14`` with or without ``_reg``.
        image_size: length in pixels to which the network resizes the smaller edge of an image, a multiple of 14.
            The encoder itself accepts all multiples of 14.
        layers: indices of the blocks whose tokens are used; ``(-1,)`` is the last one. Tokens of each block are
            normalised by the final norm and to unit length.
        layer_reduction: how the tokens of several blocks become one embedding, which is normalised to unit length
            again: their ``"mean"``, or ``"concat"``, which a single block always has.
        scales: relative sizes at which an image is embedded, rounded to hundredths. The embeddings of all scales are
            resized to the patches of the original image, averaged and normalised.
        vit_options: overrides of timm's model arguments (``depth``, ``embed_dim``, ...), for small test models.

    Attributes:
        backend: computes `block_tokens` in another runtime or precision; None for torch in single precision. Exports
            never use it.

    Raises:
        InputError: an unknown ``name``, an ``image_size`` that is not a positive multiple of 14, an unknown layer
            or reduction, or a scale that is not positive.
    """

    __jit_unused_properties__ = ("backend_name",)

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str = "dinov2_vits14",
        image_size: int = 448,
        layers: int | Sequence[int] = (-1,),
        layer_reduction: str = "concat",
        scales: float | Sequence[float] = (1.0,),
        vit_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if name not in _TIMM_NAMES:
            raise InputError(f"The encoder's name must be one of {', '.join(_TIMM_NAMES)}; got {name!r}.")
        if image_size < PATCH_SIZE or image_size % PATCH_SIZE:
            raise InputError(f"image_size must be a positive multiple of {PATCH_SIZE}, such as 448; got {image_size}.")
        self.name = name
        self.image_size = int(image_size)
        vit: Any = timm.create_model(
            _TIMM_NAMES[name],
            pretrained=False,
            num_classes=0,
            img_size=PRETRAINED_GRID * PATCH_SIZE,
            **(vit_options or {}),
        )
        self.vit = vit
        depth = len(vit.blocks)
        layers = [layers] if isinstance(layers, int) else list(layers)
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise InputError(f"layers must name blocks between {-depth} and {depth - 1}; got {tuple(layers)}.")
        self.layers = [layer % depth for layer in layers]
        if layer_reduction not in LAYER_REDUCTIONS:
            raise InputError(f"layer_reduction must be one of {', '.join(LAYER_REDUCTIONS)}; got {layer_reduction!r}.")
        self.layer_reduction = layer_reduction if len(self.layers) > 1 else "concat"
        scales = [scales] if isinstance(scales, int | float) else list(scales)
        self.percents = [round(100 * scale) for scale in scales]
        self.scales = [percent / 100 for percent in self.percents]
        if not self.percents or min(self.percents) < 1:
            raise InputError(f"scales must be positive shares of image_size, such as [1.0, 0.75]; got {scales}.")
        self.n_features = vit.embed_dim * (len(self.layers) if self.layer_reduction == "concat" else 1)
        self.has_registers = vit.reg_token is not None
        self.weights_digest = ""  # empty while the weights are random
        self.backend: EncoderBackend | None = None
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def backend_name(self) -> str:
        """Runtime and precision of the blocks."""
        return self.backend.name if self.backend is not None else "torch fp32"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed the patches of images.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of 14.

        Returns:
            l2-normalised embeddings ``[B,D,H/14,W/14]``, D the features of one layer or, concatenated, of all.

        Raises:
            ValueError: H or W is not a positive multiple of 14.
        """
        if not torch.jit.is_scripting() and self.backend is not None:
            self.backend.prepare(images)
        embeddings = [self._at_scale(images, percent) for percent in self.percents]
        return embeddings[0] if len(embeddings) == 1 else F.normalize(torch.stack(embeddings).sum(0), dim=1)

    def _at_scale(self, images: torch.Tensor, percent: int) -> torch.Tensor:
        """Embed images resized to a percentage of their size, ``[B,3,H,W]`` -> ``[B,D,H/14,W/14]``."""
        h, w = images.shape[-2] // 14, images.shape[-1] // 14
        if percent != 100:
            scaled_h, scaled_w = (h * percent + 99) // 100, (w * percent + 99) // 100
            images = resize(images, scaled_h * 14, scaled_w * 14)
        embeddings = [F.normalize(tokens, dim=1) for tokens in self.patch_tokens(images)]
        reduced = torch.stack(embeddings).mean(0) if self.layer_reduction == "mean" else torch.cat(embeddings, dim=1)
        reduced = F.normalize(reduced, dim=1)
        return reduced if percent == 100 else F.normalize(resize(reduced, h, w), dim=1)

    @torch.jit.export
    def patch_tokens(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens after the final norm, not l2-normalised.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of 14.

        Returns:
            A ``[B,D,H/14,W/14]`` tensor for each entry of ``layers``.

        Raises:
            ValueError: H or W is not a positive multiple of 14.
        """
        height, width = images.shape[-2], images.shape[-1]
        if height < 14 or width < 14 or height % 14 != 0 or width % 14 != 0:
            raise ValueError(
                f"The encoder takes images whose sides are multiples of 14 pixels; got {height} x {width}."
            )
        h, w = height // 14, width // 14
        positions = self.patch_positions(h, w)
        if torch.jit.is_scripting() or self.backend is None:
            tokens = self.block_tokens(images, positions)
        else:
            tokens = [layer_tokens.to(images) for layer_tokens in self.backend(images, positions)]
        return [layer_tokens.transpose(1, 2).reshape(images.shape[0], -1, h, w) for layer_tokens in tokens]

    def block_tokens(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Run patch embedding and transformer blocks in torch; the only method that a backend replaces.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of 14.
            positions: position embeddings ``[1,H/14*W/14,D]`` of the patches, see `patch_positions`.

        Returns:
            Patch tokens after the final norm, ``[B,H/14*W/14,D]`` for each entry of ``layers``.
        """
        patches = self.vit.patch_embed.proj((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        x = self._with_prefix(patches + positions)
        block_outputs: dict[int, torch.Tensor] = {}
        for index, block in enumerate(self.vit.blocks):
            if index <= max(self.layers):
                x = block(x)
                if index in self.layers:
                    block_outputs[index] = x
        return [self.vit.norm(block_outputs[index])[:, self.vit.num_prefix_tokens :] for index in self.layers]

    def patch_positions(self, h: int, w: int) -> torch.Tensor:
        """Return position embeddings ``[1,h*w,D]`` of an image of ``h`` by ``w`` patches."""
        positions = self.vit.pos_embed
        if not self.has_registers:
            positions = positions[:, 1:]
        return self._resample(positions, h, w)

    def _with_prefix(self, patches: torch.Tensor) -> torch.Tensor:
        """Prepend class and register tokens: patches ``[B,N,D]`` -> ``[B,1+R+N,D]``."""
        cls_token = self.vit.cls_token
        if not self.has_registers:  # timm adds this position when it loads a model with registers
            cls_token = cls_token + self.vit.pos_embed[:, :1]
        tokens = [cls_token.expand(patches.shape[0], -1, -1)]
        registers = self.vit.reg_token
        if registers is not None:
            tokens.append(registers.expand(patches.shape[0], -1, -1))
        tokens.append(patches)
        return torch.cat(tokens, dim=1)

    def _resample(self, positions: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """Resample position embeddings ``[1,37*37,D]`` to ``[1,h*w,D]``."""
        grid = 37
        if self.has_registers:
            rows, columns = cubic_weights(grid, h, positions), cubic_weights(grid, w, positions)
        else:
            same = 1 // (1 + abs(h - grid) + abs(w - grid))  # 1 for the learned grid, which is not resampled
            offset = 0.1 * (1 - same)
            rows = cubic_point_weights(grid, h, (h + offset) / grid, positions)
            columns = cubic_point_weights(grid, w, (w + offset) / grid, positions)
        in_rows = (rows @ positions.reshape(grid, -1)).reshape(h, grid, -1)
        return (columns @ in_rows).reshape(1, h * w, -1)

    @torch.jit.unused
    def load_official_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Load a checkpoint of the official repository, strictly.

        Args:
            state_dict: parameters under the official names (``blocks.0.attn.qkv.weight``, ...).

        Raises:
            InputError: a parameter is missing, unknown, or of another shape.
        """
        expected = "register_tokens" if self.has_registers else "no register_tokens"
        if ("register_tokens" in state_dict) != self.has_registers:
            raise InputError(f"{self.name} expects weights with {expected}; choose the weights of that model.")
        for name, shape in (
            ("patch_embed.proj.weight", self.vit.patch_embed.proj.weight.shape),
            ("pos_embed", (1, 1 + PRETRAINED_GRID**2, self.vit.embed_dim)),
        ):  # timm would resample these two
            if name in state_dict and state_dict[name].shape != torch.Size(shape):
                raise InputError(
                    f"These are not the weights of {self.name}: {name} is of shape {tuple(state_dict[name].shape)}, "
                    f"expected {tuple(shape)}."
                )
        try:
            self.vit.load_state_dict(checkpoint_filter_fn(dict(state_dict), self.vit), strict=True)
        except (RuntimeError, KeyError) as error:
            raise InputError(f"These are not the weights of {self.name}: {reason_of(error, 300)}") from error

    def train(self, mode: bool = True) -> "DINOv2PatchEncoder":
        """Keep evaluation mode: the encoder is frozen."""
        return super().train(False)
