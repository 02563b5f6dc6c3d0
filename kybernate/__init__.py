"""What the controller and the node worker share, the command line and the embedded mode."""
