"""Comparisons side by side, each one command."""
