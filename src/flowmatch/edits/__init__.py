"""An editing job: images on disk, or of a run's own data, edited with the run's model."""

from flowmatch.edits.edit import edit as edit
from flowmatch.edits.inputs import Inputs as Inputs
from flowmatch.edits.inputs import inputs_from_data as inputs_from_data
from flowmatch.edits.inputs import inputs_from_files as inputs_from_files
from flowmatch.edits.job import TASKS as TASKS
from flowmatch.edits.job import EditJob as EditJob
from flowmatch.edits.job import parse_box as parse_box
from flowmatch.edits.run import edit_run as edit_run
from flowmatch.edits.run import summary as summary
