"""`python -m flowmatch` is `flowmatch`."""

from flowmatch.cli import main

main()
