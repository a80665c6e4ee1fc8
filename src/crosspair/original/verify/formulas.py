"""Losses with their gradients, recall and average precision against the original's.

Average precision is compared with scikit-learn's too, where the original's is wrong.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from crosspair.evaluation.metrics import RetrievalResult, evaluate_retrieval
from crosspair.evaluation.ranking import Metric
from crosspair.losses import cmpc_terms, cmpm_terms
from crosspair.original.verify.reference import (
    Arrays,
    Comparison,
    case_names,
    largest_difference,
    largest_share,
    load,
    loss_case,
    worst,
)

# The original compares labels as float32 distances, so that here neighbouring ones count as equal: float64 is right.
_WRONG_IN_FLOAT32 = {"cmpm29"}
# All labels are equal and the scale is small: the gradients are close to 0 and mostly rounding.
_NEAR_ZERO = {"cmpm06", "cmpm15"}
# One pair: p is 1 whatever the embeddings are, and so is q.
_NO_GRADIENT = {"cmpm18"}
_ORIGINAL_RATIO_EPSILON = 1e-8
_CASES = ("flickr50x5_correlated", "perfect_40x5")
_TIES = ("ties_sign_features_12x5_d4", "ties_all_equal_12x5_d4")
_METRICS: tuple[Metric, ...] = ("cosine", "euclidean")
_DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}


def check_losses() -> Iterator[Comparison]:
    """Losses in nats; gradients as a share of their largest entry."""
    arrays = {**load("cmpm"), **load("cmpc")}
    yield from _check_cmpm_float64(arrays)
    yield from _check_cmpm_float32(arrays)
    yield from _check_cmpc(arrays, torch.float64)
    yield from _check_cmpc(arrays, torch.float32)


def _check_cmpm_float64(arrays: Arrays) -> Iterator[Comparison]:
    """With the original's second epsilon to the last digits; without it, which is the default, to what it is worth."""
    plain, exact, gradients = [], [], []
    for name in case_names(arrays, "cmpm"):
        case = loss_case(arrays, name)
        expected = [float(case[f"{direction}_matching_loss_f64"]) for direction in ("i2t", "t2i")]
        plain.append(largest_difference(torch.stack(_cmpm(case, torch.float64, 0.0)[0]), expected))
        terms, *inputs = _cmpm(case, torch.float64, _ORIGINAL_RATIO_EPSILON)
        exact.append(largest_difference(torch.stack(terms), expected))
        if "grad_image_f64" in case and name not in _NO_GRADIENT:
            found = torch.autograd.grad(torch.stack(terms).sum(), inputs)
            gradients += _shares(found, case, ("grad_image_f64", "grad_text_f64"))
    yield Comparison("CMPM loss, float64, the original's second epsilon", worst(exact), 1e-10)
    yield Comparison("CMPM gradients, float64, the original's second epsilon", worst(gradients), 1e-10)
    yield Comparison("CMPM loss, float64, by default without it", worst(plain), 3e-8)


def _check_cmpm_float32(arrays: Arrays) -> Iterator[Comparison]:
    losses: list[float] = []
    gradients: dict[bool, list[float]] = {True: [], False: []}  # of ordinary cases, of hard ones
    for name in case_names(arrays, "cmpm"):
        case = loss_case(arrays, name)
        suffix = "_f64" if name in _WRONG_IN_FLOAT32 else ""
        terms, *inputs = _cmpm(case, torch.float32, 0.0)
        expected = [float(case[f"{direction}_matching_loss{suffix}"]) for direction in ("i2t", "t2i")]
        losses.append(largest_difference(torch.stack(terms), expected))
        if name not in _NO_GRADIENT | _WRONG_IN_FLOAT32:
            found = torch.autograd.grad(torch.stack(terms).sum(), inputs)
            ordinary = name not in _NEAR_ZERO and float(case.get("scale", 1)) <= 1
            gradients[ordinary] += _shares(found, case, ("grad_image", "grad_text"))
    yield Comparison("CMPM loss, float32", worst(losses), 3e-6)
    yield Comparison("CMPM gradients, float32", worst(gradients[True]), 1e-6)
    yield Comparison("CMPM gradients, float32, inputs times 30 or gradients near 0", worst(gradients[False]), 5e-5)


