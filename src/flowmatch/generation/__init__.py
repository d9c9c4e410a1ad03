"""Sampling jobs: samples on disk that depend on (seed, index) alone, and a record of how."""

from flowmatch.generation.asked import asked_conditions as asked_conditions
from flowmatch.generation.generate import generate as generate
from flowmatch.generation.job import SampleJob as SampleJob
from flowmatch.generation.numbers import parse_classes as parse_classes
from flowmatch.generation.numbers import parse_seeds as parse_seeds
