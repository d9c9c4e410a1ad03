"""Couplings: which source sample meets which data sample."""

from flowmatch.couplings.independent import Independent as Independent

CouplingConfig = Independent
