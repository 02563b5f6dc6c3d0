"""Hypothesis is told which examples to try before any test names it."""

import tests.support.examples  # noqa: F401 - its import is what counts
