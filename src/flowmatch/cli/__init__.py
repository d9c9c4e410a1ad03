"""The command: parse, build, call."""

from flowmatch.cli.app import main as main
