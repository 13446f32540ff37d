"""``python -m server`` is the command ``pickup-point``."""

from .cli.app import main

if __name__ == "__main__":
    main()
