"""The operators of the app, each named after what it writes or hands on."""
