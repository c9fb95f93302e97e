"""Tables of a validation, for people."""

from typing import assert_never

from rich.console import Group, RenderableType
from rich.text import Text

from simgd.texttable import Fitting, table
from simgd.units import show_seconds
from simgd.validation import ENOUGH_ITERATIONS, MOST_NOISE, NOISY_ERROR, Comparison, Residual, Validation

#: Residuals that are told of the worst comparisons.
SHOWN_CASES, SHOWN_RESIDUALS = 3, 4


def validation(found: Validation) -> RenderableType:
    """Return the table of all comparisons, what they amount to, and what was mispredicted in the worst ones."""
    rows = table(
        "workload",
        "schedule",
        "on",
        "backend",
        "predicted",
        "measured",
        "error",
        "noise",
        "in interval",
        "",
        left=4,
    )
    for each in found.comparisons:
        rows.add_row(
            each.workload,
            each.schedule,
            f"{each.cluster}, {each.ranks} ranks",
            f"{each.backend}, {each.compute}",
            show_seconds(each.predicted_s) + ("~" if each.extrapolated else ""),
            show_seconds(each.measured_s),
            f"{each.relative_error:+.1%}",
            "" if each.noise is None else f"{each.noise:.1%}",
            f"{each.covered:.0%} of {each.iterations}",
            _standing(each),
        )
    parts: list[RenderableType] = [
        Fitting(rows, ("in interval", "noise", "backend")),
        Text(),
        *map(Text, figures(found)),
    ]
    told_of = [each for each in found.comparisons if each.residuals]
    worst = sorted(told_of, key=lambda each: each.severity, reverse=True)
    for each in worst[:SHOWN_CASES]:
        parts.append(Text(f"\n{each.workload}, {each.schedule}, {each.relative_error:+.1%}; what differs most:"))
        parts += [Text(f"  {told(residual)}") for residual in each.residuals[:SHOWN_RESIDUALS]]
    return Group(*parts)


def _standing(each: Comparison) -> str:
    if each.counted:
        return ""
    if not each.held_out:
        return "seen by calibration"
    return f"noisy, {'within' if each.within else 'outside'}"


def figures(found: Validation) -> list[str]:
    """Return what the comparisons amount to, in sentences."""
    lines = [f"{found.counted} of {len(found.comparisons)} count: held out, and noise up to {MOST_NOISE:.0%}"]
    if found.noisy:
        lines.append(
            f"{found.noisy_within} of {found.noisy} noisier ones lie within {NOISY_ERROR:.0%} plus their noise"
        )
    if found.mean_abs_error is not None and found.max_abs_error is not None and found.median_abs_error is not None:
        mean, middle, largest = found.mean_abs_error, found.median_abs_error, found.max_abs_error
        lines.append(f"error: mean {mean:.1%}, median {middle:.1%}, largest {largest:.1%}")
    if found.mean_abs_exposed_error is not None:
        lines.append(f"error of what an iteration takes beyond compute alone: mean {found.mean_abs_exposed_error:.0%}")
    if found.rank_agreement is not None:
        lines.append(f"order of schedules: {found.rank_agreement:.1%} of {found.pairs} pairs that differ are right")
        for pair in found.wrong_pairs[:5]:
            lines.append(f"  not {pair.faster} before {pair.slower}: {pair.workload} on {pair.cluster}, {pair.backend}")
    if found.coverage_90 is not None:
        lines.append(f"intervals of 90 % hold {found.coverage_90:.1%} of {found.iterations} single iterations")
    if found.coverage_90_of_long is not None:
        count = f"{found.enough_iterations} comparisons of at least {ENOUGH_ITERATIONS} iterations"
        lines.append(f"  and {found.coverage_90_of_long:.1%} of those of {count}")
    return lines


def told(residual: Residual) -> str:
    """Return a residual in words."""
    measured, predicted = show_seconds(residual.measured_s), show_seconds(residual.predicted_s)
    match residual.what:
        case "run":
            error = f" ({residual.predicted_s / residual.measured_s - 1:+.0%})" if residual.measured_s else ""
            return f"{residual.op!r} takes {measured}, predicted {predicted}{error}"
        case "wait before":
            return f"{residual.lane} waits {measured} before {residual.op!r}, predicted {predicted}"
        case "issue":
            return f"{residual.lane} takes {measured} to issue {residual.op!r}, predicted {predicted}"
        case _ as never:
            assert_never(never)
