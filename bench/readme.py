"""Write the README's tables of figures from the files under bench/results.

python bench/readme.py
"""

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def benchmarks(name: str) -> str:
    """Table of the last saved run of that name, its conditions under it."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| what | pyassemble | peer | ratio |", "|---|---|---|---|"]
    for row in rows:
        peer = f"{row['peer']}: {quantity(row['peer_value'], row['unit'])}" if row["peer"] else ""
        ratio = f"{float(row['ratio']):,.0f} ×".replace(",", " ") if row["ratio"] else ""
        lines.append(f"| {row['what']} | {quantity(row['value'], row['unit'])} | {peer} | {ratio} |")
    last = rows[-1]
    suites = {"transfer": "bench/test_recurrence.py bench/test_transfer.py", "zoo": "bench/test_zoo.py"}
    lines.append("")
    lines.append(
        f"Medians, alternating with the peer in one run: "
        f"`python -m pytest {suites[name]} --benchmark-enable --save-results {name}`. "
        f"{last['device']}, Python {last['python']}, torch {last['torch']}, commit {last['commit']}."
    )
    return "\n".join(lines)


def kernels() -> str:
    """Table of the last saved run of the kernels' benchmarks: one line for each case, one column for each peer."""
    saved = RESULTS / "kernels.csv"
    if not saved.exists():
        return "No figures have been saved yet."
    with saved.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = {row["what"].removesuffix(": of copy bandwidth"): row for row in rows if row["unit"] == "%"}
    lines = [
        "| what | time | published form | good eager | torch.compile | of copy bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for what in dict.fromkeys(row["what"] for row in rows if row["unit"] == "s"):
        measured = [row for row in rows if row["what"] == what]
        ratios = {row["peer"]: f"{float(row['ratio']):.2f} ×" for row in measured if row["ratio"]}
        share = f"{float(shares[what]['value']):.0f} %" if what in shares else ""
        cells = [quantity(measured[0]["value"], "s"), *(ratios.get(p, "") for p in ("published", "eager", "compiled"))]
        lines.append(f"| {' | '.join([what, *cells, share])} |")
    last = rows[-1]
    lines.append("")
    lines.append(
        "Medians of alternating turns; a peer's time as a multiple of ours: "
        "`python -m pytest bench/test_hard_concrete.py bench/test_frobenius.py bench/test_perturbation.py "
        "--benchmark-enable --save-results kernels`. "
        f"{last['device']}, Python {last['python']}, torch {last['torch']}, commit {last['commit']}."
    )
    return "\n".join(lines)


def quantity(value: str, unit: str) -> str:
    """A figure in the unit that keeps it readable."""
    number = float(value)
    if unit == "s" and number < 1e-3:
        return f"{number * 1e6:.3g} µs"
    if unit == "s" and number < 1:
        return f"{number * 1e3:.3g} ms"
    return f"{number:.3g} {unit}"


def transfer_results() -> str:
    """The experiment's plot, and the parts of its summary that answer a reader's first questions."""
    folder = RESULTS / "transfer_cifar10"
    parts = (folder / "summary.md").read_text(encoding="utf-8").split("\n## ")
    shown = [part for part in parts[1:] if not part.startswith("All pairs")]
    link = folder.relative_to(ROOT).as_posix()
    lines = [
        f"`python bench/experiments/transfer_cifar10.py`; every pair is in [summary.md]({link}/summary.md).",
        f"![test accuracy by epoch, and effectiveness by similarity]({link}/plot.png)",
        *(f"### {part.strip()}" for part in shown),
    ]
    return "\n\n".join(lines)


def ranking_results() -> str:
    """The ranking experiment's picture and its table over all targets."""
    folder = RESULTS / "source_ranking"
    parts = (folder / "summary.md").read_text(encoding="utf-8").split("\n## ")
    pooled = next(part for part in parts if part.startswith("Pooled within targets"))
    link = folder.relative_to(ROOT).as_posix()
    lines = [
        "### Which source first?",
        f"`python bench/experiments/source_ranking.py`; every target and candidate is in "
        f"[summary.md]({link}/summary.md).",
        f"![gain by similarity and by size, and how well each score orders sources]({link}/plot.png)",
        pooled.partition("\n")[2].strip(),
    ]
    return "\n\n".join(lines)


def merge_results() -> str:
    """The sine experiment's picture and tables, the table on CIFAR-10, and the cost of a step."""
    lines = []
    for name, heading in (
        ("merge_sine", "The publication's sine experiment, samples in one order as in its code"),
        ("merge_sine_shuffled", "The publication's sine experiment, a new order of the samples for every epoch"),
    ):
        sine = RESULTS / name
        if not (sine / "summary.md").exists():
            continue
        parts = (sine / "summary.md").read_text(encoding="utf-8").split("\n## ")
        link = sine.relative_to(ROOT).as_posix()
        option = " --shuffled" if name.endswith("shuffled") else ""
        lines += [
            f"### {heading}",
            f"`python bench/experiments/merge_sine.py{option}`; [summary.md]({link}/summary.md).",
            f"![test losses of the three strategies, and the curves they learned]({link}/plot.png)",
            parts[0].partition("\n")[2].strip(),
            parts[1].partition("\n")[2].strip(),
        ]
    cifar = RESULTS / "merge_cifar10"
    if (cifar / "summary.md").exists():
        link = cifar.relative_to(ROOT).as_posix()
        lines += [
            "### CIFAR-10, against what else the epochs could have been spent on",
            f"`python bench/experiments/merge_cifar10.py`; [summary.md]({link}/summary.md).",
            f"![test accuracy of each strategy]({link}/plot.png)",
            (cifar / "summary.md").read_text(encoding="utf-8").split("\n## ")[0].partition("\n")[2].strip(),
        ]
    if (RESULTS / "merge.csv").exists():
        lines += ["### What the gates cost", step_costs()]
    return "\n\n".join(lines)


def step_costs() -> str:
    """Table of the last saved run of the wide student's step."""
    with (RESULTS / "merge.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| step | with gates | without | ratio |", "|---|---|---|---|"]
    for row in rows:
        if row["peer"]:
            ratio = float(row["value"]) / float(row["peer_value"])
            times = quantity(row["value"], "s"), quantity(row["peer_value"], "s")
            lines.append(f"| {row['what']} | {times[0]} | {times[1]} | {ratio:.2f} × |")
    last = rows[-1]
    lines.append("")
    lines.append(
        "Medians of alternating turns: `python -m pytest bench/test_merge.py --benchmark-enable --save-results merge`. "
        f"{last['device']}, Python {last['python']}, torch {last['torch']}, commit {last['commit']}."
    )
    return "\n".join(lines)


def replaced(text: str, name: str, content: str) -> str:
    """The text with the part between a pair of markers replaced."""
    start = text.index("\n", text.index(f"<!-- {name}:")) + 1
    end = text.index(f"<!-- {name} end -->")
    return f"{text[:start]}\n{content}\n\n{text[end:]}"


def main() -> None:
    """Rewrite README.md."""
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(encoding="utf-8"), "bench", benchmarks("transfer"))
    parts = {
        "zoo": benchmarks("zoo"),
        "merge": merge_results(),
        "kernels": kernels(),
        "transfer": transfer_results(),
    }
    for name, content in parts.items():
        text = replaced(text, name, content)
    readme.write_text(replaced(text, "ranking", ranking_results()), encoding="utf-8")


if __name__ == "__main__":
    main()
