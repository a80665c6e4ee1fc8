"""crosspair evaluate: models on a split of DATA, embeddings or similarities from files, ranked by a protocol."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from crosspair.commands.evaluate_options import check_options, is_averaged, wanted_of_tasks
from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.evaluation.counting import Counting
from crosspair.evaluation.embeddings import Embeddings, read_embeddings
from crosspair.evaluation.ensemble import check_same_rows, join_ensemble
from crosspair.evaluation.options import RankingOptions
from crosspair.evaluation.protocols import PLAIN, Protocol, Rankable, Task, arrange, evaluation_of, find_protocol
from crosspair.evaluation.ranking import DIRECTIONS, ranks_of
from crosspair.evaluation.results import labels_checksum
from crosspair.evaluation.several import several_table
from crosspair.evaluation.shards import count_shard, merge_parts, parse_shard
from crosspair.evaluation.similarities import mean_similarities, read_similarities
from crosspair.training.measure import (
    Measured,
    measure_ensemble,
    measure_model,
    measured_from,
    own_path,
    ranking_device,
)
from crosspair.training.run import model_directory


def run(options: Namespace) -> None:
    """Evaluate what was given and print the table, or count a part of a ranking, or add up such parts."""
    check_options(options)
    if options.shard:
        text = _count_shard(options)
    elif options.merge:
        text = _merge_parts(options)
    elif options.model:
        text = _evaluate_models(options)
    else:
        text = _evaluate_files(options)
    print(text)


def _evaluate_models(options: Namespace) -> str:
    """The table of models on a split of DATA; results go into RUNs and, if there is one, to --output."""
    device = find_device(options.device)  # before anything is read
    ranking, split = _ranking(options), options.split or "test"
    choices: dict[str, Any] = {"device": options.device, "needs": wanted_of_tasks(options)}
    if is_averaged(options):
        measured = measure_ensemble(options.model, options.data, split, ranking, options.protocol, **choices)
        return _finished(options, f"{split}, ensemble of {len(options.model)}", measured)
    if len(options.model) == 1:
        name = options.model[0]
        measured = measure_model(name, options.data, split, ranking, options.protocol, **choices)
        if options.csls:
            measured = measured.with_csls(ranking_device(device))
        return _finished(options, split, measured, own_path(name, split, options.protocol, ranking))
    for name in options.model:
        model_directory(name)  # a half-trained one is refused before the others are encoded
    results = []
    for name in options.model:
        measured = measure_model(name, options.data, split, ranking, options.protocol, **choices)
        own = own_path(name, split, options.protocol, ranking)
        measured.store([own] if own else [])
        results.append(measured)
    return _several(split, options.model, results)


def _evaluate_files(options: Namespace) -> str:
    """The table of files or directories of embeddings, or of similarities, with their labels."""
    protocol, ranking = _named_protocol(options), _ranking(options)
    device = _chosen_ranking_device(options.device)
    members: list[Rankable]
    if options.similarities:
        kind, paths = "similarities", [str(path) for path in options.similarities]
        matrices = [read_similarities(path) for path in options.similarities]
        check_same_rows(matrices, paths)
        members = [mean_similarities(matrices)]
    else:
        kind, paths = "embeddings", [str(path) for path in options.embeddings]
        read = [read_embeddings(path) for path in options.embeddings]
        check_same_rows(read, paths)
        members = [join_ensemble(read, paths, ranking.metric)] if is_averaged(options) else [*read]
    results = []
    for member, name in zip(members, paths, strict=False):  # an ensemble is one
        facts = {kind: " + ".join(paths), "ensemble": len(paths)} if is_averaged(options) else {kind: name}
        evaluation = ranking.evaluate(protocol, member, device, progress=True)
        results.append(measured_from(evaluation, member, facts, ranking))
    if len(results) > 1:
        return _several(kind, paths, results)
    measured = results[0].with_csls(device) if options.csls else results[0]
    return _finished(options, f"ensemble of {', '.join(paths)}" if is_averaged(options) else paths[0], measured)


def _finished(options: Namespace, name: str, measured: Measured, own: Path | None = None) -> str:
    """The table of one result, once it and what else was asked for is written."""
    intervals = measured.store([path for path in (options.output, own) if path])
    return f"{name}: {measured.describe(intervals)}{measured.export(options.trec, options.queries)}"


def _several(name: str, names: list[str], results: list[Measured]) -> str:
    """The table of several results on the same queries."""
    first = results[0]
    protocol = first.evaluation.protocol
    reference = f" ({protocol.reference})" if protocol.reference else ""
    table = several_table(names, [measured.evaluation for measured in results])
    return (
        f"{name}: {first.size}\n{table}\n"
        f"protocol {protocol.name}: {protocol.summary}{reference}; {first.evaluation.result.metric}; "
        "ties against the model"
    )


def _count_shard(options: Namespace) -> str:
    """Count one shard of the ranking of embeddings into a part, or go on with it."""
    shard = parse_shard(options.shard)
    protocol, ranking = _named_protocol(options), _ranking(options)
    device = _chosen_ranking_device(options.device)
    path = options.embeddings[0]
    task, counting = _single_task(protocol, read_embeddings(path), ranking, device)
    count_shard(counting, shard, options.part, _shard_facts(protocol, task, ranking))
    return (
        f"{options.part}: shard {shard[0]} of {shard[1]}, complete\n"
        f"when all are there: crosspair evaluate --embeddings {path} --merge PART PART ..."
    )


def _merge_parts(options: Namespace) -> str:
    """The table that all shards of a ranking amount to."""
    protocol, ranking = _named_protocol(options), _ranking(options)
    path = options.embeddings[0]
    embeddings = read_embeddings(path)
    task, counting = _single_task(protocol, embeddings, ranking, "cpu")
    merge_parts(counting, options.merge, _shard_facts(protocol, task, ranking))
    evaluation = evaluation_of(protocol, [task], [ranks_of(counting)], ranking.metric, ranking.metric_definition)
    beside = {"directions": ranking.directions, "distractors": ranking.distractors}
    evaluation = evaluation.with_beside(embeddings, ranking.metric_definition, **beside)
    measured = measured_from(evaluation, embeddings, {"embeddings": str(path)}, ranking)
    return _finished(options, f"{path}, {len(options.merge)} parts", measured)


def _ranking(options: Namespace) -> RankingOptions:
    directions = (options.direction.replace("-", "_"),) if options.direction else DIRECTIONS
    return RankingOptions(options.metric or "cosine", options.metric_definition, directions, options.distractors)


def _chosen_ranking_device(name: str) -> str:
    return ranking_device(find_device()) if name == "auto" else str(find_device(name))


def _named_protocol(options: Namespace) -> Protocol:
    return find_protocol(options.protocol) if options.protocol else PLAIN


def _single_task(
    protocol: Protocol, embeddings: Embeddings, ranking: RankingOptions, device: str
) -> tuple[Task, Counting]:
    tasks = arrange(protocol, embeddings)
    if len(tasks) > 1:
        raise UserError(f"protocol {protocol.name} has {len(tasks)} folds, small ones; evaluate them without --shard")
    counting = tasks[0].embeddings.counting(
        ranking.metric, device=device, directions=ranking.directions, distractors=ranking.distractors
    )
    return tasks[0], counting


def _shard_facts(protocol: Protocol, task: Task, ranking: RankingOptions) -> dict[str, Any]:
    """What all parts of one ranking share."""
    labels = labels_checksum(task.embeddings.image_labels, task.embeddings.text_labels)
    return {"protocol": protocol.name, "labels_checksum": labels, "metric": ranking.metric, **ranking.facts()}
