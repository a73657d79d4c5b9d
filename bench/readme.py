"""Write the README's tables of figures, and all of docs/results.md, from the files under bench/results.

python bench/readme.py
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "results.md"


SAVE = "--benchmark-enable --save-results"


def saved(name: str) -> list[dict[str, str]]:
    """The figures of the last saved run of that name; none where there was no run."""
    file = RESULTS / f"{name}.csv"
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def conditions(rows: list[dict[str, str]], suites: str, name: str) -> str:
    """Under what a table's figures were measured, and the command for it."""
    last = rows[-1]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return (
        f"Medians, alternating with the peer in one run: `python -m pytest {suites} {SAVE} {name}`. "
        f"{last['device']}, Python {last['python']}, torch {last['torch']}, commit {commits}."
    )


def benchmarks(rows: list[dict[str, str]]) -> str:
    """A line for each figure, with its peer's and their ratio where there is one."""
    lines = ["| what | pyassemble | peer | ratio |", "|---|---|---|---|"]
    for row in rows:
        peer = f"{row['peer']}: {quantity(row['peer_value'], row['unit'])}" if row["peer"] else ""
        ratio = f"{factor(float(row['ratio']))} ×" if row["ratio"] else ""
        lines.append(f"| {row['what']} | {quantity(row['value'], row['unit'])} | {peer} | {ratio} |")
    return "\n".join(lines)


def factor(ratio: float) -> str:
    """A ratio in as many digits as say something."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}".replace(",", " ")


def transfer_benchmarks() -> str:
    """Alignment and transfer beside the published code, and the share of the machine's peak."""
    rows = saved("transfer")
    suites = "bench/test_recurrence.py bench/test_transfer.py"
    return f"{benchmarks(rows)}\n\n{conditions(rows, suites, 'transfer')}"


GROWTH = re.compile(
    r"(?P<what>[^,]+), (?P<size>[\d,]+) synthetic networks \((?P<blocks>[\d,]+) distinct blocks\)(?P<rest>.*)"
)


def zoo_benchmarks() -> str:
    """The zoo of timm; how time and memory grow with the number of networks; a command at the shell."""
    rows = saved("zoo")
    found = [(GROWTH.fullmatch(row["what"]), row) for row in rows]
    parts = [benchmarks([row for match, row in found if match is None])]
    grown: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for match, row in found:
        if match is not None:
            case = grown.setdefault((match["what"], match["size"], match["blocks"]), {})
            case[match["rest"].removeprefix(": ")] = row
    if grown:
        lines = ["| synthetic networks | distinct blocks | what | time | memory beside the zoo | aligned |"]
        lines.append("|---|---|---|---|---|---|")
        for (what, size, blocks), case in grown.items():
            cells = [
                quantity(case[key]["value"], case[key]["unit"]) if key in case else "" for key in ("", MEMORY, ALIGNED)
            ]
            lines.append(f"| {' | '.join((size, blocks, what, *cells))} |")
        parts += ["\n".join(lines), growth_law(grown)]
    parts.append(conditions(rows, "bench/test_zoo.py", "zoo"))
    if shell := saved("shell"):
        parts += [benchmarks(shell), conditions(shell, "bench/test_shell.py", "shell")]
    return "\n\n".join(parts)


MEMORY, ALIGNED = "memory beside the zoo", "aligned"


def growth_law(grown: dict[tuple[str, str, str], dict[str, dict[str, str]]]) -> str:
    """Between the smallest and the largest measured zoo, the power of its size that the time grows with."""
    laws = []
    for what in dict.fromkeys(key[0] for key in grown):
        points = [
            (int(size.replace(",", "")), float(case[""]["value"])) for (w, size, _), case in grown.items() if w == what
        ]
        if len(points) > 1:
            (n, first), (m, last) = points[0], points[-1]
            laws.append(f"{what} with the power {math.log(last / first) / math.log(m / n):.2f} from {n:,} to {m:,}")
    return f"Time grows with the number of networks: {'; '.join(laws)}." if laws else ""


def kernels() -> str:
    """Table of the last saved run of the kernels' benchmarks: one line for each case, one column for each peer."""
    rows = saved("kernels")
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
    suites = "bench/test_hard_concrete.py bench/test_frobenius.py bench/test_perturbation.py"
    lines += ["", f"A peer's time as a multiple of ours. {conditions(rows, suites, 'kernels')}"]
    return "\n".join(lines)


def quantity(value: str, unit: str) -> str:
    """A figure in the unit that keeps it readable."""
    number = float(value)
    if unit == "s" and number < 1e-3:
        return f"{number * 1e6:.3g} µs"
    if unit == "s" and number < 1:
        return f"{number * 1e3:.3g} ms"
    return f"{number:.3g} {unit}"


