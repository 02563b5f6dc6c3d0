"""The container runtime as the node worker sees it; see `port`."""
