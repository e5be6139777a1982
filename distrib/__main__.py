"""``python -m distrib``."""

from distrib.cli.main import main

main()
