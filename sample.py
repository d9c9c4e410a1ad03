"""`accelerate launch sample.py -c CONFIG ...` is `flowmatch sample -c CONFIG ...`."""

import sys

from flowmatch.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
