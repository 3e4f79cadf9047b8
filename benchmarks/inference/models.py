"""The models that are measured, fitted as users fit them."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any

from scripts.files import atomic_write
from scripts.runtimes.cache import RuntimeCache

from .images import Images
from .processes import RowError, run_bundle


class Models:
    """Fits and quantises what is not there yet, in a folder.

    Args:
        images: what to fit on.
        folder: where models lie, and what fits leave.
        given: a model fitted with the default settings, which is copied; None to fit one.

    Raises:
        ValueError: there is another model with the default settings in the folder.
    """

    def __init__(self, images: Images, folder: Path, given: Path | None) -> None:
        self.images = images
        self.folder = folder
        self._failed: dict[Path, RowError] = {}
        own = self.path()
        if given and not own.is_file():
            with atomic_write(own) as partial:
                shutil.copyfile(given, partial)
        if given and not filecmp.cmp(given, own, shallow=False):
            raise ValueError(f"{folder} holds another model than {given}, and figures of it; give another --output.")

    def path(self, **fit: Any) -> Path:
        """Where the model of these settings lies."""
        return self.folder / ("_".join(f"{name}_{value}" for name, value in fit.items()) or "default") / "model.pt"

    def fitted(self, n_normals: int | None = None, **settings: Any) -> Path:
        """The model fitted under these settings, on all normals or so many.

        Raises:
            RowError: the fit failed.
        """
        path = self.path(**({"n_normals": n_normals} if n_normals else {}), **settings)
        if not path.is_file():
            print(f"fitting {path.parent.name}", flush=True)
            run_bundle(
                "training",
                ["train"],
                dataset_dir=self._first(n_normals) if n_normals else self.images.normals,
                validation_dir=self.images.held_out,
                output_dir=path.parent,
                embedding_store=self.folder / "embeddings",
                ckpt_path=path,
                show_progress=False,
                **settings,
            )
        return path

    def quantized(self, **settings: Any) -> Path:
        """The model fitted under these settings, with its int8 form beside it.

        Raises:
            RowError: one of the two cannot be made.
        """
        path = self.fitted(**settings)
        if path in self._failed:
            raise self._failed[path]
        if not RuntimeCache(path).is_quantized:
            print(f"quantising {path.parent.name}", flush=True)
            try:
                run_bundle(
                    "quantize",
                    ["train", "quantize"],
                    dataset_dir=self.images.normals,
                    validation_dir=self.images.held_out,
                    output_dir=path.parent,
                    ckpt_path=path,
                    show_progress=False,
                    **settings,
                )
            except RowError as error:
                self._failed[path] = error
                raise
        return path

    def _first(self, n_normals: int) -> Path:
        """A folder with so many of the normals."""
        folder = self.folder / "normals" / str(n_normals)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.images.normals.iterdir())[:n_normals]:
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
        return folder
