"""Anomaly detection by a Dirichlet process mixture of DINOv2 patch embeddings, as a MONAI bundle."""
