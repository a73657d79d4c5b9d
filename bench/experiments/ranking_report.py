"""The ranking experiment's summary.md, summary.csv and plot from its CSV files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from brief_sources import read_trained
from markdown import number, percent, table
from ranking_candidates import ASKED, PROPOSED, SIZE
from ranking_evaluation import FEWEST_FOR_INTERVAL, RESAMPLES, Evaluated, Evaluation, Figure, evaluate_pool
from ranking_plot import plot
from ranking_pools import groups_of
from ranking_scores import read_scores
from transfer_report import conditions_line

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ranking_pools import Group
    from rich.console import Console
    from transfer_runs import Row, RunFile

NAN = float("nan")
LAST = -1


@dataclass(frozen=True)
class Pool:
    """A set of targets and candidates on which all scores are compared."""

    name: str
    section: str
    scenarios: tuple[str, ...]
    epoch: int
    earlier: bool = False
    """Whether its runs are those of the transfer experiment."""


MAIN = Pool("all candidates, after the last epoch", "ranking", ("elsewhere", "brief"), LAST)
POOLS = (
    MAIN,
    Pool("all candidates, after the first epoch", "ranking", ("elsewhere", "brief"), 1),
    Pool("briefly trained candidates only, after the last epoch", "ranking", ("brief",), LAST),
    Pool("transfer experiment, sources trained elsewhere, after the first epoch", "grid", ("elsewhere",), 1, True),
    Pool("transfer experiment, fine-tuned sources, after the first epoch", "grid", ("fine-tuned",), 1, True),
)


def write_report(file: RunFile, earlier: RunFile, out: Path, console: Console) -> None:
    """Writes summary.csv, summary.md and plot.png from the finished runs and the scores beside them.

    Args:
        file: Runs of the ranking experiment.
        earlier: Runs of the transfer experiment; may be empty.
        out: Folder with scores.csv and sources.csv, and where the report goes.
        console: Told what was written.
    """
    scores = read_scores(out / "scores.csv")
    pools: list[tuple[Pool, Evaluation]] = []
    for pool in POOLS:
        runs = (earlier if pool.earlier else file).runs()
        groups = groups_of(runs, scores, section=pool.section, scenarios=pool.scenarios, epoch=pool.epoch)
        if groups:
            pools.append((pool, evaluate_pool(groups)))
    if not pools or pools[0][0] != MAIN:
        console.print(f"{file.path}: too few finished runs to compare candidates, nothing to report")
        return
    conditions = conditions_line([row for row in file.rows if row.section == MAIN.section])
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(_markdown(pools, file, earlier, out, conditions), encoding="utf-8")
    _write_csv(pools, out / "summary.csv")
    with replacing(out / "plot.png") as temporary:
        plot(pools[0][1], conditions, temporary)
    console.print(f"wrote summary.csv, summary.md and plot.png into {out}")


def verdict(evaluated: Evaluated) -> str:
    """What the intervals of the differences to size allow to say of the whole order and of the first choice."""
    tau, regret = evaluated.tau_beyond_size.interval, evaluated.regret_beyond_size.interval
    if np.isnan(tau[0]):
        return "too few candidates to tell"
    order = _told(tau, "better than", "worse than") or "not told apart from"
    choice = _told(regret, "worse than", "better than") or "not told apart from"
    return f"order {order} size's, first choice {choice} size's"


def _told(interval: tuple[float, float], above: str, below: str) -> str | None:
    low, high = interval
    return above if low > 0 else below if high < 0 else None


def _markdown(
    pools: Sequence[tuple[Pool, Evaluation]], file: RunFile, earlier: RunFile, out: Path, conditions: str
) -> str:
    main = pools[0][1]
    parts = [
        "# Which source first? Scores against size on CIFAR-10 (JPEG)",
        "## Pooled within targets",
        _verdicts(pools),
        _pooled_table(main),
        conditions,
        _reading(main),
        "## By target: Kendall's tau-b",
        _tau_table(main),
        conditions,
        "## By target: regret of the first choice",
        _regret_table(main),
        conditions,
        "## Other outcomes and other candidates",
    ]
    for pool, evaluation in pools[1:]:
        rows = [row for row in (earlier if pool.earlier else file).rows if row.section == pool.section]
        parts += [f"### {pool.name[0].upper()}{pool.name[1:]}", _pooled_table(evaluation), _sizes(evaluation)]
        parts.append(conditions_line(rows))
    parts += ["## All candidates", _candidate_table(file.rows, main), conditions]
    parts += ["## Sources trained here", _source_table(read_trained(out / "sources.csv"))]
    return "\n\n".join(parts) + "\n"


def _verdicts(pools: Sequence[tuple[Pool, Evaluation]]) -> str:
    """A list of what each pool says of similarity against size, and which proposed scores do better than size."""
    lines = []
    for pool, evaluation in pools:
        asked = [one for one in evaluation.scores if one.score.kind == ASKED and one.score.name != SIZE]
        said = "; ".join(f"{one.score.name} **{verdict(one)}** (tau-b {one.tau.value:+.2f})" for one in asked)
        lines.append(f"- {pool.name}: {said}; size {evaluation.named(SIZE).tau.value:+.2f}.")
    main = pools[0][1]
    proposed = [one for one in main.scores if one.score.kind == PROPOSED]
    better = [one.score.name for one in proposed if one.tau_beyond_size.interval[0] > 0]
    chosen = [one.score.name for one in proposed if one.regret_beyond_size.interval[1] < 0]
    lines.append(
        f"- Of the {len(proposed)} scores proposed beforehand, {_listed(better)} better than size by tau-b and "
        f"{_listed(chosen)} by regret, {MAIN.name}."
    )
    largest = set(main.named(SIZE).choices.values())
    if len(largest) == 1:
        (chosen_by_size,) = largest
        named = " or ".join(chosen_by_size)
        lines.append(f"- Size has one first choice for every target, {named}: its regret is that of this source.")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}" if names else "none is"


def _pooled_table(evaluation: Evaluation) -> str:
    low, high = evaluation.random_tau
    rows = [["random", "baseline", f"0 [{low:+.2f}, {high:+.2f}]", "—", _figure(evaluation.random_regret, ""), "—"]]
    for one in evaluation.scores:
        rows.append(
            [
                one.score.name,
                one.score.kind,
                _figure(one.tau),
                "—" if one.score.name == SIZE else _figure(one.tau_beyond_size),
                _figure(one.regret, ""),
                "—" if one.score.name == SIZE else _figure(one.regret_beyond_size),
            ]
        )
    return table(["score", "", "tau-b", "tau-b minus size's", "regret", "regret minus size's"], rows)


def _reading(evaluation: Evaluation) -> str:
    seeds = ", ".join(f"{group.target} {len(group.seeds)}" for group in evaluation.groups)
    return (
        f"{_sizes(evaluation)} Seeds: {seeds}. "
        "Gain: accuracy after the last epoch divided by that of random initialization with the same seed, averaged "
        "over the seeds that all candidates of a target have finished. "
        "tau-b: over all pairs of candidates of one target, targets put together. "
        "Regret: gain of the best candidate minus gain of the first choice (tied first choices: their mean), averaged "
        "over targets; for random, its expectation. "
        f"Brackets: 95 % percentile interval of {RESAMPLES} bootstrap resamples: within each target the seeds of each "
        "candidate and then the candidates are redrawn with replacement; targets are not, so the intervals say "
        "nothing of other targets, and with one seed nothing of how a repetition would differ. All scores see the "
        "same resamples; copies of a candidate are tied with each other in score and gain. No brackets where a target "
        f"has fewer than {FEWEST_FOR_INTERVAL} candidates. For random, tau's bracket holds 95 % of random orders. "
        "Intervals are not corrected for the number of scores. "
        "Scores and the main outcome were fixed before the first gain was measured. "
        "`needs measurements`: the score uses accuracies on the test images, which architectures alone do not give."
    )


def _sizes(evaluation: Evaluation) -> str:
    counts = ", ".join(f"{group.target} {len(group.candidates)}" for group in evaluation.groups)
    return f"Candidates (a target's own architecture is none): {counts}."


def _tau_table(evaluation: Evaluation) -> str:
    targets = [group.target for group in evaluation.groups]
    rows = [[one.score.name, *(_figure(one.taus[target]) for target in targets)] for one in evaluation.scores]
    return table(["score", *targets], rows)


def _regret_table(evaluation: Evaluation) -> str:
    targets = [group.target for group in evaluation.groups]
    best = [_named(group) for group in evaluation.groups]
    rows = [["(best gain)", *best], ["random", *(f"{evaluation.random_regrets[target]:.2f}" for target in targets)]]
    for one in evaluation.scores:
        cells = [f"{_figure(one.regrets[target], '')} {_few(one.choices[target])}" for target in targets]
        rows.append([one.score.name, *cells])
    return table(["score", *targets], rows)


def _named(group: Group) -> str:
    best = int(group.gain.argmax())
    return f"{group.gain[best]:.2f} {group.candidates[best].pair.source}"


def _few(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tied"


def _candidate_table(rows: Sequence[Row], evaluation: Evaluation) -> str:
    cells = []
    for group in evaluation.groups:
        for c in sorted(group.candidates, key=lambda c: -c.gains.mean()):
            key = (group.target, c.pair.source, c.scenario)
            of = [r for r in rows if (r.target, r.source, r.scenario) == key and r.seed in group.seeds]
            epochs = range(1, max(r.epoch for r in of) + 1)
            after = [percent(float(np.mean([r.accuracy for r in of if r.epoch == epoch]))) for epoch in epochs]
            cells.append(
                [
                    group.target,
                    c.pair.source,
                    c.scenario,
                    f"{c.pair.source_parameters / 1e6:.2f} M",
                    number(c.pair.symmetric),
                    number(c.pair.directed),
                    percent(c.pair.coverage),
                    percent(c.source_accuracy),
                    percent(c.accuracy_before),
                    " / ".join(after),
                    f"{c.gains.mean():.2f}",
                ]
            )
    header = ["target", "source", "scenario", "parameters", "similarity", "directed", "coverage", "source itself"]
    return table([*header, "before", "after each epoch", "gain"], cells)


def _source_table(rows: Sequence[dict[str, str]]) -> str:
    cells = [
        [
            row["name"],
            f"{int(row['parameters']) / 1e6:.2f} M",
            f"{percent(float(row['accuracy']))} of {row['test_images']}",
            f"{row['images']} x {row['epochs']}, batch {row['batch_size']}, seed {row['seed']}",
            f"{float(row['seconds']):.0f} s",
            row["commit"],
        ]
        for row in rows
    ]
    header = ["source", "parameters", "test accuracy", "training images x epochs", "training", "commit"]
    return table(header, cells)


def _figure(figure: Figure, sign: str = "+") -> str:
    if np.isnan(figure.value):
        return "—"
    # Adding zero takes the sign off a rounded -0.
    value, low, high = (f"{round(one, 2) + 0.0:{sign}.2f}" for one in (figure.value, *figure.interval))
    return value if low.endswith("nan") else f"{value} [{low}, {high}]"


def _write_csv(pools: Sequence[tuple[Pool, Evaluation]], path: Path) -> None:
    """One row for each pool, target (or all together) and score."""
    figures = ("tau", "tau_beyond_size", "regret", "regret_beyond_size")
    header = ["pool", "target", "candidates", "seeds", "score", "kind", "choice"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(f"{name}{part}" for name in figures for part in ("", "_low", "_high"))])
        for pool, evaluation in pools:
            for one in evaluation.scores:
                known = [one.score.name, one.score.kind]
                count = sum(len(group.candidates) for group in evaluation.groups)
                pooled = [one.tau, one.tau_beyond_size, one.regret, one.regret_beyond_size]
                writer.writerow([pool.name, "all", count, "", *known, "", *_columns(pooled)])
                for group in evaluation.groups:
                    name = group.target
                    own = [one.taus[name], Figure(NAN), one.regrets[name], Figure(NAN)]
                    row = [
                        pool.name,
                        name,
                        len(group.candidates),
                        len(group.seeds),
                        *known,
                        " ".join(one.choices[name]),
                    ]
                    writer.writerow([*row, *_columns(own)])


def _columns(figures: Sequence[Figure]) -> list[float]:
    return [value for figure in figures for value in (figure.value, *figure.interval)]
