"""Readers of the IQA sets as they are released, one function a set."""

from collections.abc import Callable

from .deqa import read_deqa
from .koniq import read_koniq10k
from .labels import LabelSet
from .photographs import read_agiqa3k, read_flive, read_livec, read_spaq
from .synthetic import read_csiq, read_kadid10k, read_pipal, read_tid2013
from .table import read_table

READERS: dict[str, Callable[..., LabelSet]] = {
    "koniq10k": read_koniq10k,
    "spaq": read_spaq,
    "kadid10k": read_kadid10k,
    "pipal": read_pipal,
    "livec": read_livec,
    "agiqa3k": read_agiqa3k,
    "csiq": read_csiq,
    "tid2013": read_tid2013,
    "flive": read_flive,
    "deqa": read_deqa,
    "table": read_table,
}
"""Each takes the folder of its set and options of its own, and returns a [`~data.readers.labels.LabelSet`]."""
