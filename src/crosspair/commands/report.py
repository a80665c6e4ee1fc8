"""crosspair report: one self-contained HTML page about a run, a model or embeddings, alone or against another."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosspair.data.dataset import PreparedSplit, open_data
from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.evaluation.comparison import compare
from crosspair.evaluation.embeddings import REQUIRED, Embeddings, read_embeddings
from crosspair.evaluation.options import RankingOptions
from crosspair.evaluation.protocols import PLAIN, Evaluation, choose_protocol, find_protocol
from crosspair.evaluation.ranking import DIRECTIONS
from crosspair.evaluation.results import StoredResult, labels_checksum, ranks_path, read_result
from crosspair.report.page import write_report
from crosspair.report.rivals import Rival
from crosspair.storage.directories import kind_of
from crosspair.storage.files import refuse_directory
from crosspair.training.log import read_metrics
from crosspair.training.measure import Measured, measure_model, measured_from, ranking_device
from crosspair.training.origin import describe_origin
from crosspair.training.recipe_files import read_run_recipe
from crosspair.training.run import data_directory, model_directory


@dataclass(frozen=True)
class Subject:
    """A model on a split, or embeddings, as a report tells of them.

    name: as it was given. split: with its captions and images; None where nobody knows them. run: its RUN, if any.
    """

    name: str
    title: str  # without the split
    where: str  # the split, if any
    facts: Mapping[str, str]
    measured: Measured
    split: PreparedSplit | None
    run: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def embeddings(self) -> Embeddings:
        """What was ranked."""
        assert isinstance(self.measured.embeddings, Embeddings)
        return self.measured.embeddings

    @property
    def stored(self) -> StoredResult:
        """The evaluation with its facts, by itself whatever its recipe."""
        evaluation = self.measured.evaluation
        own = {"protocol": evaluation.protocol.name, "metric": evaluation.result.metric, "recipe_checksum": None}
        return StoredResult(Path(self.name), {**self.measured.facts, **own}, evaluation)

    def write(self, path: Path, rival: "Subject | StoredResult | None" = None) -> None:
        """Write the report, whole or not at all. Raises UserError unless both were evaluated alike."""
        split = self.split
        facts, origin = dict(self.facts), describe_origin(self.measured.facts, self.run)
        name, against, title = self.name, None, self.title
        if rival is not None:
            name, against = _against(self, rival)
            title = f"{name} and {against.name}"
            theirs = rival.facts if isinstance(rival, StoredResult) else rival.measured.facts
            facts["Compared with"] = against.name
            origin["Compared with"] = _described(rival, theirs)
        write_report(
            path,
            title=f"{title} on {self.where}" if self.where else title,
            facts=facts,
            origin=origin,
            embeddings=self.embeddings,
            evaluation=self.measured.evaluation,
            captions=None if split is None else [caption for of_image in split.captions for caption in of_image],
            thumbnail=None if split is None else split.image,
            history=self.history,
            name=name,
            rival=against,
        )


def run(options: Namespace) -> None:
    """Write the report of what was given, and print where it is."""
    _check(options)
    path = _output(options)
    rival: Subject | StoredResult | None = None
    if options.against is not None and Path(options.against).is_file() and not _holds_embeddings(options.against):
        rival = read_result(Path(options.against))
    if options.embeddings is not None:
        subject = _of_embeddings(options.embeddings, options)
    else:
        data = options.data or data_directory(Path(options.model))
        if isinstance(rival, StoredResult):
            _check_split(rival, open_data(data).split(options.split))
        options.data = data
        subject = _of_model(options.model, data, options)
    if options.against is not None and rival is None:
        if _holds_embeddings(options.against):
            rival = _of_embeddings(Path(options.against), options)
        else:
            rival = _of_model(options.against, options.data, options)
    subject.write(path, rival)
    print(f"report: {path}")


def report_run(run: Path, data: Path | None, split_name: str, path: Path, *, device: str = "auto") -> Evaluation:
    """Evaluate the model of a finished RUN on a split of DATA, by default RUN's own, and write its report.

    Returns the evaluation. Raises UserError when the split doesn't fit the protocol of its data.
    """
    find_device(device)
    chosen = {"metric": None, "direction": None, "distractors": False}
    options = Namespace(split=split_name, protocol=None, device=device, **chosen)
    subject = _of_model(str(run), data or data_directory(run), options)
    subject.write(path)
    return subject.measured.evaluation


def _output(options: Namespace) -> Path:
    """The file to write: --output, or beside what the report is about. Raises UserError for one that can't be."""
    path: Path
    if options.output is not None:
        path = options.output
    elif options.embeddings is not None:
        found: Path = options.embeddings
        path = found / "report.html" if found.is_dir() else found.with_suffix(".html")
    else:
        path = Path(options.model) / "report.html"
    refuse_directory(path)
    given = [options.embeddings, options.against]
    files = [Path(each) for each in given if each is not None]
    if path.resolve() in {each.resolve() for file in files for each in (file, ranks_path(file))}:
        raise UserError(f"the report would replace {path}; name another --output")
    return path


