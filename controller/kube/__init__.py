"""Custom resources of Kubernetes as a way to ask for checkpoints and restores."""
