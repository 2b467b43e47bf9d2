"""`python app.py`: opens the page, as `dalle page` does (`dalle_core.page`). Spaces start this file."""

import sys

from dalle_core.__main__ import main

if __name__ == "__main__":
    main(["page", *sys.argv[1:]])
