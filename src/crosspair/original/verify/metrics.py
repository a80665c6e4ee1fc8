"""Recall and average precision against the original's, and against scikit-learn's where the original is wrong."""

from collections.abc import Iterator

from crosspair.evaluation.metrics import RetrievalResult, evaluate_retrieval
from crosspair.evaluation.ranking import Metric
from crosspair.original.verify.comparison import Comparison, worst
from crosspair.original.verify.reference import Arrays, load

_CASES = ("flickr50x5_correlated", "perfect_40x5")
_TIES = ("ties_sign_features_12x5_d4", "ties_all_equal_12x5_d4")
_METRICS: tuple[Metric, ...] = ("cosine", "euclidean")
_DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}


def check_metrics() -> Iterator[Comparison]:
    """In per cent, over both directions, by cosine and by euclidean distance."""
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
