"""Which options of crosspair evaluate go together, and where it may write: said before anything is read."""

import os
from argparse import Namespace
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from crosspair.errors import UserError
from crosspair.evaluation.protocols import find_protocol
from crosspair.evaluation.ranking import DIRECTIONS
from crosspair.evaluation.results import ranks_path
from crosspair.evaluation.trec import trec_paths
from crosspair.storage.files import refuse_directory

_EXPECTED = (
    "expected crosspair evaluate RUN --data DATA, crosspair evaluate --embeddings FILE or "
    "crosspair evaluate --similarities FILE"
)


def check_options(options: Namespace) -> None:
    """Raise UserError for options that don't go together, and for files that can't be written."""
    sentence = next(_refusals(options), None)
    if sentence is not None:
        raise UserError(sentence)
    if options.protocol:
        protocol = find_protocol(options.protocol)
        for option in wanted_of_tasks(options):
            protocol.check_tasks(option)
    _check_outputs(options)


def wanted_of_tasks(options: Namespace) -> list[str]:
    """The given options that need relevance by labels, which not every protocol has."""
    given = {
        "--csls": options.csls,
        "--trec": options.trec,
        "--queries": options.queries,
        "--shard": options.shard,
        "--merge": options.merge,
        "--distractors": options.distractors,
    }
    return [option for option, value in given.items() if value]


def is_averaged(options: Namespace) -> bool:
    """Whether several inputs are evaluated as one, by the mean of their similarities."""
    return bool(options.ensemble) or len(options.similarities) > 1


def _refusals(options: Namespace) -> Iterator[str]:
    """A sentence for whatever does not go together."""
    models, embeddings, similarities = options.model, options.embeddings, options.similarities
    inputs = models or embeddings or similarities
    yield from _refused_inputs(options)
    if options.shard or options.merge or options.part is not None:
        yield from _refused_with_parts(options)
    several = len(inputs) > 1 and not is_averaged(options)
    single = {
        "--output": options.output,
        "--trec": options.trec,
        "--queries": options.queries,
        "--csls": options.csls,
    }
    for option, value in single.items():
        if value and several:
            yield f"{option} is for one result, found {len(inputs)}; give one of them, or all as one with --ensemble"
    if similarities and options.csls:
        yield "--csls needs embeddings, and --similarities has none; leave it out, or give --embeddings"
    if similarities and options.metric is not None:
        yield "--similarities are compared as they are, the higher the better; leave --metric out"
    if similarities and options.device != "auto":
        yield "--similarities are counted on the CPU; leave --device out"
    if options.csls and options.metric == "euclidean":
        yield "--csls is made of cosines; leave it out, or --metric euclidean"


def _refused_inputs(options: Namespace) -> Iterator[str]:
    models, embeddings, similarities = options.model, options.embeddings, options.similarities
    given = [name for name, value in (("--embeddings", embeddings), ("--similarities", similarities)) if value]
    if len(given) > 1:
        yield "--embeddings and --similarities take each other's place; give one of them"
    if given and (models or options.data is not None or options.split):
        yield f"{given[0]} takes the place of RUN, --data and --split; give one or the others"
    if not given and (not models or options.data is None):
        yield _EXPECTED
    inputs = [Path(each) for each in models or embeddings or similarities]
    again = next((each for place, each in enumerate(inputs) if each.resolve() in _resolved(inputs[:place])), None)
    if again is not None:
        yield f"{again} is given twice; name each input once"
    if options.ensemble and len(inputs) < 2:
        what = given[0] if given else "RUN"
        yield f"--ensemble takes the mean of several inputs, found one; give two or more of {what}"


def _refused_with_parts(options: Namespace) -> Iterator[str]:
    """What does not go with --shard, --merge and --part."""
    option = "--shard" if options.shard else "--merge"
    if options.part is not None and not options.shard:
        yield "--part is the file that --shard K/N counts into; give both or none"
    if options.model:
        yield "--shard and --merge are for --embeddings; evaluate RUN as a whole"
    if options.similarities:
        yield "--shard and --merge are for --embeddings; evaluate --similarities as a whole"
    if len(options.embeddings) > 1:
        yield f"{option} is for one file or directory of --embeddings, found {len(options.embeddings)}; give one"
    if options.shard and options.part is None:
        yield "--shard needs a file to count into; expected --part PART.npz"
    if options.shard and options.output is not None:
        yield "a shard has no result to write to --output; name the file it counts into with --part"
    if options.shard and options.metric_definition != "exact":
        yield "a shard only counts ranks; give --metric-definition with --merge"
    if options.trec is not None:
        yield "--trec needs all scores, which no part keeps; leave it out, or --shard and --merge"
    if options.queries is not None:
        yield "--queries needs all scores, which no part keeps; leave it out, or --shard and --merge"
    if options.csls:
        yield "--csls takes all queries together; leave it out, or --shard and --merge"
    if options.merge and options.device != "auto":
        yield "--merge adds up what was counted and needs no device; leave --device out"


def _check_outputs(options: Namespace) -> None:
    """That every file to be written can be, is none of those that are read, and no other."""
    for option, path in (("--output", options.output), ("--queries", options.queries), ("--part", options.part)):
        if path is not None:
            refuse_directory(path, option)
    if options.trec is not None and options.trec.name in ("", ".."):
        raise UserError(f"--trec {options.trec} is a directory; expected the beginning of the files' names")
    written: list[tuple[str, Path]] = []
    if options.output is not None:
        written += [("--output", options.output), ("--output", ranks_path(options.output))]
    if options.queries is not None:
        if options.queries.suffix != ".parquet":
            raise UserError(f"--queries writes Parquet, found {options.queries}; expected a name that ends in .parquet")
        written.append(("--queries", options.queries))
    if options.trec is not None:
        written += [("--trec", path) for direction in DIRECTIONS for path in trec_paths(options.trec, direction)]
    if options.part is not None:
        written.append(("--part", options.part))
    for option, path in written:
        refuse_directory(path, option)
        _refuse_folder(option, path)
        for read in map(Path, [*options.model, *options.embeddings, *options.similarities, *(options.merge or ())]):
            if path.resolve() == read.resolve():
                raise UserError(f"{option} would replace {read}, which is read; name another {option}")
    for (option, path), (other, same) in combinations(written, 2):
        if path.resolve() == same.resolve():
            raise UserError(f"{option} and {other} would both write {path}; name another {other}")


def _refuse_folder(option: str, path: Path) -> None:
    """The folder of a file must be one, or be made in one that may be written to."""
    folder = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not folder.is_dir():
        raise UserError(f"{option} {path} lies in {folder}, which is a file; name another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {folder} may not be written to; check its permissions or name another")


def _resolved(paths: list[Path]) -> set[Path]:
    return {path.resolve() for path in paths}
