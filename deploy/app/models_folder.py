"""Search for the bundle in the folder of models, without imports from the bundle."""

import json
import re
from pathlib import Path

OLDEST = (0, 5)  # the layout of `scripts` differs in earlier bundles


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
    metadata = bundles[0] / "configs" / "metadata.json"
    try:
        version = str(json.loads(metadata.read_text())["version"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{metadata} names no version; export the model again with `python -m scripts.export_bundle`."
        ) from error
    release = re.match(r"(\d+)\.(\d+)", version)
    if release is None or (int(release[1]), int(release[2])) < OLDEST:
        raise ValueError(
            f"The bundle in {bundles[0]} has version {version}; expected {OLDEST[0]}.{OLDEST[1]} or later, so export "
            "its model again with `python -m scripts.export_bundle`, or run the app of its version."
        )
    return bundles[0]
