"""All fidelity checks that ship with the package, and their table."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crosspair.original.verify.formulas import check_losses, check_metrics
from crosspair.original.verify.reference import Comparison
from crosspair.original.verify.towers import check_encoders
from crosspair.original.verify.trajectory import check_trajectory
from crosspair.progress import progress_bar
from crosspair.training.log import quiet_libraries

CHECKS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "losses": check_losses,
    "encoders": check_encoders,
    "metrics": check_metrics,
    "training": check_trajectory,
}


@dataclass(frozen=True)
class Verification:
    """The comparisons that the checks made."""

    comparisons: list[Comparison]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def to_table(self) -> str:
        """A line for each comparison, and how many there are and failed."""
        width = max(len(comparison.what) for comparison in self.comparisons)
        lines = [f"{'what':<{width}}  {'largest difference':>18}  {'tolerance':>9}  verdict"]
        for comparison in self.comparisons:
            verdict = "ok" if comparison.passed else "FAILED"
            numbers = f"{comparison.difference:>18.1e}  {comparison.tolerance:>9.0e}"
            lines.append(f"{comparison.what:<{width}}  {numbers}  {verdict}")
        failed = sum(not comparison.passed for comparison in self.comparisons)
        lines.append(f"{len(self.comparisons)} comparisons, {failed} failed, {self.seconds:.0f} s")
        return "\n".join(lines)


def verify(*, progress: bool = False) -> Verification:
    """Run all checks on the CPU, in a few seconds."""
    start = time.monotonic()
    comparisons: list[Comparison] = []
    with quiet_libraries(), progress_bar(CHECKS.items(), unit="check", disable=not progress, leave=False) as bar:
        for name, check in bar:
            bar.set_description(name)
            comparisons += check()
    return Verification(comparisons, time.monotonic() - start)
