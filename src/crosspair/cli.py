"""Command-line parsing: the commands and their options. What a command does is in its module of crosspair.commands."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from crosspair.devices import DEVICES
from crosspair.errors import UserError
from crosspair.version import __version__

_MODULES = {"import": "importing"}  # of commands whose name can't be a module's


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0, 1 when `verify` finds a difference, 2 for a user's mistake, 130 or 143 after a signal.
    """
    options = parse(arguments)
    try:
        if options.plugin:
            from crosspair.registry import load_plugin

            for plugin in options.plugin:
                load_plugin(plugin)
        command = import_module(f"crosspair.commands.{_MODULES.get(options.command, options.command)}")
        code: int = command.run(options) or 0
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line. What `train` and `prepare` do not know is in `overrides`: fields of the recipe, or
    options of the data format.

    Exits with code 2 and one sentence on stderr for what no command knows, with the nearest option there is.
    """
    options, rest = _parser().parse_known_args(arguments)
    options.nearest = partial(_nearest_option, parser=options.parser)
    if options.command in ("train", "prepare"):
        options.overrides = rest
    elif options.command == "evaluate" and not any(argument.startswith("-") for argument in rest):
        options.model += rest  # RUNs on both sides of an option
    elif rest:
        options.parser.error(_unrecognized(rest, options.parser))
    return options


def _unrecognized(rest: list[str], parser: argparse.ArgumentParser) -> str:
    unknown = [argument for argument in rest if argument.startswith("-")] or rest
    name = unknown[0].partition("=")[0]
    near = _nearest_option(name, parser) if name.startswith("--") else None
    hint = f"; did you mean {near}?" if near else f"; {parser.prog} --help lists what there is"
    return f"unrecognized {name}{hint}"


def _nearest_option(name: str, parser: argparse.ArgumentParser) -> str | None:
    """The option spelled nearest to `name`, or else the first whose help speaks of it."""
    helps = {text: action.help or "" for action in parser._actions for text in action.option_strings}
    longer = [text for text in helps if text.startswith((f"{name}-", name)) or name.startswith(f"{text}-")]
    near = longer or difflib.get_close_matches(name, helps, 1, 0.75)
    if not near:
        word = re.compile(rf"\b{re.escape(name.strip('-').removesuffix('s'))}s?\b")
        near = [text for text, about in helps.items() if text != "--help" and word.search(about)]
    return near[0] if near else None


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="crosspair", description="Train, evaluate, search and serve image-text matching models.")
    parser.add_argument("--version", action="version", version=f"crosspair {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="FILE.py|MODULE",
            help="code of your own that registers losses, encoders, formats ... (docs/extending.md); can be repeated",
        )
        sub.set_defaults(command=name, parser=sub)
        return sub

    _add_demo(command("demo", "train, evaluate and report on built-in drawings"))
    _add_prepare(command("prepare", "turn annotations and pictures into a DATA directory"))
    _add_train(command("train", "train a recipe; any of its fields can follow, as --stage1.epochs 3"))
    _add_evaluate(command("evaluate", "recall, mAP and ranks on a split, in both directions"))
    _add_compare(command("compare", "runs side by side, with intervals, paired differences and their test"))
    _add_report(command("report", "one self-contained HTML page about a run, a model or embeddings"))
    _add_index(command("index", "encode pictures into a GALLERY, and later what has changed among them"))
    _add_search(command("search", "the pictures of a GALLERY nearest to a sentence or a picture"))
    _add_serve(command("serve", "a web page and an HTTP API to search a gallery"))
    _add_export(command("export", "a model as files for ONNX Runtime, OpenVINO or the Hugging Face hub"))
    _add_import(command("import", "turn the original's TensorFlow checkpoint into a model"))
    _add_inspect(command("inspect", "what is in a DATA, RUN, MODEL or GALLERY directory, in a screenful"))
    _add_list(command("list", "names that recipes and options can use, built in or of your own plugins"))
    command("recipes", "list the built-in recipes")
    command("verify", "compare losses, encoders, metrics and training with the original's numbers")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES}; default: auto, the best there is")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("crosspair-demo"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="fewer drawings and epochs: done in about a minute")
    _add_device(parser)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "format",
        metavar="FORMAT",
        help="flickr8k, flickr30k, coco (Karpathy's JSON), cuhk-pedes, icfg-pedes, rstpreid, cub, flowers; your own "
        "pictures: table, folder, huggingface, webdataset; tfrecord (the original's)",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="the captions: a file, a folder, shards or a hub name"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the pictures lie, if not in the annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="DATA")
    parser.add_argument("--size", type=int, default=256, help="shorter side in pixels (default 256), 0 keeps the bytes")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at a picture that can't be read")
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes; default: one a core")
    parser.add_argument(
        "--split-shares",
        metavar="TRAIN,VAL,TEST",
        help="for a source without splits: their shares, as 0.8,0.1,0.1; 0.9,0.1,0 for one that lacks val alone",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawn splits (default 0)")
    parser.epilog = (
        "A format's own options can follow: --image-column NAME and --caption-column NAME of table and huggingface, "
        "--merge-restval of coco and tfrecord (adds COCO's split restval to train)."
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a built-in name (crosspair recipes) or a YAML file"
    )
    parser.add_argument(
        "--data", metavar="DATA", help='a DATA directory, or with --val a stream: "http://host/train-{000..123}.tar"'
    )
    parser.add_argument("--val", type=Path, metavar="DATA", help="for a stream: the directory whose split val is used")
    parser.add_argument("--output", type=Path, metavar="RUN")
    parser.add_argument("--resume", action="store_true", help="go on from RUN's newest checkpoint")
    parser.add_argument("--fields", action="store_true", help="list the recipe's fields with their defaults, and stop")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="*",
        metavar="RUN",
        help="a finished RUN, or MODEL as of `crosspair index`; of several, such as seeds, also mean and spread",
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="what RUN is evaluated on")
    parser.add_argument("--split", help="of DATA; default: test")
    parser.add_argument(
        "--embeddings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="instead of RUN and DATA: an .npz file, or a directory of .npy files of any size (docs/evaluation.md)",
    )
    parser.add_argument(
        "--similarities",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="instead of RUN and DATA: files with the matrix of all similarities; of several their mean is evaluated",
    )
    parser.add_argument(
        "--ensemble", action="store_true", help="evaluate several inputs as one, by the mean of their similarities"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--shard", metavar="K/N", help="of --embeddings count only the K-th of N shares, into --part")
    parts.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="of --embeddings: all N parts")
    parser.add_argument("--part", type=Path, metavar="PART.npz", help="the file that --shard counts into")
    _add_device(parser)
    parser.add_argument(
        "--protocol", metavar="NAME", help="coco-1k-5fold, cuhk-pedes ... (docs/evaluation.md); default: by DATA"
    )
    _add_ranking(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--queries", type=Path, metavar="FILE.parquet", help="write every query's rank and what was found instead"
    )
    parser.add_argument("--trec", type=Path, metavar="PREFIX", help="write rankings as TREC run and qrels files")
    parser.add_argument(
        "--csls", action="store_true", help="also the recalls with hubs held down, which takes all queries together"
    )
    parser.add_argument(
        "--metric-definition",
        choices=("exact", "original"),
        default="exact",
        help="original: print the original's mAP too, which counts one hit short",
    )


def _add_ranking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", choices=("cosine", "euclidean"), help="of embeddings; default: cosine")
    parser.add_argument("--direction", choices=("image-to-text", "text-to-image"), help="evaluate this one alone")
    parser.add_argument(
        "--distractors",
        action="store_true",
        help="let pictures and texts that match nothing be ranked among the others; without it they are refused",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="RUN",
        help="a RUN, a RESULT.json, or a MODEL as of `crosspair index`",
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="for RUNs not evaluated yet; default: their own")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--protocol", metavar="NAME", help="default: by DATA")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write comparison.md, .csv and .tex there")
    _add_device(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="RUN",
        help="a finished RUN, or with --data and --output a MODEL as of `crosspair index`",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="instead of RUN: an .npz file, or a directory of .npy files (docs/evaluation.md); --data adds pictures",
    )
    parser.add_argument(
        "--against",
        metavar="RUN|MODEL|FILE",
        help="show another one beside it on the same queries; a RESULT.json (its ranks alone) or embeddings do, too",
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="default: the one RUN was trained on")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--protocol", metavar="NAME", help="default: by DATA")
    _add_ranking(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/report.html, or FILE.html")
    _add_device(parser)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a finished RUN, a model's directory, a hub name, or a ready-made pair of another library",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a folder, with the folders in it, or DATA")
    parser.add_argument("--output", type=Path, required=True, metavar="GALLERY")
    parser.add_argument("--split", action="append", metavar="NAME", help="of DATA, can be repeated; default: all")
    parser.add_argument("--threads", type=int, metavar="N", help="that read and encode; default: one a core")
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="what searches: auto, exact, hnsw, milvus or a plugin's; default: the gallery's, or auto",
    )
    parser.add_argument("--distributed", choices=("ray",), help="encode on the cluster at RAY_ADDRESS")
    parser.add_argument("--ray-workers", type=int, metavar="N", help="of --distributed ray; default: one a core")
    parser.add_argument("--address", metavar="FILE|URI", help="of Milvus: a .db file, or http://HOST:PORT of a cluster")
    _add_device(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", type=Path, metavar="GALLERY")
    parser.add_argument("query", metavar="QUERY", help="a sentence, or a picture's file")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_device(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", type=Path, metavar="GALLERY")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone); others need a token"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes any that is free")
    parser.add_argument(
        "--token", help="who has it may search; default: CROSSPAIR_TOKEN, or made up where one is needed"
    )
    _add_device(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a finished RUN, a model's directory, or a hub name")
    parser.add_argument("--format", choices=("onnx", "openvino", "huggingface"))
    parser.add_argument(
        "--embeddings", type=Path, metavar="DATA", help="instead of a format: write the embeddings of a split of DATA"
    )
    parser.add_argument("--split", metavar="NAME", help="of DATA, with --embeddings; default: test")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="with --embeddings FILE.npz, FILE.mat, or a directory of .npy files",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="IMAGES",
        help="a folder or DATA to compare with PyTorch on; default: the data of RUN, or drawn pictures",
    )
    _add_device(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its prefix, such as model.ckpt-39")
    parser.add_argument(
        "--word-counts", type=Path, required=True, metavar="FILE", help="word_counts.txt beside its TFRecords"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="MODEL")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DATA|RUN|MODEL|GALLERY")
    parser.add_argument("--sheet", type=Path, metavar="FILE.jpg", help="write random pictures of DATA with captions")
    parser.add_argument("--seed", type=int, default=0, help="which pictures the sheet shows (default 0)")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", metavar="KIND", help="losses, encoders ...; default: the kinds there are")


if __name__ == "__main__":
    sys.exit(main())