def _check_cmpc(arrays: Arrays, dtype: torch.dtype) -> Iterator[Comparison]:
    suffix, kind = ("_f64", "float64") if dtype == torch.float64 else ("", "float32")
    losses: list[float] = []
    gradients: dict[bool, list[float]] = {True: [], False: []}
    for name in case_names(arrays, "cmpc"):
        case = loss_case(arrays, name)
        if f"ipt_loss{suffix}" not in case:
            continue
        inputs = [torch.tensor(case[key], dtype=dtype, requires_grad=True) for key in ("image", "text", "W")]
        image, text, weight = inputs
        terms = cmpc_terms(image, text, torch.tensor(case["labels"]), weight, float(case["label_smoothing"]))
        for term, key in zip(terms, ("ipt_loss", "tpi_loss"), strict=True):
            expected = float(case[key + suffix])
            # The float64 losses were rounded to float32 on their way out.
            scale = abs(expected) if suffix else 1.0
            losses.append(largest_difference(term, expected) / scale)
        if f"grad_W{suffix}" in case:
            found = torch.autograd.grad(torch.stack(terms).sum(), inputs)
            ordinary = bool(suffix) or float(case.get("scale", 1)) <= 1
            keys = (f"grad_image{suffix}", f"grad_text{suffix}", f"grad_W{suffix}")
            gradients[ordinary] += _shares(found, case, keys)
    relative = ", as a share of the loss" if suffix else ""
    yield Comparison(f"CMPC loss, {kind}{relative}", worst(losses), 2e-7 if suffix else 3e-6)
    yield Comparison(f"CMPC gradients, {kind}", worst(gradients[True]), 1e-10 if suffix else 1e-6)
    if gradients[False]:
        yield Comparison(f"CMPC gradients, {kind}, inputs times 30", worst(gradients[False]), 5e-5)


def _cmpm(case: dict[str, Any], dtype: torch.dtype, ratio_epsilon: float) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    image, text = (torch.tensor(case[key], dtype=dtype, requires_grad=True) for key in ("image", "text"))
    return cmpm_terms(image, text, torch.tensor(case["labels"]), ratio_epsilon=ratio_epsilon), image, text


def _shares(gradients: Sequence[Tensor], case: dict[str, Any], keys: tuple[str, ...]) -> list[float]:
    """Differences of the gradients. Of large ones the reference keeps every eighth row and column."""
    shares = []
    for gradient, key in zip(gradients, keys, strict=True):
        expected = case[key] if key in case else case[f"{key}_every8"]
        values = gradient if gradient.shape == expected.shape else gradient[::8, ::8]
        shares.append(largest_share(values, expected))
    return shares


def check_metrics() -> Iterator[Comparison]:
    """Differences of the metrics in per cent, over both directions, by cosine and by euclidean distance."""
    arrays = load("retrieval")
    recall, precision, original, tied = [], [], [], []
    for case in (*_CASES, *_TIES):
        for metric in _METRICS:
            result = _evaluate(arrays, case, metric).to_dict()
            for short, direction in _DIRECTIONS.items():
                values, key = result[direction], f"{case}__{metric}_{short}"
                true = abs(values["mAP"] - 100 * float(arrays[f"{key}_true_MAP_sklearn"]))
                if case in _TIES:  # the original orders ties arbitrarily, scikit-learn takes them together
                    tied.append(true)
                    continue
                printed = 100 * arrays[f"{key}_R1_R5_R10_MAP"]
                recall += [abs(values[f"R@{k}"] - printed[place]) for place, k in enumerate((1, 5, 10))]
                precision += [true, abs(values["mAP"] - 100 * float(arrays[f"{key}_true_MAP_same_ranking"]))]
                original.append(abs(values["mAP_original"] - printed[3]))
    yield Comparison("Recall@1, 5 and 10", worst(recall), 0.0)
    yield Comparison("mean average precision, as it should be", worst(precision), 1e-9)
    yield Comparison("mean average precision, as the original printed it", worst(original), 1e-9)
    yield Comparison("mean average precision with ties, scikit-learn's", worst(tied), 1e-9)


def _evaluate(arrays: Arrays, case: str, metric: Metric) -> RetrievalResult:
    names = ("image_features", "text_features", "image_labels", "text_labels")
    images, texts, image_labels, text_labels = (arrays[f"{case}__{name}"] for name in names)
    return evaluate_retrieval(images, texts, image_labels, text_labels, metric=metric, metric_definition="original")
