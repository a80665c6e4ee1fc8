"""crosspair evaluate: a model on a split of DATA, or embeddings from files, ranked by a protocol."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.evaluation.counting import Counting
from crosspair.evaluation.embeddings import Embeddings, read_embeddings
from crosspair.evaluation.protocols import (
    PLAIN,
    Protocol,
    Task,
    arrange,
    evaluation_of,
    find_protocol,
)
from crosspair.evaluation.ranking import prepare_counting, ranks_of
from crosspair.evaluation.results import labels_checksum, ranks_path
from crosspair.evaluation.shards import count_shard, merge_parts, parse_shard
from crosspair.storage.files import refuse_directory
from crosspair.training.measure import measure_model, measured_from, own_path, ranking_device


def run(options: Namespace) -> None:
    """Evaluate what was given, a model or embeddings or a part of their ranking, and print the table."""
    if options.part is not None and not options.shard:
        raise UserError("--part is the file that --shard K/N counts into; give both or none")
    if options.embeddings is None:
        text = _evaluate_model(options)
    elif options.model or options.data or options.split:
        raise UserError("--embeddings takes the place of RUN, --data and --split; give one or the others")
    elif options.shard:
        text = _count_shard(options)
    elif options.merge:
        text = _merge_parts(options)
    else:
        text = _evaluate_embeddings(options)
    print(text)


def _evaluate_model(options: Namespace) -> str:
    """The table of a model on a split of DATA; its result goes to --output and into a RUN."""
    if options.model is None or options.data is None:
        raise UserError("expected crosspair evaluate RUN --data DATA, or crosspair evaluate --embeddings FILE")
    if options.shard or options.merge:
        raise UserError("--shard and --merge are for --embeddings; evaluate RUN as a whole")
    if options.output is not None:
        refuse_directory(options.output)  # before everything is encoded
    find_device(options.device)  # before anything is read
    if options.protocol:
        _check_tasks(options, find_protocol(options.protocol))
    split_name = options.split or "test"
    measured = measure_model(
        options.model, options.data, split_name, options.metric_definition, options.protocol, device=options.device
    )
    if options.csls:
        measured = measured.with_csls(ranking_device(find_device(options.device)))
    own = own_path(options.model, split_name, options.protocol)
    intervals = measured.store([path for path in (options.output, own) if path])
    return f"{split_name}: {measured.describe(intervals)}{measured.export(options.trec)}"


def _evaluate_embeddings(options: Namespace) -> str:
    """The table of a file or a directory of embeddings and labels."""
    protocol = _named_protocol(options)
    _check_tasks(options, protocol)
    device = _chosen_ranking_device(options.device)
    _refuse_to_replace(options.embeddings, options.output)
    embeddings = read_embeddings(options.embeddings)
    definition = options.metric_definition
    evaluation = protocol.evaluate(embeddings, metric_definition=definition, device=device, progress=True)
    measured = measured_from(evaluation, embeddings, {"embeddings": str(options.embeddings)})
    if options.csls:
        measured = measured.with_csls(device)
    intervals = measured.store([options.output] if options.output else [])
    return f"{options.embeddings}: {measured.describe(intervals)}{measured.export(options.trec)}"


def _count_shard(options: Namespace) -> str:
    """Count one shard of the ranking of embeddings into a part, or go on with it."""
    if options.part is None:
        raise UserError("--shard needs a file to count into; expected --part PART.npz")
    if options.output is not None:
        raise UserError("a shard has no result to write to --output; name the file it counts into with --part")
    _refuse_what_parts_lack(options)
    shard = parse_shard(options.shard)
    protocol = _named_protocol(options)
    device = _chosen_ranking_device(options.device)
    refuse_directory(options.part, "--part")
    task, counting = _single_task(protocol, read_embeddings(options.embeddings), device)
    count_shard(counting, shard, options.part, _shard_facts(protocol, task))
    return (
        f"{options.part}: shard {shard[0]} of {shard[1]}, complete\n"
        f"when all are there: crosspair evaluate --embeddings {options.embeddings} --merge PART PART ..."
    )


def _merge_parts(options: Namespace) -> str:
    """The table that all shards of a ranking amount to."""
    if options.device != "auto":
        raise UserError("--merge adds up what was counted and needs no device; leave --device out")
    _refuse_what_parts_lack(options)
    protocol = _named_protocol(options)
    _refuse_to_replace(options.embeddings, options.output)
    embeddings = read_embeddings(options.embeddings)
    task, counting = _single_task(protocol, embeddings, "cpu")
    merge_parts(counting, options.merge, _shard_facts(protocol, task))
    evaluation = evaluation_of(protocol, [task], [ranks_of(counting)], metric_definition=options.metric_definition)
    measured = measured_from(evaluation, embeddings, {"embeddings": str(options.embeddings)})
    intervals = measured.store([options.output] if options.output else [])
    return f"{options.embeddings}, {len(options.merge)} parts: {measured.describe(intervals)}"


def _refuse_what_parts_lack(options: Namespace) -> None:
    if options.trec:
        raise UserError("--trec needs all scores, which no part keeps; leave it out, or --shard and --merge")
    if options.csls:
        raise UserError("--csls takes all queries together; leave it out, or --shard and --merge")


def _chosen_ranking_device(name: str) -> str:
    return ranking_device(find_device()) if name == "auto" else str(find_device(name))


def _named_protocol(options: Namespace) -> Protocol:
    return find_protocol(options.protocol) if options.protocol else PLAIN


def _check_tasks(options: Namespace, protocol: Protocol) -> None:
    """Before anything is encoded or ranked: whether the protocol has what the options rank or export."""
    for option, given in (("--csls", options.csls), ("--trec", options.trec)):
        if given:
            protocol.check_tasks(option)


def _single_task(protocol: Protocol, embeddings: Embeddings, device: str) -> tuple[Task, Counting]:
    protocol.check_tasks("--shard")
    tasks = arrange(protocol, embeddings)
    if len(tasks) > 1:
        raise UserError(f"protocol {protocol.name} has {len(tasks)} folds, small ones; evaluate them without --shard")
    data = tasks[0].embeddings
    counting = prepare_counting(data.images, data.texts, data.image_labels, data.text_labels, device=device)
    return tasks[0], counting


def _shard_facts(protocol: Protocol, task: Task) -> dict[str, Any]:
    labels = labels_checksum(task.embeddings.image_labels, task.embeddings.text_labels)
    return {"protocol": protocol.name, "labels_checksum": labels}


def _refuse_to_replace(embeddings: Path, output: Path | None) -> None:
    if output is None:
        return
    refuse_directory(output)
    if embeddings.resolve() in (output.resolve(), ranks_path(output).resolve()):
        raise UserError(f"the result would replace the embeddings in {embeddings}; name another --output")
