"""`python -m kybernate.cli`."""

from kybernate.cli import main

main()
