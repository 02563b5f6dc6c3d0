"""containerd's messages, as far as the client needs them; `scripts/protos.sh` generates them."""
