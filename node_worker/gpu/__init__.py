"""GPU state of containers: locked, checkpointed, restored and unlocked through the CUDA driver."""
