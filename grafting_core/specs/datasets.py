"""Data sets by name: what backbones are trained on and their samples are compared with."""

from grafting_core.specs.plugins import Entry, PluginTable


class DatasetEntry(Entry):
    """`load` names a function without arguments that returns a `data.datasets.Dataset`."""


DATASETS = PluginTable(
    "data set",
    "graftlab.datasets",
    DatasetEntry,
    {"testbed/fashion-mnist": "grafting_core.testbed.plugin:DATASET"},
)