def parts_of(name: str) -> dict[str, str]:
    """What stands under each heading of an experiment's summary; under "" what stands before the first."""
    return parts_of_file(f"{name}/summary.md")


def parts_of_file(name: str) -> dict[str, str]:
    """The same for any file among the results."""
    first, *others = (RESULTS / name).read_text(encoding="utf-8").split("\n## ")
    cut = [other.partition("\n") for other in others]
    return {"": first.partition("\n")[2].strip()} | {heading.strip(): text.strip() for heading, _, text in cut}


def experiment(name: str, command: str, pictures: dict[str, str], shown: list[str], *, up: str = "../") -> str:
    """How an experiment is run, where its figures are, its pictures, and parts of its summary.

    Args:
        name: Its folder among the results.
        command: Arguments of python.
        pictures: File names to what they show.
        shown: Texts that follow.
        up: From the page to the project's folder.
    """
    link = f"{up}bench/results/{name}"
    lines = [f"`python {command}`; all figures and conditions: [summary.md]({link}/summary.md)."]
    lines += [f"![{what}]({link}/{file})" for file, what in pictures.items()]
    return "\n\n".join(lines + shown)


TRANSFER = "bench/experiments/transfer_cifar10.py"
TRANSFER_PICTURE = {"plot.png": "test accuracy by epoch, and effectiveness by similarity"}
RANKING = "bench/experiments/source_ranking.py"
RANKING_PICTURE = {"plot.png": "gain by similarity and by size, and how well each score orders sources"}
SINE_PICTURE = {"plot.png": "test losses of the strategies, and the curves they learned"}
ASSEMBLE = "bench/experiments/assemble_cifar10.py"
ASSEMBLE_PICTURE = {"accuracy_by_size.png": "test accuracy against trained parameters"}

#: Rows of the table of assemblies that the README has.
MAIN_METHODS = (
    "resnet20_cifar, head",
    "resnet20_cifar, all",
    "fitted PA-DNN",
    "fitted assembly by CKA",
    "fitted assembly by random",
    "PA-DNN",
)


def transfer_headline() -> str:
    """The experiment's plot, and the comparison with the published code."""
    shown = [parts_of("transfer_cifar10")["One epoch, beside the published code"]]
    return experiment("transfer_cifar10", TRANSFER, TRANSFER_PICTURE, shown, up="")


def transfer_results() -> str:
    """The same, and whether similarity predicts the gain."""
    parts = parts_of("transfer_cifar10")
    shown = [text for heading, text in parts.items() if heading and heading != "All pairs"]
    return experiment("transfer_cifar10", TRANSFER, TRANSFER_PICTURE, shown)


def ranking_verdicts() -> list[str]:
    """A line for each group of candidates, and what is to be known of them."""
    return parts_of("source_ranking")["Pooled within targets"].partition("\n\n|")[0].splitlines()


def ranking_headline() -> str:
    """The verdict for all candidates."""
    return "\n".join(line for line in ranking_verdicts() if line.startswith("- all candidates"))


def ranking_results() -> str:
    """The ranking experiment's picture and its verdicts."""
    return experiment("source_ranking", RANKING, RANKING_PICTURE, ["\n".join(ranking_verdicts())])


def merge_headline() -> str:
    """The sine experiment, and what the gates cost."""
    command = "bench/experiments/merge_sine.py"
    lines = [experiment("merge_sine", command, SINE_PICTURE, [parts_of("merge_sine")[""]], up="")]
    if rows := saved("merge"):
        lines += [
            "What the gates cost (a ReLU or ReLU6 before a gate is done with it, in one pass):",
            step_costs(rows),
        ]
    return "\n\n".join(lines)


def merge_results() -> str:
    """The sine experiment in both orders, CIFAR-10, and what a bound of memory costs."""
    lines = []
    for name, heading in (
        ("merge_sine", "The publication's sine experiment, samples in one order as in its code"),
        ("merge_sine_shuffled", "The same, a new order of the samples for every epoch"),
    ):
        parts = list(parts_of(name).values())
        command = f"bench/experiments/merge_sine.py{' --shuffled' if name.endswith('shuffled') else ''}"
        lines += [f"### {heading}", experiment(name, command, SINE_PICTURE, [parts[0], parts[1]])]
    lines.append("### CIFAR-10, against what else the epochs could have been spent on")
    # The last one stops long before the networks are near their end: what then counts is to train on.
    for name, options in (
        ("small_vgg", "--architectures small_vgg --images 1000 --epochs 150"),
        ("resnet20", "--architectures resnet20 --images 1000 --epochs 72"),
        ("short", "--architectures resnet20 --images 2500 --epochs 30"),
    ):
        folder = f"merge_cifar10/{name}"
        command = f"bench/experiments/merge_cifar10.py {options} --out bench/results/{folder}"
        lines.append(experiment(folder, command, {}, parts_of(folder)[""].split("\n\n")[:2]))
    lines.append("### Within a bound of memory")
    command = "bench/experiments/merge_memory.py"
    lines.append(experiment("merge_memory", command, {}, [parts_of("merge_memory")[""]]))
    return "\n\n".join(lines)