def _check(options: Namespace) -> None:
    """Raise UserError, before anything is encoded, for what can't be reported."""
    if (options.model is None) == (options.embeddings is None):
        raise UserError("expected crosspair report RUN, or crosspair report --embeddings FILE")
    find_device(options.device)
    if options.protocol:
        find_protocol(options.protocol)
    if options.model is not None:
        model_directory(options.model)
        if kind_of(options.model) != "RUN" and (options.data is None or options.output is None):
            raise UserError(
                f"{options.model} is no RUN directory, which would know its data and keep the report; name a RUN, or "
                "add --data DATA and --output FILE.html to a model"
            )
    if options.against is None or Path(options.against).is_file():
        return
    own = options.model if options.embeddings is None else options.embeddings
    if Path(options.against).resolve() == Path(own).resolve():
        raise UserError(f"{options.against} is given twice; name another one with --against")
    if not _holds_embeddings(options.against):
        model_directory(options.against)
        if options.data is None and options.model is None:
            raise UserError(f"{options.against} is to be evaluated on data; name the DATA of --embeddings with --data")


def _of_model(name: str, data: Path, options: Namespace) -> Subject:
    """A RUN or a model, evaluated on a split by a protocol, by default that of the data."""
    split_name = options.split
    split = open_data(data).split(split_name)
    measured = measure_model(name, data, split_name, _ranking(options), options.protocol, device=options.device)
    facts = {"Split": f"{split_name}, {_size(measured)}"}
    if kind_of(name) != "RUN":
        of = {"Model": name, **facts, **_encoders(measured)}
        return Subject(name, name, split_name, of, measured, split)
    run = Path(name)
    recipe, record = read_run_recipe(run), read_metrics(run)
    facts = {
        "Recipe": f"{recipe.name}: {recipe.summary}",
        **facts,
        "Image encoder": recipe.model.image.name,
        "Text encoder": recipe.model.text.name,
        "Losses": ", ".join(f"{loss} {weight:g}" for loss, weight in recipe.loss_weights.items()),
        "Seed": str(recipe.seed),
    }
    return Subject(name, recipe.name, split_name, facts, measured, split, run, record)


def _of_embeddings(path: Path, options: Namespace) -> Subject:
    """A file or a directory of embeddings, of a split of DATA where --data names one."""
    embeddings = read_embeddings(path)
    protocol, split, facts = PLAIN, None, {"embeddings": str(path)}
    if options.data is not None:
        data = open_data(options.data)
        split = data.split(options.split)
        embeddings = _with_split(embeddings, split, path, f"split {options.split} of {options.data}")
        source = str(data.manifest.source.get("format", ""))
        protocol = choose_protocol(source, options.split, len(split))
        facts |= {"data": str(options.data), "split": options.split, "checksum": split.checksum, "data_format": source}
    if options.protocol:
        protocol = find_protocol(options.protocol)
    ranking, device = _ranking(options), ranking_device(find_device(options.device))
    evaluation = ranking.evaluate(protocol, embeddings, device, progress=True)
    measured = measured_from(evaluation, embeddings, facts, ranking)
    of = {"Embeddings": str(path), "Size": _size(measured)} | ({"Split": options.split} if split else {})
    return Subject(str(path), path.name, options.split if split else "", of, measured, split)


