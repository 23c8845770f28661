"""The results as a table on the terminal, as Markdown, and as one picture."""

import json
from dataclasses import asdict
from pathlib import Path

from .cases import CHOOSE, MIB, OURS, PIPELINE, TEMPORARY, duration
from .environments import THREADS

MET = {True: "met", False: "**missed**", None: ""}
HEADER = ("case", "ours", "against", "ratio", "target", "")

# Readable on white and on GitHub's dark background alike; the picture has no background.
TEXT, QUIET, ACCENT, LIMIT = "#7d8590", "#a3abb5", "#2f81f7", "#d29922"


def table(header, rows) -> str:
    """Lay ``rows`` out as a Markdown table that is readable as plain text too."""
    lines = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| {} |".format(" | ".join(map(str.ljust, line, widths))) for line in lines)


def targets(rows) -> str:
    """The table of ratios."""
    return table(HEADER, [(row.case, row.ours, row.rival, row.ratio, row.target, MET[row.met])
                          for row in rows])


def markdown(bench, machine) -> str:
    """Everything that was measured."""
    sections = [
        "# Measured",
        f"{machine}. Medians of {bench.options.rounds} rounds, alternating. The environment: "
        f"{describe(bench.environment)}. `-j N` is `-j {THREADS}`.\n"
        "Made by `make bench`; what is measured is in [cases.py](cases.py).",
        "## Against the targets", targets(bench.rows)]
    if CHOOSE in bench.results:
        sections += ["## Which archive to choose", choice(bench)]
    sections.append("## Every contender")
    lines = [(case, name, duration(one.wall), duration(one.cpu) if one.cpu else "",
              "%.1f MiB" % (one.peak / MIB) if one.peak else "", one.rounds)
             for case, measured in bench.results.items() for name, one in measured.items()]
    sections.append(table(("case", "contender", "wall", "CPU", "peak memory", "rounds"), lines))
    return "\n\n".join(sections) + "\n"


def choice(bench) -> str:
    """The table of the case choose."""
    return table(("archive", "size", "cold start"), [
        (format, f"{bench.environment.archive(format).stat().st_size // 10**6:,} MB",
         duration(one.wall)) for format, one in bench.results[CHOOSE].items()]) + (
        "\n\nOf zstd's levels, the same tar by `zstd -T2`; the others by conda-pack.")


def describe(environment):
    files = [path for path in environment.prefix.rglob("*") if not path.is_dir()]
    total = sum(path.lstat().st_size for path in files)
    return f"{len(files):,} files, {total // 10**6:,} MB"


def raw(bench, machine) -> str:
    """The numbers, for other programs."""
    return json.dumps({
        "machine": machine, "options": {"rounds": bench.options.rounds,
                                        "quick": bench.options.quick},
        "rows": [asdict(row) for row in bench.rows],
        "results": {case: {name: asdict(one) for name, one in measured.items()}
                    for case, measured in bench.results.items()}}, indent=1)


def draw(results, machine, path: Path) -> bool:
    """Draw cold and warm starts as horizontal bars; return whether there was anything to draw."""
    # The serial bzip2 and xz archives take so long that the others would be slivers.
    cold = {case.partition(", ")[2]: measured for case, measured in results.items()
            if case.startswith("cold, ") and case not in ("cold, tar.bz2", "cold, tar.xz")}
    cold["tar.gz, temporary\ndirectory, removed"] = results.get(TEMPORARY, {})
    cold = {name: measured for name, measured in cold.items()
            if OURS in measured and PIPELINE in measured}
    warm = results.get("warm start", {})
    if not cold or not warm:
        return False
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({
        "font.size": 10, "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT,
        "ytick.color": TEXT, "svg.fonttype": "path", "svg.hashsalt": "bench"})
    rows = len(cold)
    figure, (left, right) = plt.subplots(
        2, 1, figsize=(8, 0.42 * rows + 2.9),
        gridspec_kw={"height_ratios": [rows * 0.42, 1.5], "hspace": 0.25})
    limit = False
    for index, measured in enumerate(cold.values()):
        for offset, name, color in ((-0.2, OURS, ACCENT), (0.2, PIPELINE, QUIET)):
            wall = measured[name].wall
            left.barh(index + offset, wall, 0.36, color=color,
                      label=name if not index else None)
            left.annotate(f"{wall:.1f}", (wall, index + offset), (4, 0), va="center", size=8.5,
                          textcoords="offset points", color=TEXT)
        alone = [one.wall for name, one in measured.items() if " alone (" in name]
        if alone:
            left.plot([alone[0]] * 2, [index, index + 0.4], color=LIMIT, linewidth=2,
                      label=None if limit else "decoding alone, one core")
            limit = True
    finish(left, list(cold), "Cold start: unpack, relocate, activate, run (seconds)")
    left.legend(frameon=False, loc="lower right", labelcolor=TEXT, fontsize=9)

    chosen = [("./x", "ours, run directly", ACCENT),
              ("python3 x.pyz", "ours, python3 x.pyz", ACCENT),
              ("shell script", "shell script", QUIET), ("empty zipapp", "empty zipapp", QUIET),
              ("python3 -c pass", "python3 -c pass", QUIET)]
    chosen = [one for one in chosen if one[0] in warm]
    for index, (name, _, color) in enumerate(chosen):
        milliseconds = warm[name].wall * 1000
        right.barh(index, milliseconds, 0.6, color=color)
        right.annotate(f"{milliseconds:.1f}", (milliseconds, index), (4, 0), va="center", size=8.5,
                       textcoords="offset points", color=TEXT)
    finish(right, [label for _, label, _ in chosen],
           "Warm start: the environment is there already (milliseconds)")
    right.annotate(machine, (0, 0), (0, -14), xycoords="axes fraction",
                   textcoords="offset points", size=6.5, color=TEXT)
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    return True


def finish(axes, labels, title):
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", size=11, color=TEXT, weight="bold")
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    axes.margins(x=0.09, y=0.01)
    for spine in axes.spines.values():
        spine.set_visible(False)
