"""The command line. Thin: it parses, calls, prints, and turns errors into exit codes.

0: done. 1: done, but something failed and is named. 2: a person's mistake, nothing was changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from pipeline import __version__
from pipeline.errors import ConsilienceError

if TYPE_CHECKING:
    from pipeline.workflow import Plan, RunReport

OUT = Console(highlight=False, soft_wrap=False)
ERR = Console(stderr=True, highlight=False)


class _Commands(click.Group):
    """A group whose commands say what is wrong in one message, without a traceback."""

    def main(self, *args: Any, **keywords: Any) -> Any:
        keywords["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **keywords))
        except ConsilienceError as error:
            click.echo(f"consilience: {error}", err=True)
            sys.exit(2)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo(
                "consilience: interrupted. What was finished is kept; the same command goes on "
                "from there.",
                err=True,
            )
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="consilience")
def main() -> None:
    """Compare how networks trained apart represent the world."""


_SETTINGS = [
    click.argument("workflow", type=click.Path(path_type=Path)),
    click.option("--store", help="Another store than the workflow's."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value, dots for depth: --set calibrate.n_permutations=99.",
    ),
    click.option(
        "--replace",
        multiple=True,
        metavar="ID",
        help="Drop what is stored of this model, and extract it anew.",
    ),
]


def _with_settings(function: Any) -> Any:
    for decorate in reversed(_SETTINGS):
        function = decorate(function)
    return function


@main.command()
@_with_settings
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--cluster",
    metavar="WHERE",
    help="A Dask scheduler (tcp://host:8786), `local`, or a YAML file with a `cluster:` mapping.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for another run on the store to end.  [default: refuse at once]",
)
def run(
    workflow: Path,
    store: str | None,
    settings: Sequence[str],
    replace: Sequence[str],
    dry_run: bool,
    cluster: str | None,
    wait: float | None,
) -> None:
    """Do what a workflow asks and its store lacks."""
    from pipeline.workflow import load_workflow, plan_workflow, run_workflow

    spec, _ = load_workflow(workflow, settings=settings, store=store)
    if dry_run:
        _print_plan(plan_workflow(spec, replace=replace))
        return
    report = run_workflow(spec, cluster=cluster, replace=replace, console=ERR, wait=wait)
    _print_report(report)
    sys.exit(report.exit_code)


@main.command()
@_with_settings
def plan(
    workflow: Path, store: str | None, settings: Sequence[str], replace: Sequence[str]
) -> None:
    """Say what a workflow has done already and what it would do."""
    from pipeline.workflow import load_workflow, plan_workflow

    spec, _ = load_workflow(workflow, settings=settings, store=store)
    _print_plan(plan_workflow(spec, replace=replace))


@main.command()
@click.argument("name", required=False)
def measures(name: str | None) -> None:
    """List the measures, or tell all there is to know of one."""
    from pipeline.measures import get_measure, list_measures
    from pipeline.measures.catalog import PRESET

    if name is None:
        table = _table("measure", "kind", "symmetric", "range", "parameters")
        for measure in list_measures():
            parameters = ", ".join(f"{p.name}={p.default}" for p in measure.parameters)
            low, high = measure.range
            symmetric = "yes" if measure.symmetric else "no"
            table.add_row(measure.name, measure.kind, symmetric, f"{low:g} to {high:g}", parameters)
        _print_table(table)
        OUT.print("`consilience measures NAME` tells more of one")
        return
    measure = get_measure(name)
    OUT.print(f"{measure.name}: {measure.prose}", highlight=False)
    OUT.print(f"reference: {measure.reference}", highlight=False)
    OUT.print(f"invariant to: {', '.join(measure.invariances)}")
    conventions = ", ".join(f"{key} {value}" for key, value in measure.conventions)
    OUT.print(f"conventions: {conventions or 'none but its parameters'}", highlight=False)
    for parameter in (*measure.parameters, PRESET):
        OUT.print(
            f"{parameter.name} = {parameter.default!r}: {parameter.prose} ({parameter.allowed})",
            highlight=False,
        )


@main.group()
def models() -> None:
    """Look at the model registry."""


_REGISTRY = click.argument("registry", nargs=-1, type=click.Path(path_type=Path))


@models.command("list")
@_REGISTRY
@click.option("--sets", "names", multiple=True, help="Only models of this set.")
def list_models(registry: Sequence[Path], names: Sequence[str]) -> None:
    """List registry entries (default file: models.yaml). Loads no model library."""
    from pipeline.registry import load_registry

    known = load_registry(registry or [Path("models.yaml")])
    specs = known.select(sets=names) if names else list(known)
    table = _table("id", "family", "towers", "checkpoints", "sets")
    for spec in specs:
        checkpoints = spec.checkpoints
        shown = checkpoints if isinstance(checkpoints, str) else ", ".join(checkpoints)
        table.add_row(
            spec.id,
            spec.family,
            ", ".join(spec.towers),
            shown or "pretrained",
            ", ".join(spec.sets),
        )
    _print_table(table)
    OUT.print(f"{len(specs)} models")


@models.command()
@_REGISTRY
@click.option("--sets", "names", multiple=True, help="Only models of this set.")
def check(registry: Sequence[Path], names: Sequence[str]) -> None:
    """Check every entry against the installed timm and open_clip; downloads nothing."""
    from pipeline.extraction import describe
    from pipeline.registry import load_registry

    known = load_registry(registry or [Path("models.yaml")])
    specs = known.select(sets=names) if names else list(known)
    table = _table("id", "tower", "layers", "widths", "parameters", "GFLOP", "pool")
    faults = []
    for spec in specs:
        try:
            described = describe(spec)
        except ConsilienceError as error:
            faults.append(f"{known.entries[spec.id].where}: {spec.id}: {error}")
            continue
        for tower, info in described.items():
            widths = dict.fromkeys(info.widths)
            table.add_row(
                spec.id,
                tower,
                str(len(info.layers)),
                ", ".join(map(str, widths)),
                _count(info.n_parameters),
                f"{info.flops / 1e9:.3g}",
                info.pooling,
            )
    _print_table(table)
    if faults:
        raise ConsilienceError(
            f"{len(faults)} of {len(specs)} entries are wrong:\n  " + "\n  ".join(faults)
        )
    OUT.print(f"{len(specs)} models, all known to the installed libraries")


@main.group()
def store() -> None:
    """Look into a store."""


_STORE = click.argument("path")


@store.command()
@_STORE
def info(path: str) -> None:
    """Say what a store holds."""
    from pipeline.store import open_store

    opened = open_store(path)
    OUT.print(f"{path}: format {opened.root.attrs['format_version']}")
    for key in opened.sets:
        encoders = opened.encoders(key)
        stimuli = opened.stimuli(key).sizes["stimulus"]
        OUT.print(
            f"set {key}: {stimuli} stimuli, {len({e.model for e in encoders})} models, "
            f"{len(encoders)} encoders, {sum(len(e.layers) for e in encoders)} representations"
        )
    for key in opened.subsets:
        labels = opened.labels(key)
        OUT.print(f"subset {key}: {len(opened.rows(key))} rows; measures {', '.join(labels)}")
        for label in labels:
            OUT.print(f"  {label}: {opened.measure(label, key)}")


@store.command()
@_STORE
@click.option("--set", "set_key", help="Which set of stimuli, where there are several.")
def ls(path: str, set_key: str | None) -> None:
    """List the encoders of a store."""
    from pipeline.store import open_store

    table = _table("encoder", "layers", "parameters", "step")
    for encoder in open_store(path).encoders(set_key):
        table.add_row(
            encoder.id,
            str(len(encoder.layers)),
            _count(encoder.attributes["n_parameters"]),
            str(encoder.step) if encoder.step >= 0 else "",
        )
    _print_table(table)


@store.command()
@_STORE
@click.option("--repair", is_flag=True, help="Prepare what is damaged to be made again.")
def verify(path: str, repair: bool) -> None:
    """Read everything, and name what is damaged or lost; exit code 1 where something is."""
    from pipeline.store.verify import verify as verify_store

    found = verify_store(path, repair=repair)
    for line in found.lines(path):
        OUT.print(line, soft_wrap=True)
    sys.exit(0 if found.is_whole else 1)


@main.command()
@_STORE
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option("--subset", help="Which subset, where there are several.")
def report(path: str, out: Path | None, subset: str | None) -> None:
    """Write figures and an HTML report from what a store holds."""
    from pipeline.report import write_report
    from pipeline.store import open_store

    written = write_report(open_store(path), out, subset=subset)
    for figure in written.figures:
        OUT.print(str(figure), soft_wrap=True)
    OUT.print(str(written.html), soft_wrap=True)


def _print_plan(plan: Plan) -> None:
    n = len(plan.stimuli)
    extract = [m for m in plan.models if m.missing]
    written = sum(m.bytes_to_write(n) for m in extract)
    operations = sum(m.flops(n) for m in extract)
    table = _table("stage", "tasks", "to do", "done already")
    table.add_row("train", str(plan.tasks["train"]), f"{plan.tasks['train']} models", "")
    blocks = sum(m.n_missing for m in extract)
    table.add_row(
        "extract",
        str(plan.tasks["extract"]),
        f"{len(extract)} models, {blocks} blocks, {_bytes(written)}, {operations:.2g} operations",
        f"{len(plan.models) - len(extract)} of {len(plan.models)} models",
    )
    for stage, unit in (
        ("compare", "pairs of representations"),
        ("calibrate", "pairs of encoders"),
        ("competence", "encoders"),
    ):
        missing, wanted = plan.pairs[stage]
        table.add_row(
            stage,
            str(plan.tasks[stage]),
            f"{missing:,} {unit}",
            f"{wanted - missing:,} of {wanted:,}",
        )
    done = [label for label in plan.workflow.compare.specs if label not in plan.stale]
    table.add_row("alignment", "", ", ".join(plan.stale), ", ".join(done))
    _print_table(table)
    rows = ", ".join(f"{len(c.subset)} {c.subset.kind}" for c in plan.comparisons)
    OUT.print(f"stimuli {plan.stimuli.key}: {n}; compared on {rows}")
    OUT.print("nothing to do" if plan.is_done else f"store {plan.workflow.store}")


def _print_report(report: RunReport) -> None:
    if report.findings:
        columns = list(report.findings[0])
        table = _table(*columns)
        for row in report.findings:
            table.add_row(*(_cell(row[c]) for c in columns))
        _print_table(table)
    for name, why in report.failures.items():
        OUT.print(f"failed: {name}: {why}", soft_wrap=True)
    tasks = ", ".join(f"{n} {stage}" for stage, n in report.tasks.items() if n) or "none"
    OUT.print(f"tasks run: {tasks}; {report.seconds:.0f} s")
    OUT.print(f"store    {report.store}", soft_wrap=True)
    for figure in report.figures:
        OUT.print(f"figure   {figure}", soft_wrap=True)
    if report.report:
        OUT.print(f"report   {report.report}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_table(table: Table) -> None:
    if OUT.is_terminal:
        OUT.print(table)
        return
    # a pipe has no width: columns as wide as their cells
    cells = [list(column.cells) for column in table.columns]
    rows: Iterable[tuple[Any, ...]] = zip(*cells, strict=True)
    widths = [
        max(len(str(column.header)), *map(len, map(str, c or [""])))
        for column, c in zip(table.columns, cells, strict=True)
    ]
    for row in [tuple(column.header for column in table.columns), *rows]:
        text = "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True))
        click.echo(text.rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def _count(n: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:.0f}"


def _bytes(n: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"
