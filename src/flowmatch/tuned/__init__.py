"""Tuned solvers of runs: the search, the file that keeps what it found, and reading it."""

from flowmatch.tuned.file import FILE as FILE
from flowmatch.tuned.file import read_tuned as read_tuned
from flowmatch.tuned.job import Judge as Judge
from flowmatch.tuned.job import TuneJob as TuneJob
from flowmatch.tuned.job import network_calls as network_calls
from flowmatch.tuned.run import Outcome as Outcome
from flowmatch.tuned.run import tune_run as tune_run
