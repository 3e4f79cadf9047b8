"""Search for the bundle in the folder of models, without imports from the bundle."""

from pathlib import Path

NEWEST_NEEDED = Path("scripts", "inference", "dicom_objects.py")  # not in bundles of 0.7 and earlier


def find_bundle(models: Path) -> Path:
    """Find the bundle that the app applies.

    Args:
        models: a folder with one bundle in it, or a bundle.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: there is no bundle, more than one, or one that is too old for the app.
    """
    folders = sorted(path for path in models.iterdir() if path.name[0] != ".") if models.is_dir() else []
    bundles = [folder for folder in (models, *folders) if (folder / "configs" / "metadata.json").is_file()]
    if len(bundles) != 1:
        raise ValueError(
            f"The models folder {models} holds {len(bundles)} bundles; expected one, so write it there with "
            "`python -m scripts.export_bundle`, and say with -m where it is."
        )
    if not (bundles[0] / NEWEST_NEEDED).is_file():
        raise ValueError(
            f"The bundle in {bundles[0]} was exported by an earlier version than that of the app; export its model "
            "again with `python -m scripts.export_bundle`, or run the app of its version."
        )
    return bundles[0]
