"""``python -m celery_lookout``."""

from .cli import main

if __name__ == "__main__":
    main()
