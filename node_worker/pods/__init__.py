"""Restores into pods: what the OCI runtime `kybernate-runc` asks for, and who answers."""
