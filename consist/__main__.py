"""Lets ``python -m consist`` be the command line."""

from consist.cli import main

main()
