"""MONAI Label server with the bundle: the folder of the app, rules for requests, and error messages."""