def step_costs(rows: list[dict[str, str]]) -> str:
    """Table of the last saved run of the wide student's step."""
    lines = ["| step | with gates | without | ratio |", "|---|---|---|---|"]
    for row in rows:
        if row["peer"]:
            ratio = float(row["value"]) / float(row["peer_value"])
            times = quantity(row["value"], "s"), quantity(row["peer_value"], "s")
            lines.append(f"| {row['what']} | {times[0]} | {times[1]} | {ratio:.2f} × |")
    return "\n".join([*lines, "", conditions(rows, "bench/test_merge.py", "merge")])


def score_variants() -> str:
    """The published score, with batch normalization as it is initialized and by images, from the table of variants."""
    lines = parts_of_file("score_correlation/variants.md")[""].splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| variant"))
    shown = [line for line in lines[head + 2 :] if line.startswith(("| published", "| parameters"))]
    return "\n".join(
        [
            "With batch normalization by images (`bench/experiments/score_variants.py`); *batch* is "
            '`pa.score(…, statistics="batch")`:',
            "",
            *lines[head : head + 2],
            *shown,
        ]
    )


def assemble_headline() -> str:
    """The main rows of the publication's Table 1, their conditions, and the benchmarks."""
    table, *rest = parts_of("assemble_cifar10")[""].split("\n\n")
    kept = [line for line in table.splitlines()[2:] if line.split("|")[1].strip() in MAIN_METHODS]
    conditions_line = next(text for text in rest if text.startswith("Conditions"))
    shown = ["\n".join([*table.splitlines()[:2], *kept]), conditions_line]
    lines = [experiment("assemble_cifar10", ASSEMBLE, ASSEMBLE_PICTURE, shown, up="")]
    if rows := saved("assemble"):
        lines += [
            "What sharing and freezing save:",
            benchmarks(rows),
            conditions(rows, "bench/test_assemble.py", "assemble"),
        ]
    return "\n\n".join(lines)


def assemble_results() -> str:
    """The publication's Table 1 on small networks, and the score's correlation with accuracy."""
    score = parts_of("score_correlation")[""].split("\n\n")
    return "\n\n".join(
        [
            "### On CIFAR-10, with a small budget",
            experiment("assemble_cifar10", ASSEMBLE, ASSEMBLE_PICTURE, [parts_of("assemble_cifar10")[""]]),
            "### Does the score follow accuracy?",
            experiment(
                "score_correlation",
                "bench/experiments/score_correlation.py",
                {"plot.png": "score and parameter count against accuracy"},
                [*score[:2], score_variants()],
            ),
        ]
    )


def replaced(text: str, name: str, content: str) -> str:
    """The text with the part between a pair of markers replaced."""
    start = text.index("\n", text.index(f"<!-- {name}:")) + 1
    end = text.index(f"<!-- {name} end -->")
    return f"{text[:start]}\n{content}\n\n{text[end:]}"


#: What stands between the README's pairs of markers.
PARTS = {
    "bench": transfer_benchmarks,
    "zoo": zoo_benchmarks,
    "merge": merge_headline,
    "assemble": assemble_headline,
    "kernels": kernels,
    "transfer": transfer_headline,
    "ranking": ranking_headline,
}

#: Sections of the page of results.
SECTIONS = {
    "Transfer: ResNets and small networks of timm on CIFAR-10": transfer_results,
    "Zoo: which source first?": ranking_results,
    "Merge": merge_results,
    "Assemble": assemble_results,
}


def main() -> None:
    """Rewrite README.md and the page of results."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, content in PARTS.items():
        text = replaced(text, name, content())
    readme.write_text(text, encoding="utf-8")
    intro = ["# Results on real data", "Made by `python bench/readme.py` from the files under bench/results."]
    sections = [f"## {heading}\n\n{content()}" for heading, content in SECTIONS.items()]
    PAGE.write_text("\n\n".join([*intro, *sections]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