def _ranking(options: Namespace) -> RankingOptions:
    direction = options.direction and options.direction.replace("-", "_")
    directions = tuple(each for each in DIRECTIONS if direction in (None, each))
    return RankingOptions(options.metric or "cosine", directions=directions, distractors=options.distractors)


def _with_split(embeddings: Embeddings, split: PreparedSplit, path: Path, where: str) -> Embeddings:
    """Embeddings with the names of a split. Raises UserError unless they are of its images and captions."""
    counts = [len(captions) for captions in split.captions]
    rows = np.repeat(np.arange(len(counts)), counts)
    sizes = (len(embeddings.images), len(embeddings.texts))
    if sizes != (len(split), len(rows)):
        raise UserError(
            f"{path} holds {sizes[0]:,} pictures and {sizes[1]:,} texts, {where} {len(split):,} and {len(rows):,}; "
            "name the split that they were made from with --split, or leave --data out"
        )
    same = labels_checksum(embeddings.image_labels, embeddings.text_labels) == labels_checksum(
        split.labels, split.labels[rows]
    )
    if not same or (embeddings.text_images is not None and not np.array_equal(embeddings.text_images, rows)):
        raise UserError(
            f"the labels in {path} match other pictures and texts than those of {where}; expected the same in the same "
            "order, name the data that they were made from, or leave --data out"
        )
    return replace(embeddings, text_images=rows, given_image_names=tuple(split.image_ids))


def _check_split(rival: StoredResult, split: PreparedSplit) -> None:
    if rival.facts.get("checksum") not in (None, split.checksum):
        raise UserError(
            f"{rival.path} is the result of other pictures or captions (split {rival.facts.get('split')} of "
            f"{rival.facts.get('data')}); name its data and split with --data and --split"
        )


def _against(subject: Subject, rival: Subject | StoredResult) -> tuple[str, Rival]:
    """The name of the report's own model beside its rival, and the rival."""
    if isinstance(rival, StoredResult):
        given, embeddings = str(rival.path), None
        theirs = replace(rival, facts={**rival.facts, "recipe_checksum": None})
    else:
        given, embeddings, theirs = rival.name, rival.embeddings, rival.stored
    comparison = compare([subject.stored, theirs])
    ours, name = _apart(subject.name, given)
    return ours, Rival(name, theirs.evaluation, embeddings, comparison)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two paths without the folders that they begin with alike."""
    first, second = Path(one).parts, Path(other).parts
    alike = 0
    while alike < min(len(first), len(second)) - 1 and first[alike] == second[alike]:
        alike += 1
    return str(Path(*first[alike:])), str(Path(*second[alike:]))


def _described(rival: Subject | StoredResult, facts: Mapping[str, Any]) -> str:
    given = str(rival.path) if isinstance(rival, StoredResult) else rival.name
    checksum = f"\nmodel checksum {facts['model_checksum']}" if facts.get("model_checksum") else ""
    return f"{given}{checksum}"


def _holds_embeddings(name: str) -> bool:
    path = Path(name)
    return path.suffix == ".npz" or (path / f"{REQUIRED[0]}.npy").is_file()


def _encoders(measured: Measured) -> dict[str, str]:
    names = {"image_encoder": "Image encoder", "text_encoder": "Text encoder"}
    return {name: str(measured.facts[key]) for key, name in names.items() if key in measured.facts}


def _size(measured: Measured) -> str:
    return f"{measured.facts['images']:,} pictures with {measured.facts['captions']:,} captions"
