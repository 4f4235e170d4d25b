"""``python -m varflow``."""

from varflow.cli import main

main()
