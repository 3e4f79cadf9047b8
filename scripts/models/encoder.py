"""Frozen vision transformers: images to patch embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..errors import InputError
from .resize import cubic_point_weights, cubic_weights, resize

LAYER_REDUCTIONS = ("mean", "concat")
PRETRAINED_SIZE = 518  # pixels per side of the images whose patches have the learned position embeddings of DINOv2

_TIMM_NAMES = {
    **{
        f"dinov2_vit{letter}14{suffix}": f"vit_{size}_patch14_{registers}dinov2"
        for letter, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
        for suffix, registers in {"": "", "_reg": "reg4_"}.items()
    },
    "rad_dino": "vit_base_patch14_dinov2",
}
# Mean and standard deviation of the pixels of chest X-rays, as in preprocessor_config.json of microsoft/rad-dino.
_PIXELS = {"rad_dino": ((0.5307,) * 3, (0.2583,) * 3)}


class EncoderBackend:
    """Base class of runtimes that compute `PatchEncoder.block_tokens`.

    Args:
        name: runtime and precision, such as ``"openvino bf16"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, images: torch.Tensor) -> None:
        """Get ready for a batch of images ``[B,3,H,W]``; called once before each is embedded."""

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens on any device, in single precision; see `PatchEncoder.block_tokens`."""
        raise NotImplementedError


class PatchEncoder(nn.Module):
    """L2-normalised patch embeddings of a frozen vision transformer of timm with learned position embeddings.

    Patch tokens equal those of timm for every size that is a multiple of the patch size p. Position embeddings are
    resampled bicubically with antialiasing.

    Args:
        name: name of the model in the settings.
        vit: timm's model, a `VisionTransformer` or an `Eva`.
        image_size: length in pixels to which the network resizes the smaller edge of an image, a multiple of p. The
            encoder itself accepts all multiples of p.
        layers: blocks whose tokens are used: indices, ``-1`` being the last one, or shares of the depth between 0 and
            1, which name the block at which this share has been computed (0.75 is block 8 of 12). Tokens of each block
            are normalised by the final norm and to unit length.
        layer_reduction: how the tokens of several blocks become one embedding, which is normalised to unit length
            again: their ``"mean"``, or ``"concat"``, which a single block always has.
        scales: relative sizes at which an image is embedded, rounded to hundredths. The embeddings of all scales are
            resized to the patches of the original image, averaged and normalised.
        mean: mean of the pixels of the model's training images, for each colour.
        std: their standard deviation.

    Attributes:
        patch_size: length p of a patch in pixels.
        backend: computes `block_tokens` in another runtime or precision; None for torch in single precision. Exports
            never use it.

    Raises:
        InputError: an ``image_size`` that is not a positive multiple of p, an unknown layer or reduction, or a scale
            that is not positive.
    """

    __jit_unused_properties__ = ("backend_name",)

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        vit: Any,
        image_size: int = 448,
        layers: float | Sequence[float] = (-1,),
        layer_reduction: str = "concat",
        scales: float | Sequence[float] = (1.0,),
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        self.name = name
        self.vit = vit
        self.patch_size = int(vit.patch_embed.patch_size[0])
        check_image_size(name, image_size, self.patch_size)
        self.image_size = int(image_size)
        self.layers = block_indices(layers, len(vit.blocks))
        if layer_reduction not in LAYER_REDUCTIONS:
            raise InputError(f"layer_reduction must be one of {', '.join(LAYER_REDUCTIONS)}; got {layer_reduction!r}.")
        self.layer_reduction = layer_reduction if len(self.layers) > 1 else "concat"
        scales = [scales] if isinstance(scales, int | float) else list(scales)
        self.percents = [round(100 * scale) for scale in scales]
        self.scales = [percent / 100 for percent in self.percents]
        if not self.percents or min(self.percents) < 1:
            raise InputError(f"scales must be positive shares of image_size, such as [1.0, 0.75]; got {scales}.")
        self.n_features = vit.embed_dim * (len(self.layers) if self.layer_reduction == "concat" else 1)
        self.grid = [int(side) for side in vit.patch_embed.grid_size]  # of the learned position embeddings
        has_positions = vit.pos_embed is not None
        # Class and register tokens may have positions of their own, before those of the patches.
        self.n_prefix_positions = int(vit.num_prefix_tokens) if has_positions and not vit.no_embed_class else 0
        self.weights_digest = ""  # empty while the weights are random
        self.backend: EncoderBackend | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def backend_name(self) -> str:
        """Runtime and precision of the blocks."""
        return self.backend.name if self.backend is not None else "torch fp32"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed the patches of images.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of the patch size p.

        Returns:
            l2-normalised embeddings ``[B,D,H/p,W/p]``, D the features of one layer or, concatenated, of all.

        Raises:
            ValueError: H or W is not a positive multiple of p.
        """
        if not torch.jit.is_scripting() and self.backend is not None:
            self.backend.prepare(images)
        embeddings = [self._at_scale(images, percent) for percent in self.percents]
        return embeddings[0] if len(embeddings) == 1 else F.normalize(torch.stack(embeddings).sum(0), dim=1)

    def _at_scale(self, images: torch.Tensor, percent: int) -> torch.Tensor:
        """Embed images resized to a percentage of their size, ``[B,3,H,W]`` -> ``[B,D,H/p,W/p]``."""
        h, w = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        if percent != 100:
            scaled_h, scaled_w = (h * percent + 99) // 100, (w * percent + 99) // 100
            images = resize(images, scaled_h * self.patch_size, scaled_w * self.patch_size)
        embeddings = [F.normalize(tokens, dim=1) for tokens in self.patch_tokens(images)]
        reduced = torch.stack(embeddings).mean(0) if self.layer_reduction == "mean" else torch.cat(embeddings, dim=1)
        reduced = F.normalize(reduced, dim=1)
        return reduced if percent == 100 else F.normalize(resize(reduced, h, w), dim=1)

    @torch.jit.export
    def patch_tokens(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute patch tokens after the final norm, not l2-normalised.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of the patch size p.

        Returns:
            A ``[B,D,H/p,W/p]`` tensor for each entry of ``layers``.

        Raises:
            ValueError: H or W is not a positive multiple of p.
        """
        height, width, p = images.shape[-2], images.shape[-1], self.patch_size
        if height < p or width < p or height % p != 0 or width % p != 0:
            raise ValueError(
                f"The encoder takes images whose sides are multiples of {p} pixels; got {height} x {width}."
            )
        h, w = height // p, width // p
        positions = self.patch_positions(h, w)
        if torch.jit.is_scripting() or self.backend is None:
            tokens = self.block_tokens(images, positions)
        else:
            tokens = [layer_tokens.to(images) for layer_tokens in self.backend(images, positions)]
        return [layer_tokens.transpose(1, 2).reshape(images.shape[0], -1, h, w) for layer_tokens in tokens]

    def block_tokens(self, images: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Run patch embedding and transformer blocks in torch; the only method that a backend replaces.

        Args:
            images: ``[B,3,H,W]`` in [0,1], H and W multiples of the patch size p.
            positions: what the model knows of the places of the patches, ``[1,H/p*W/p,P]``, see `patch_positions`.

        Returns:
            Patch tokens after the final norm, ``[B,H/p*W/p,D]`` for each entry of ``layers``.
        """
        patches = self.vit.patch_embed.proj((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        patches = self._add_positions(self.vit.patch_embed.norm(patches), positions)
        x = self.vit.norm_pre(self._with_prefix(patches))
        block_outputs: dict[int, torch.Tensor] = {}
        for index, block in enumerate(self.vit.blocks):
            if index <= max(self.layers):
                x = block(x, self._rotation(positions, index))
                if index in self.layers:
                    block_outputs[index] = x
        return [self.vit.norm(block_outputs[index])[:, self.vit.num_prefix_tokens :] for index in self.layers]

    def patch_positions(self, h: int, w: int) -> torch.Tensor:
        """Return position embeddings ``[1,h*w,D]`` of an image of ``h`` by ``w`` patches."""
        return self._resample(self.vit.pos_embed[:, self.n_prefix_positions :], h, w)

    def _add_positions(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Add position embeddings ``[1,N,D]`` to patches ``[B,N,D]``."""
        return patches + positions

    def _rotation(self, positions: torch.Tensor, index: int) -> torch.Tensor | None:
        """Return the second argument of a block: the rotation of an `Eva`, the mask of a `VisionTransformer`: None."""
        return None

    def _with_prefix(self, patches: torch.Tensor) -> torch.Tensor:
        """Prepend the class, distillation and register tokens that exist: ``[B,N,D]`` -> ``[B,R+N,D]``."""
        tokens: list[torch.Tensor] = []
        if self.vit.cls_token is not None:
            tokens.append(self.vit.cls_token)
        if hasattr(self.vit, "dist_token"):
            tokens.append(self.vit.dist_token)
        if self.vit.reg_token is not None:
            tokens.append(self.vit.reg_token)
        if len(tokens) == 0:
            return patches
        prefix = torch.cat(tokens, dim=1)
        if self.vit.pos_embed is not None and self.n_prefix_positions > 0:
            prefix = prefix + self.vit.pos_embed[:, : self.n_prefix_positions]
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)

    def _resample(self, positions: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """Resample position embeddings of the learned grid ``[1,G,D]`` to ``[1,h*w,D]``."""
        rows, columns = self._position_weights(h, w, positions)
        in_rows = (rows @ positions.reshape(self.grid[0], -1)).reshape(h, self.grid[1], -1)
        return (columns @ in_rows).reshape(1, h * w, -1)

    def _position_weights(self, h: int, w: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the resampling along rows and columns, see `cubic_weights`."""
        return cubic_weights(self.grid[0], h, like), cubic_weights(self.grid[1], w, like)

    def train(self, mode: bool = True) -> "PatchEncoder":
        """Keep evaluation mode: the encoder is frozen."""
        return super().train(False)


class DINOv2PatchEncoder(PatchEncoder):
    """Patch embeddings of DINOv2 (Oquab et al., 2023, arXiv 2304.07193), or of RAD-DINO (arXiv 2401.10815).

    Patch tokens equal those of the official implementation. Position embeddings are resampled bicubically as in the
    official code: with scale ``(n + 0.1) / 37`` without antialiasing, or to ``n`` with antialiasing in the models with
    register tokens.

    Args:
        name: ``dinov2_vit{s,b,l,g}14`` with or without ``_reg``, or ``rad_dino``, a ViT-B/14 of chest X-rays.
        image_size: see `PatchEncoder`, as are the next three.
        layers: see there.
        layer_reduction: see there.
        scales: see there.
        vit_options: overrides of timm's model arguments (``depth``, ``embed_dim``, ...), for small test models.

    Raises:
        InputError: an unknown ``name``; see also `PatchEncoder`.
    """

    def __init__(
        self,
        name: str = "dinov2_vits14",
        image_size: int = 448,
        layers: float | Sequence[float] = (-1,),
        layer_reduction: str = "concat",
        scales: float | Sequence[float] = (1.0,),
        vit_options: Mapping[str, Any] | None = None,
    ) -> None:
        if name not in _TIMM_NAMES:
            raise InputError(f"The encoder's name must be one of {', '.join(_TIMM_NAMES)}; got {name!r}.")
        vit = timm.create_model(
            _TIMM_NAMES[name], pretrained=False, num_classes=0, img_size=PRETRAINED_SIZE, **(vit_options or {})
        )
        mean, std = _PIXELS.get(name, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        super().__init__(name, vit, image_size, layers, layer_reduction, scales, mean, std)
        self.has_registers = vit.reg_token is not None

    def _position_weights(self, h: int, w: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the official resampling along rows and columns."""
        grid = self.grid[0]
        if self.has_registers:
            return cubic_weights(grid, h, like), cubic_weights(grid, w, like)
        same = 1 // (1 + abs(h - grid) + abs(w - grid))  # 1 for the learned grid, which is not resampled
        offset = 0.1 * (1 - same)
        return (
            cubic_point_weights(grid, h, (h + offset) / grid, like),
            cubic_point_weights(grid, w, (w + offset) / grid, like),
        )


def check_image_size(name: str, image_size: int, patch_size: int) -> None:
    """Check that an image size is a positive multiple of the patch size of a model.

    Raises:
        InputError: it is not.
    """
    below = image_size // patch_size * patch_size
    if image_size != below or image_size < patch_size:
        near = [size for size in (below, below + patch_size) if size > 0]
        raise InputError(
            f"image_size must be a multiple of {patch_size}, the patch size of {name}, such as "
            f"{' or '.join(map(str, near)) if near else patch_size}; got {image_size}."
        )


def block_indices(layers: float | Sequence[float], depth: int) -> list[int]:
    """Resolve blocks to indices from 0.

    Args:
        layers: indices, negative ones from the end, or shares of the depth in (0,1).
        depth: number of blocks.

    Raises:
        InputError: a block does not exist.
    """
    layers = [layers] if isinstance(layers, int | float) else list(layers)
    is_share = [isinstance(layer, float) and 0 < layer < 1 for layer in layers]
    indices = [
        max(round(layer * depth), 1) - 1 if share else layer for layer, share in zip(layers, is_share, strict=True)
    ]
    if not indices or not all(isinstance(index, int) and -depth <= index < depth for index in indices):
        raise InputError(
            f"layers must name blocks between {-depth} and {depth - 1}, or shares of the depth between 0 and 1; "
            f"got {tuple(layers)}."
        )
    return [int(index) % depth for index in indices]
