"""`accelerate launch train.py -c CONFIG ...` is `flowmatch train -c CONFIG ...`."""

import sys

from flowmatch.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
