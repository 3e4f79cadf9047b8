"""The network: images to calibrated anomaly maps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.foreground import MIN_SIDE
from ..errors import InputError, printable
from .calibration import ScoreCalibration, check_target_fpr, normalize_scores
from .encoder import PatchEncoder
from .fitted_state import REMEDY, check_fitted, encoder_digest, fitted_digest, fitted_settings, is_extra_state
from .licences import licence_of
from .mixture import SCORE_KINDS, DirichletProcessMixture
from .resize import gaussian_weights, linear_weights, repeat_last


class PatchOutput(NamedTuple):
    """An anomaly map, and the component and log-likelihood of each patch.

    Attributes:
        anomaly_map: calibrated scores of the pixels ``[B,1,H,W]``.
        components: index of the most probable component of each patch ``[B,h*w]``.
        log_likelihood: log-likelihood of each patch ``[B,h*w]``, in nats.
    """

    anomaly_map: torch.Tensor
    components: torch.Tensor
    log_likelihood: torch.Tensor


class PatchAnomalyNetwork(nn.Module):
    """Anomaly detection by the likelihood of patch embeddings (Schulthess & Konukoglu, 2025, arXiv 2509.19997).

    Images of any size are resized so that the smaller edge is the encoder's ``image_size``, padded to whole patches and
    embedded. The mixture scores each patch, and the scores are resized bilinearly to the pixels. The state dict holds
    all fitted state and the settings of the fit; loading it into a network with other settings raises.

    Args:
        encoder: computes patch embeddings.
        mixture: the model of normal embeddings.
        score: kind of anomaly score, see `DirichletProcessMixture.anomaly_score`.
        target_fpr: share of normal patches that reach the decision threshold.
        patch_smoothing: standard deviation of a Gaussian that smooths the scores of a slice's patches, in patches; 0
            for none.
        views: axes of volumes across each of which it is fitted on slices; None for one axis, which it does not know.

    Attributes:
        acquisition: DICOM series that it was fitted on, see `scripts.data.acquisition.fitted_acquisition`; None if not
            known.
        field_of_view_mm: length that the smaller edge of a slice showed in the fit, see
            `scripts.data.SetFieldOfViewd`; None if it was not set.

    Raises:
        InputError: a score that the mixture does not have, or a target or smoothing out of range.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        mixture: DirichletProcessMixture,
        score: str = "cosine",
        target_fpr: float = 0.01,
        patch_smoothing: float = 0.0,
        views: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if score not in mixture.score_kinds:
            raise InputError(f"score must be one of {', '.join(mixture.score_kinds)}; got {score!r}.")
        check_target_fpr(target_fpr)
        if not patch_smoothing >= 0:
            raise InputError(f"patch_smoothing must be a number of patches, at least 0; got {patch_smoothing}.")
        if encoder.n_features != mixture.n_features:
            raise InputError(
                f"n_features of the mixture must be the encoder's {encoder.n_features}; got {mixture.n_features}."
            )
        self.encoder = encoder
        self.mixture = mixture
        self.calibration = ScoreCalibration()
        self.score = score
        self.score_index = SCORE_KINDS.index(score)
        self.target_fpr = float(target_fpr)
        self.patch_smoothing = float(patch_smoothing)
        self.image_size = encoder.image_size
        self.views = sorted(views or ())
        self.patch_size = encoder.patch_size
        self.min_side = MIN_SIDE
        self.acquisition: dict[str, Any] | None = None
        self.field_of_view_mm: float | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute calibrated anomaly maps: 0 is a typical normal patch, 1 the decision threshold.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3, H and W at least 14; or volumes ``[B,C,H,W,D]``, scored slice by
                slice along the last axis.

        Returns:
            ``[B,1,H,W]`` or ``[B,1,H,W,D]``.

        Raises:
            RuntimeError: the network is not fitted or not calibrated.
            ValueError: images of another shape.
        """
        if images.dim() == 5:
            return torch.stack([self.anomaly_map(images[..., index]) for index in range(images.shape[4])], dim=4)
        return self.anomaly_map(images)

    def anomaly_map(self, images: torch.Tensor) -> torch.Tensor:
        """Compute calibrated maps ``[B,1,H,W]`` of images ``[B,C,H,W]``; see `forward`."""
        median, threshold = self.score_range()
        scores = self.patch_scores(self.embed(images), self.score)
        return self.to_pixels(normalize_scores(scores, median, threshold), images.shape[2], images.shape[3])

    @torch.jit.unused
    def score_patches(self, images: torch.Tensor) -> PatchOutput:
        """Score images, and return the components and likelihoods of their patches too.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3.

        Returns:
            The map of `anomaly_map`, and for each patch its component and log-likelihood.

        Raises:
            RuntimeError: the network is not fitted or not calibrated.
            ValueError: images of another shape.
        """
        median, threshold = self.score_range()
        embeddings = self.embed(images)
        components, log_likelihood = self.mixture(embeddings.permute(0, 2, 3, 1).flatten(0, 2))
        if self.score == "negative_log_likelihood":
            scores = self.smooth(-log_likelihood.reshape(len(images), 1, *embeddings.shape[2:]))
        else:
            scores = self.patch_scores(embeddings, self.score)
        anomaly_map = self.to_pixels(normalize_scores(scores, median, threshold), images.shape[2], images.shape[3])
        return PatchOutput(anomaly_map, components.reshape(len(images), -1), log_likelihood.reshape(len(images), -1))

    def score_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the raw scores that become 0 and 1, see `ScoreCalibration.score_range`.

        Raises:
            RuntimeError: the network is not fitted or not calibrated.
        """
        if not self.calibration.is_fitted(self.score_index):
            raise RuntimeError(
                "This network is not fitted and calibrated. Run `python -m monai.bundle run training --config_file "
                "configs/train.json` on normal images and load the models/model.pt that it writes."
            )
        return self.calibration.score_range(self.score_index, self.target_fpr)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Compute patch embeddings of images of any size.

        Args:
            images: ``[B,C,H,W]`` in [0,1], C 1 or 3.

        Returns:
            ``[B,D,h,w]`` on the patch grid of the resized and padded image.

        Raises:
            ValueError: another number of channels, or a side of less than 14 pixels.
        """
        if images.dim() != 4 or (images.shape[1] != 1 and images.shape[1] != 3):
            raise ValueError(f"Images must be of shape [B, 1 or 3, H, W]; got {list(images.shape)}.")
        if images.shape[2] < self.min_side or images.shape[3] < self.min_side:
            raise ValueError(
                f"Images must have at least {self.min_side} x {self.min_side} pixels; got {list(images.shape[2:])}."
            )
        return self.encoder(self.to_patches(images))

    def to_patches(self, images: torch.Tensor) -> torch.Tensor:
        """Resize images ``[B,C,H,W]``, repeat the border to whole patches, and make them RGB ``[B,3,p*h,p*w]``."""
        channels, height, width = images.shape[1], images.shape[2], images.shape[3]
        resized = self.resized(height, width)
        rows = repeat_last(linear_weights(height, resized[0], images), self.patch_size)
        columns = repeat_last(linear_weights(width, resized[1], images), self.patch_size)
        colours = linear_weights(channels, 3, images)  # repeats one channel, keeps three
        return (colours @ (rows @ images @ columns.T).flatten(2)).unflatten(2, (rows.shape[0], columns.shape[0]))

    def patch_scores(self, embeddings: torch.Tensor, kind: str, active: torch.Tensor | None = None) -> torch.Tensor:
        """Compute raw anomaly scores ``[B,1,h,w]`` of embeddings ``[B,D,h,w]``; see `DirichletProcessMixture`."""
        b, d, h, w = embeddings.shape
        samples = embeddings.permute(0, 2, 3, 1).reshape(-1, d)
        return self.smooth(self.mixture.anomaly_score(samples, kind, active).reshape(b, 1, h, w))

    def smooth(self, scores: torch.Tensor) -> torch.Tensor:
        """Smooth the scores ``[...,h,w]`` of patches by ``patch_smoothing``."""
        if self.patch_smoothing == 0:
            return scores
        rows = gaussian_weights(scores.shape[-2], self.patch_smoothing, scores)
        return rows @ scores @ gaussian_weights(scores.shape[-1], self.patch_smoothing, scores).T

    def exceeds_threshold(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the mask ``[B,1,h,w]`` of embeddings ``[B,D,h,w]`` that reach the decision threshold."""
        median, threshold = self.score_range()
        return normalize_scores(self.patch_scores(embeddings, self.score), median, threshold) >= 1

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a resized image before padding; the smaller edge is ``image_size``."""
        shorter = (height + width - abs(height - width)) // 2  # an export would keep one branch only
        return (
            (height * self.image_size + shorter // 2) // shorter,
            (width * self.image_size + shorter // 2) // shorter,
        )

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches of a slice, after resizing and padding to whole patches."""
        resized = self.resized(height, width)
        return -(-resized[0] // self.patch_size), -(-resized[1] // self.patch_size)

    def to_pixels(self, scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Upsample patch scores ``[B,1,h,w]`` to the input size ``[B,1,H,W]`` and crop the padding."""
        h, w = scores.shape[2], scores.shape[3]
        resized = self.resized(height, width)
        p = self.patch_size
        rows = linear_weights(resized[0], height, scores) @ linear_weights(h, h * p, scores)[: resized[0]]
        columns = linear_weights(resized[1], width, scores) @ linear_weights(w, w * p, scores)[: resized[1]]
        return rows @ scores @ columns.T

    def __prepare_scriptable__(self) -> "PatchAnomalyNetwork":
        """Let `torch.jit.script` compile this network only if it is fitted.

        Raises:
            InputError: the network is not fitted or not calibrated.
        """
        try:
            self.score_range()
        except RuntimeError as error:
            raise InputError(str(error)) from error
        return self

    def settings(self) -> dict[str, Any]:
        """Return the settings that the fit depends on, by config id if there is one."""
        return {
            "encoder_name": self.encoder.name,
            "layers": list(self.encoder.layers),
            "layer_reduction": self.encoder.layer_reduction,
            "image_size": self.image_size,
            "scales": list(self.encoder.scales),
            "n_components": self.mixture.n_components,
            "n_features": self.mixture.n_features,
            "covariance_type": self.mixture.covariance_type,
            **({"rank": self.mixture.rank} if self.mixture.covariance_type == "low_rank" else {}),
            "distribution": self.mixture.distribution,
            "patch_smoothing": self.patch_smoothing,
            **({"views": list(self.views)} if self.views else {}),
            **({"field_of_view_mm": self.field_of_view_mm} if self.field_of_view_mm else {}),
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Return settings, licence, acquisition and digests of encoder weights and all fitted state, to be saved."""
        tensors, settings, claimed = self._tensors(), self.settings(), self.encoder.weights_digest
        digest = fitted_digest(tensors, encoder_digest(tensors), settings, claimed, self.acquisition)
        known = {} if self.acquisition is None else {"acquisition": self.acquisition}
        licence = str(licence_of(self.encoder.name))
        return {"settings": settings, "weights_digest": claimed, "digest": digest, "encoder_licence": licence, **known}

    def set_extra_state(self, state: Any) -> None:
        """Set a saved state that `load_state_dict` has checked.

        Raises:
            InputError: the settings of the fit differ.
        """
        self._check_settings(state)
        self.encoder.weights_digest = state["weights_digest"]
        self.acquisition = state.get("acquisition")
        self.field_of_view_mm = fitted_settings(state)["field_of_view_mm"]

    @torch.jit.unused
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a complete state dict or none of it. Models of 0.4 and earlier have no digest to check.

        Args:
            state_dict: that of a `PatchAnomalyNetwork`.
            strict: ignored; every entry is needed.
            assign: see `torch.nn.Module`.

        Returns:
            See `torch.nn.Module`.

        Raises:
            InputError: the settings of the fit differ, or the state is of another network or was modified.
        """
        if not isinstance(state_dict, Mapping):
            raise InputError(f"A fitted model holds tensors by name; got {type(state_dict).__name__}: {REMEDY}.")
        self._check_settings(state_dict.get("_extra_state"))
        weights_digest = check_fitted(state_dict, {**self._tensors(), "_extra_state": None})
        loaded = super().load_state_dict(state_dict, strict, assign)
        self.encoder.backend = None  # its int8 form has other decision thresholds than the state
        self.encoder.weights_digest = weights_digest
        return loaded

    @torch.jit.unused
    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return all entries of the state dict but the extra state."""
        tensors: dict[str, torch.Tensor] = {}
        for name, part in self.named_children():
            part.state_dict(destination=tensors, prefix=f"{name}.")
        return tensors

    @torch.jit.unused
    def _check_settings(self, state: Any) -> None:
        if not is_extra_state(state):
            raise InputError(f"The fitted model does not say which settings it was fitted with; {REMEDY}.")
        saved = fitted_settings(state)
        settings = {"views": None, **self.settings()}
        settings.pop("field_of_view_mm", None)  # measured by the fit, not a setting of this network
        different = [name for name, value in settings.items() if saved.get(name) != value]
        if different:
            fitted, own = ({name: _shown(each.get(name)) for name in different} for each in (saved, settings))
            flags = " ".join(f"--{name} {value.replace(' ', '')}" for name, value in fitted.items())
            raise InputError(
                f"The checkpoint was fitted with {_listed(fitted)}, this network has {_listed(own)}; give the same "
                f"values (as `{flags}`) or fit again."
            )


def _shown(value: Any) -> str:
    return printable("off" if value is None else str(value))


def _listed(settings: Mapping[str, Any]) -> str:
    return " and ".join(f"{name}={value}" for name, value in settings.items())
