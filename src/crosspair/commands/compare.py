"""crosspair compare: results that are stored, or evaluated where they are not, in one table."""

from argparse import Namespace
from pathlib import Path

from crosspair.commands.evaluate import measure_model, own_path
from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.evaluation.comparison import compare
from crosspair.evaluation.protocols import plugin_facts
from crosspair.evaluation.results import StoredResult, read_result
from crosspair.report.comparison_tables import to_text, write_tables


def run(options: Namespace) -> None:
    """Print the tables of runs, models and stored results; --output also writes them as Markdown, CSV and LaTeX."""
    if options.output is not None and options.output.is_file():
        raise UserError(f"{options.output} is a file; expected a directory for the tables, name another --output")
    find_device(options.device)  # before anything is read
    results = [_result(name, options.data, options.split, options.protocol, options.device) for name in options.names]
    comparison = compare(results)
    print(to_text(comparison))
    if options.output is not None:
        print("written: " + ", ".join(map(str, write_tables(options.output / "comparison", comparison))))


def _result(name: str, data: Path | None, split_name: str, protocol_name: str | None, device: str) -> StoredResult:
    if Path(name).is_file():
        return read_result(Path(name))
    own = own_path(name, split_name, protocol_name)
    if own is not None and own.is_file():
        stored = read_result(own)
        if _is_current(stored, name, data, split_name):
            return stored
    measured = measure_model(name, data or _data_of(name), split_name, protocol_name=protocol_name, device=device)
    if own is not None:
        measured.store([own])
    facts = {
        **measured.facts,
        "protocol": measured.evaluation.protocol.name,
        "metric": measured.evaluation.result.metric,
    }
    return StoredResult(own or Path(name), facts, measured.evaluation)


def _is_current(stored: StoredResult, name: str, data: Path | None, split_name: str) -> bool:
    """Whether a RUN's model, the data and the plugin of its protocol are still those it was evaluated with."""
    from crosspair.data.dataset import open_data
    from crosspair.encode.storage import model_checksum
    from crosspair.training.run import model_directory

    if stored.facts.get("model_checksum") != model_checksum(model_directory(name)):
        return False
    own = plugin_facts(stored.evaluation.protocol)
    if stored.facts.get("protocol_plugin") != own.get("protocol_plugin"):
        return False
    return data is None or stored.facts.get("checksum") == open_data(data).split(split_name).checksum


def _data_of(name: str) -> Path:
    from crosspair.training.log import read_metrics

    rows = read_metrics(Path(name))
    if not rows:
        raise UserError(
            f"{name} is no RUN and no stored result; expected one of both, or --data DATA to evaluate it on"
        )
    return Path(rows[0]["data"])
