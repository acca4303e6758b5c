"""``python -m zoo``: the command ``zoo``."""

from .cli import main

main()
