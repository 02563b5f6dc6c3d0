"""The node worker: does the driver and containerd work that the jobs of its node ask for."""
