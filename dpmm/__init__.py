"""The command ``dpmm``: short forms of the bundle's ``python -m monai.bundle`` commands."""
