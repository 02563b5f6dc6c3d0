"""Makes a node ready for restores into pods, and undoes it exactly: `kybernate node install`."""
