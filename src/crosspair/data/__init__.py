"""Data to train and to evaluate on: DATA directories, streams, and datasets of one's own.

The public names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspair.data.batching import Split, TrainingSplit
    from crosspair.data.dataset import Data, PreparedSplit, open_data
    from crosspair.data.records import Record
    from crosspair.data.splits import DatasetSplit, GivenData, from_dataset
    from crosspair.data.streams.stream import StreamSplit, open_stream

_HOMES = {
    "Data": "dataset",
    "DatasetSplit": "splits",
    "GivenData": "splits",
    "PreparedSplit": "dataset",
    "Record": "records",
    "Split": "batching",
    "StreamSplit": "streams.stream",
    "TrainingSplit": "batching",
    "from_dataset": "splits",
    "open_data": "dataset",
    "open_stream": "streams.stream",
}

__all__ = [
    "Data",
    "DatasetSplit",
    "GivenData",
    "PreparedSplit",
    "Record",
    "Split",
    "StreamSplit",
    "TrainingSplit",
    "from_dataset",
    "open_data",
    "open_stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"crosspair.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'crosspair.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
