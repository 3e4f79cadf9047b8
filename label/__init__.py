"""The bundle in MONAI Label: an app's folder, and a server that says what went wrong."""
