"""Bill of materials and licences of third-party software."""
