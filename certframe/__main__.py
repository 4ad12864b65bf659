"""``python -m certframe``."""

from certframe.cli import main

if __name__ == "__main__":
    main()
