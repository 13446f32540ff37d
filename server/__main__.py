"""``python -m server`` is the command ``pickup-point``."""

from .cli.start import main

if __name__ == "__main__":
    main()
