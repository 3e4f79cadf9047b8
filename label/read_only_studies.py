"""MONAI Label's folder of studies with read-only images.

The images are links to originals, and MONAI Label writes and deletes through links. This module is installed in the
folder of the app, next to `request_rules`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from label_files import label_error
from monailabel.datastore.local import LocalDatastore
from request_rules import name_error


class ReadOnlyStudies(LocalDatastore):
    """Folder of studies that changes no file outside itself and never replaces an image.

    A lock serialises requests and the thread that watches the folder, as both change the list of images.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._changing = threading.RLock()
        super().__init__(*args, **kwargs)

    def refresh(self) -> None:
        """Update the list of images and labels from the folder."""
        with self._changing:
            super().refresh()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image under a new name.

        Args:
            image_id: name of the image; if empty, that of the file.
            image_filename: file to copy.
            image_info: further information to store.

        Returns:
            Name of the image.

        Raises:
            HTTPException: the name is taken or invalid, or MONAI Label does not support the file format.
        """
        name, suffix = self._to_id(Path(image_filename).name)
        image_id = image_id or name
        if wrong := name_error("image", image_id):
            raise HTTPException(422, wrong)
        if f"*{suffix}" not in self._extensions:
            raise HTTPException(422, f"An image must be a file of {', '.join(self._extensions)}; got {suffix!r}.")
        folder = Path(self._datastore.image_path())
        taken = {self._to_id(entry.name)[0] for entry in folder.iterdir()}
        place = folder / self._filename(image_id, suffix)
        try:
            if image_id in taken:
                raise FileExistsError
            place.open("xb").close()  # fails for an existing file or link, without a race
        except FileExistsError:
            raise HTTPException(
                403, f"There is an image {image_id!r} already, and no request replaces an image; give a new name."
            ) from None
        try:
            with self._changing:
                return super().add_image(image_id, image_filename, image_info)
        except BaseException:
            place.unlink(missing_ok=True)
            raise

    def remove_image(self, image_id: str) -> None:
        """Remove an uploaded image and its labels.

        Args:
            image_id: name of the image.

        Raises:
            HTTPException: there is no such image, or it is an original.
        """
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            raise HTTPException(404, f"There is no image {image_id!r} among the studies.")
        place = Path(self._datastore.image_path()) / self._filename(image_id, entry.image.ext)
        if place.is_symlink() or not self._holds(place):
            raise HTTPException(
                403, f"The image {image_id!r} is an original, which no request deletes; only uploaded images can be."
            )
        with self._changing:
            super().remove_image(image_id)
            self.refresh()  # without waiting for the watcher of the folder

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label of an image.

        Args:
            image_id: name of the image.
            label_filename: file to copy.
            label_tag: its folder in the folder of labels.
            label_info: further information to store.

        Returns:
            Name of the label.

        Raises:
            HTTPException: there is no such image, the file is no label of it, or the label would be written outside
                the folder of labels.
        """
        if image_id not in self._datastore.objects:
            raise HTTPException(404, f"There is no image {image_id!r} among the studies.")
        if wrong := name_error("tag", label_tag):
            raise HTTPException(422, wrong)
        suffix = self._to_id(Path(label_filename).name)[1]
        self._check_label(Path(self._datastore.label_path(label_tag)) / self._filename(image_id, suffix))
        if wrong := label_error(self.get_image_uri(image_id), label_filename):
            raise HTTPException(422, wrong)
        with self._changing:
            return super().save_label(image_id, label_filename, label_tag, label_info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label.

        Args:
            label_id: name of the image.
            label_tag: folder of the label.

        Raises:
            HTTPException: there is no such label, or it lies outside the folder of labels.
        """
        label = self._datastore.label(label_id, label_tag)
        if label is None:
            raise HTTPException(404, f"There is no label {label_id!r} with the tag {label_tag!r}.")
        self._check_label(Path(self._datastore.label_path(label_tag)) / self._filename(label_id, label.ext))
        with self._changing:
            super().remove_label(label_id, label_tag)
            self.refresh()

    def _check_label(self, place: Path) -> None:
        if place.is_symlink() or not self._holds(place, self._datastore.label_path(None)):
            raise HTTPException(403, "The label lies outside the folder of labels, where no request changes anything.")

    def _holds(self, place: Path, folder: str = "") -> bool:
        return place.resolve().is_relative_to(Path(folder or self._datastore_path).resolve())
