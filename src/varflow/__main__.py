"""``python -m varflow``."""

from varflow.cli.main import main

main()
