"""Everything on one machine without preparation: a private containerd, NATS, the all-in-one."""
