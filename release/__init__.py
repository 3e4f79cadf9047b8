"""Release of the bundle: archive, hub folder, checksums and notes, checked as the model zoo checks bundles."""
