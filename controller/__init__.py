"""The controller: takes requests, publishes jobs to nodes, follows what they report."""
