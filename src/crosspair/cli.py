"""The command line: one parser, one function per command. What a command does is done elsewhere."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import crosspair
from crosspair.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, 1 when `verify` finds a difference, 2 for a user's mistake, 130 or 143 after a signal.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not _train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.run is _train:
        options.overrides = rest
    try:
        code: int = options.run(options) or 0
    except UserError as error:
        print(f"crosspair: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        if not error.filename:
            raise
        print(f"crosspair: {error.filename}: {error.strerror}; check that path and its permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("crosspair: stopped", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crosspair", description="Train, evaluate and look at image-text matching models."
    )
    parser.add_argument("--version", action="version", version=f"crosspair {crosspair.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "train, evaluate and report on built-in drawings")
    demo.add_argument("--output", type=Path, default=Path("crosspair-demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--quick", action="store_true", help="fewer drawings and epochs: done in about a minute")

    prepare = command("prepare", _prepare, "turn annotations and pictures into a DATA directory")
    prepare.add_argument(
        "format",
        metavar="FORMAT",
        help="flickr8k, flickr30k, coco (Karpathy's JSON), cuhk-pedes, icfg-pedes, rstpreid, cub, flowers; your own "
        "pictures: table, folder, huggingface, webdataset; tfrecord (the original's)",
    )
    prepare.add_argument(
        "--annotations", type=Path, metavar="FILE", help="the captions: a file, a folder, shards or a hub name"
    )
    prepare.add_argument("--images", type=Path, metavar="DIR", help="where the pictures lie, if not in the annotations")
    prepare.add_argument("--output", type=Path, required=True, metavar="DATA")
    prepare.add_argument(
        "--size", type=int, default=256, help="shorter side in pixels (default 256), 0 keeps the bytes"
    )
    prepare.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at a picture that can't be read")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    prepare.add_argument(
        "--split",
        metavar="TRAIN,VAL,TEST",
        help="for a source without splits: their shares, as 0.8,0.1,0.1; 0.9,0.1,0 for one that lacks val alone",
    )
    prepare.add_argument("--seed", type=int, default=0, help="of the drawn splits (default 0)")
    prepare.add_argument("--image-column", metavar="NAME", help="of a table or Hugging Face set (default: picture)")
    prepare.add_argument("--caption-column", metavar="NAME", help="of a table or Hugging Face set (default: caption)")
    prepare.add_argument("--merge-restval", action="store_true", help="coco: add its split restval to train")

    train = command("train", _train, "train a recipe; any of its fields can follow, as --stage1.epochs 3")
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="a built-in name (crosspair recipes) or a YAML file")
    train.add_argument(
        "--data", metavar="DATA", help='a DATA directory, or with --val a stream: "http://host/train-{000..123}.tar"'
    )
    train.add_argument("--val", type=Path, metavar="DATA", help="for a stream: the directory whose split val is used")
    train.add_argument("--output", type=Path, metavar="RUN")
    train.add_argument("--resume", action="store_true", help="go on from RUN's newest checkpoint")
    train.add_argument("--fields", action="store_true", help="list the recipe's fields with their defaults, and stop")

    evaluate = command("evaluate", _evaluate, "recall, mAP and ranks on a split, in both directions")
    evaluate.add_argument("model", nargs="?", metavar="RUN", help="a finished RUN, or a model's directory")
    evaluate.add_argument("--data", type=Path, metavar="DATA")
    evaluate.add_argument("--split", help="default: test")
    evaluate.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="instead of RUN and DATA: an .npz file, or a directory of .npy files of any size (docs/evaluation.md)",
    )
    parts = evaluate.add_mutually_exclusive_group()
    parts.add_argument(
        "--shard", metavar="K/N", help="of --embeddings count only the K-th of N shares, into the part --output"
    )
    parts.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="of --embeddings: all N parts")
    evaluate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that ranks --embeddings")
    evaluate.add_argument(
        "--protocol", metavar="NAME", help="coco-1k-5fold, cuhk-pedes ... (docs/evaluation.md); default: by DATA"
    )
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")
    evaluate.add_argument("--trec", type=Path, metavar="PREFIX", help="write rankings as TREC run and qrels files")
    evaluate.add_argument(
        "--csls", action="store_true", help="also the recalls with hubs held down, which takes all queries together"
    )
    evaluate.add_argument(
        "--metric-definition",
        choices=("exact", "original"),
        default="exact",
        help="original: print the original's mAP too, which counts one hit short",
    )

    compare = command("compare", _compare, "runs side by side, with intervals, paired differences and their test")
    compare.add_argument("names", nargs="+", metavar="RUN", help="a RUN, a model's directory, or a RESULT.json")
    compare.add_argument("--data", type=Path, metavar="DATA", help="for RUNs not evaluated yet; default: their own")
    compare.add_argument("--split", default="test", help="default: %(default)s")
    compare.add_argument("--protocol", metavar="NAME", help="default: by DATA")
    compare.add_argument("--output", type=Path, metavar="PREFIX", help="write PREFIX.md, PREFIX.csv and PREFIX.tex")

    report = command("report", _report, "one self-contained HTML page about a run")
    report.add_argument("run_directory", type=Path, metavar="RUN")
    report.add_argument("--data", type=Path, metavar="DATA", help="default: the one RUN was trained on")
    report.add_argument("--split", default="val", help="default: %(default)s")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/report.html")

    importing = command("import", _import, "turn the original's TensorFlow checkpoint into a model")
    importing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its prefix, such as model.ckpt-39")
    importing.add_argument(
        "--word-counts", type=Path, required=True, metavar="FILE", help="word_counts.txt beside its TFRecords"
    )
    importing.add_argument("--output", type=Path, required=True, metavar="MODEL")

    command("verify", _verify, "compare losses, encoders, metrics and training with the original's numbers")

    index = command("index", _index, "encode pictures into a GALLERY, and later what has changed among them")
    index.add_argument("model", metavar="MODEL", help="a finished RUN, a model's directory, or a hub name")
    index.add_argument("images", type=Path, metavar="PICTURES", help="a folder, with the folders in it, or DATA")
    index.add_argument("--output", type=Path, required=True, metavar="GALLERY")
    index.add_argument("--split", action="append", metavar="NAME", help="of DATA, can be repeated; default: all")
    index.add_argument("--workers", type=int, metavar="N", help="threads, or Ray's workers; default: one a core")
    index.add_argument("--engine", choices=("faiss", "milvus"), help="what searches; default: the gallery's, or faiss")
    index.add_argument("--distributed", choices=("ray",), help="encode on the cluster at RAY_ADDRESS")
    index.add_argument("--address", metavar="FILE|URI", help="of Milvus: a .db file, or http://HOST:PORT of a cluster")

    search = command("search", _search, "the pictures of a GALLERY nearest to a sentence or a picture")
    search.add_argument("gallery", type=Path, metavar="GALLERY")
    search.add_argument("query", metavar="QUERY", help="a sentence, or a picture's file")
    search.add_argument("--top", type=int, default=10, metavar="N", help="how many (default %(default)s)")
    search.add_argument("--json", action="store_true", help="print JSON instead of a table")

    serve = command("serve", _serve, "a web page and an HTTP API to search a gallery")
    serve.add_argument("gallery", type=Path, metavar="GALLERY")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone); others need a token"
    )
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes any that is free")
    serve.add_argument(
        "--token", help="who has it may search; default: CROSSPAIR_TOKEN, or made up where one is needed"
    )

    export = command("export", _export, "a model as files for ONNX Runtime, OpenVINO or the Hugging Face hub")
    export.add_argument("model", metavar="MODEL", help="a finished RUN, a model's directory, or a hub name")
    export.add_argument("--format", choices=("onnx", "openvino", "huggingface"), required=True)
    export.add_argument("--output", type=Path, required=True, metavar="DIR")
    export.add_argument(
        "--check",
        type=Path,
        metavar="PICTURES",
        help="a folder or DATA to compare with PyTorch on; default: the data of RUN, or drawn pictures",
    )

    inspect = command("inspect", _inspect, "what is in a DATA, RUN or GALLERY directory, in a screenful")
    inspect.add_argument("path", type=Path, metavar="DATA|RUN|GALLERY")
    inspect.add_argument("--sheet", type=Path, metavar="FILE.jpg", help="write random pictures of DATA with captions")
    inspect.add_argument("--seed", type=int, default=0, help="which pictures the sheet shows (default 0)")

    command("recipes", _recipes, "list the built-in recipes")
    return parser


def _demo(options: argparse.Namespace) -> None:
    from crosspair.commands.demo import run_demo

    run_demo(options.output, quick=options.quick)


def _prepare(options: argparse.Namespace) -> None:
    from crosspair.data.prepare import prepare_format
    from crosspair.data.readers.columns import Columns

    print(
        prepare_format(
            options.format,
            options.annotations,
            options.images,
            options.output,
            size=options.size,
            workers=options.workers,
            on_error=options.on_error,
            split=options.split,
            seed=options.seed,
            columns=Columns(options.image_column, options.caption_column),
            merge_restval=options.merge_restval,
        )
    )


def _train(options: argparse.Namespace) -> int | None:
    from crosspair.training.recipe_files import field_help

    if options.fields:
        print(field_help())
        return None
    missing = [name for name in ("recipe", "data", "output") if getattr(options, name) is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}; expected crosspair train RECIPE --data DATA --output RUN")
    from crosspair.commands.common import train_command

    return train_command(options.recipe, options.overrides, options.data, options.val, options.output, options.resume)


def _evaluate(options: argparse.Namespace) -> None:
    if options.embeddings is None and (options.model is None or options.data is None):
        raise UserError("expected crosspair evaluate RUN --data DATA, or crosspair evaluate --embeddings FILE")
    if options.embeddings is not None and (options.model or options.data or options.split):
        raise UserError("--embeddings takes the place of RUN, --data and --split; give one or the others")
    if options.embeddings is None and (options.shard or options.merge):
        raise UserError("--shard and --merge are for --embeddings; evaluate RUN as a whole")
    if options.shard and options.output is None:
        raise UserError("--shard needs a file to count into; expected --output PART.npz")
    if (options.shard or options.merge) and options.trec:
        raise UserError("--trec needs all scores, which no part keeps; leave it out, or --shard and --merge")
    if (options.shard or options.merge) and options.csls:
        raise UserError("--csls takes all queries together; leave it out, or --shard and --merge")
    from crosspair.commands import evaluate

    path, output, protocol = options.embeddings, options.output, options.protocol
    definition, trec, device, csls = options.metric_definition, options.trec, options.device, options.csls
    if options.shard:
        text = evaluate.evaluate_shard_command(path, options.shard, output, protocol, device)
    elif options.merge:
        text = evaluate.merge_command(path, options.merge, output, definition, protocol)
    elif path is not None:
        text = evaluate.evaluate_embeddings_command(path, output, definition, protocol, trec, device, csls)
    else:
        split = options.split or "test"
        text = evaluate.evaluate_model_command(
            options.model, options.data, split, output, definition, protocol, trec, csls
        )
    print(text)


def _compare(options: argparse.Namespace) -> None:
    from crosspair.commands.compare import compare_command

    print(compare_command(options.names, options.data, options.split, options.protocol, options.output))


def _report(options: argparse.Namespace) -> None:
    from crosspair.commands.common import report_command

    print(report_command(options.run_directory, options.data, options.split, options.output))


def _import(options: argparse.Namespace) -> None:
    from crosspair.commands.common import import_command

    print(import_command(options.checkpoint, options.word_counts, options.output))


def _verify(options: argparse.Namespace) -> int:
    from crosspair.commands.common import verify_command

    table, passed = verify_command()
    print(table)
    return 0 if passed else 1


def _index(options: argparse.Namespace) -> None:
    from crosspair.commands.common import index_command

    print(
        index_command(
            options.model,
            options.images,
            options.output,
            splits=options.split,
            workers=options.workers,
            engine=options.engine,
            address=options.address,
            distributed=options.distributed,
        )
    )


def _search(options: argparse.Namespace) -> None:
    from crosspair.commands.common import search_command

    print(search_command(options.gallery, options.query, options.top, as_json=options.json))


def _serve(options: argparse.Namespace) -> None:
    from crosspair.commands.common import serve_command

    serve_command(options.gallery, options.host, options.port, options.token)


def _export(options: argparse.Namespace) -> None:
    from crosspair.commands.export import export_command

    print(export_command(options.model, options.format, options.output, options.check))


def _inspect(options: argparse.Namespace) -> None:
    from crosspair.commands.common import inspect_command

    print(inspect_command(options.path, options.sheet, options.seed))


def _recipes(options: argparse.Namespace) -> None:
    from crosspair.training.recipe_files import describe_recipes

    print(describe_recipes())


if __name__ == "__main__":
    sys.exit(main())
