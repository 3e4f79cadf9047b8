"""Import of MONAI."""


def import_monai() -> None:
    """Import MONAI."""
    import monai.bundle  # noqa: F401
