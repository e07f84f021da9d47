"""The command line: parse arguments, call the package, print, and set the exit code.

Exit codes: 0, success; 1, finished with failures, which are listed; 2, invalid input, nothing was
changed; 130, interrupted (Ctrl-C), and 143, terminated: finished work is kept.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__
from pipeline.errors import ConsilienceError, InputError
from pipeline.printing import (
    ERR,
    OUT,
    count_text,
    new_table,
    print_plan,
    print_report,
    print_run,
    print_runs,
    print_table,
)
from pipeline.progress import counted

if TYPE_CHECKING:
    from pipeline.workflow import Workflow


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it: handled like Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that workers stop and the store is unlocked."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one kills the process
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Commands(click.Group):
    """A group of commands that report errors as one message, without a traceback."""

    def main(self, *args: Any, **keywords: Any) -> Any:
        keywords["standalone_mode"] = False
        try:
            with _terminable():
                sys.exit(super().main(*args, **keywords))
        except ConsilienceError as error:
            click.echo(f"consilience: {error}", err=True)
            sys.exit(2)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort) as stop:
            # click raises its own exception for an interrupt, with the interrupt as its cause
            cause = stop.__cause__ or stop.__context__ or stop
            terminated = isinstance(stop, _Terminated) or isinstance(cause, _Terminated)
            how = "terminated" if terminated else "interrupted"
            notes = [*getattr(stop, "__notes__", ()), *getattr(cause, "__notes__", ())]
            told = "".join(f" ({note})" for note in dict.fromkeys(notes))
            click.echo(
                f"consilience: {how}. Finished work is kept{told}; run the same command again to "
                "continue.",
                err=True,
            )
            sys.exit(143 if terminated else 130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="consilience")
def main() -> None:
    """Compare the representations of independently trained networks."""


_SETTINGS = [
    click.argument("workflow", type=click.Path(path_type=Path)),
    click.option("--store", help="Store to use instead of the workflow's."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, nested ones with dots: --set calibrate.n_permutations=99.",
    ),
    click.option(
        "--replace",
        multiple=True,
        metavar="ID|LABEL",
        help="Discard what is stored for this model or measure and compute it again.",
    ),
]


def _with_settings(function: Any) -> Any:
    for decorate in reversed(_SETTINGS):
        function = decorate(function)
    return function


_CLUSTER = click.option(
    "--cluster",
    metavar="WHERE",
    help="Where to run: the address of a Dask scheduler (tcp://host:8786), `local`, or a YAML file "
    "with a `cluster:` mapping.",
)


@main.command()
@_with_settings
@click.option("--dry-run", is_flag=True, help="Show what would be done without doing it.")
@_CLUSTER
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for another run on the store to finish.  [default: fail at once]",
)
@click.option(
    "--performance-report",
    "report_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write Dask's performance report to this HTML file.",
)
def run(
    workflow: Path,
    store: str | None,
    settings: Sequence[str],
    replace: Sequence[str],
    dry_run: bool,
    cluster: str | None,
    wait: float | None,
    report_file: Path | None,
) -> None:
    """Run a workflow: compute what its store does not have yet."""
    from pipeline.workflow import load_workflow, run_workflow

    spec, _ = load_workflow(workflow, settings=settings, store=store)
    if dry_run:
        _plan(spec, replace, cluster)
        return
    report = run_workflow(
        spec,
        cluster=cluster,
        replace=replace,
        console=ERR,
        wait=wait,
        report_file=report_file,
    )
    print_report(report)
    sys.exit(report.exit_code)


@main.command()
@_with_settings
@_CLUSTER
def plan(
    workflow: Path,
    store: str | None,
    settings: Sequence[str],
    replace: Sequence[str],
    cluster: str | None,
) -> None:
    """Show what a workflow has computed, what is left, and its cost."""
    from pipeline.workflow import load_workflow

    spec, _ = load_workflow(workflow, settings=settings, store=store)
    _plan(spec, replace, cluster)


def _plan(spec: Workflow, replace: Sequence[str], cluster: str | None) -> None:
    """Print a plan; raise if its workers lack the memory for it."""
    from pipeline.cluster import override
    from pipeline.cluster.workers import planned_worker_resources
    from pipeline.workflow import check_memory, plan_workflow

    with counted(ERR, "stimuli", "items") as progress:
        made = plan_workflow(spec, replace=replace, progress=progress)
    print_plan(made)
    if made.needs:
        where = override(spec.cluster, cluster)
        check_memory(made, planned_worker_resources(where), where)


@main.command()
@click.argument("folder", default=".", metavar="[DIR]")
@click.option("--images", metavar="FOLDER", help="Compare models on the images of a folder.")
@click.option("--dataset", metavar="NAME", help="… on a data set of the Hugging Face hub.")
@click.option("--digits", is_flag=True, help="… on the built-in digits: the quickstart.")
def init(folder: str, images: str | None, dataset: str | None, digits: bool) -> None:
    """Write a workflow and a registry to begin with."""
    from pipeline.config.starter import write_starter

    if (images is not None) + (dataset is not None) + digits != 1:
        raise InputError("say on what: --images FOLDER, --dataset NAME, or --digits.")
    for path in write_starter(folder, images=images, dataset=dataset):
        OUT.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@main.command()
@click.argument("name", required=False)
def measures(name: str | None) -> None:
    """List the measures, or describe one in full."""
    from pipeline.measures import get_measure, list_measures
    from pipeline.measures.catalog import settable

    if name is None:
        table = new_table("measure", "kind", "symmetric", "range", "parameters")
        for measure in list_measures():
            parameters = ", ".join(f"{p.name}={p.default}" for p in measure.parameters)
            low, high = measure.range
            symmetric = "yes" if measure.symmetric else "no"
            table.add_row(measure.name, measure.kind, symmetric, f"{low:g} to {high:g}", parameters)
        print_table(table)
        OUT.print("`consilience measures NAME` describes one in full")
        return
    measure = get_measure(name)
    OUT.print(f"{measure.name}: {measure.prose}", highlight=False)
    OUT.print(f"reference: {measure.reference}", highlight=False)
    OUT.print(f"invariant to: {', '.join(measure.invariances)}")
    conventions = ", ".join(f"{key} {value}" for key, value in measure.conventions)
    OUT.print(f"conventions: {conventions or 'none but its parameters'}", highlight=False)
    for whose, what in measure.elsewhere:
        OUT.print(f"elsewhere: {whose}: {what}", highlight=False)
    for parameter in settable(measure):
        OUT.print(
            f"{parameter.name} = {parameter.default!r}: {parameter.prose} ({parameter.allowed})",
            highlight=False,
        )


@main.group()
def models() -> None:
    """Inspect the model registry."""


_REGISTRY = click.argument("registry", nargs=-1, type=click.Path(path_type=Path))


@models.command("list")
@_REGISTRY
@click.option(
    "--sets", "names", multiple=True, help="Only models of this set; may be given several times."
)
def list_models(registry: Sequence[Path], names: Sequence[str]) -> None:
    """List the entries of registry files.

    Default: models.yaml, or the published models that come with the package (`builtin`).

    No model library is loaded.
    """
    from pipeline.config.builtin import default_registry
    from pipeline.config.registry import load_registry

    known = load_registry(registry or default_registry())
    specs = known.select(sets=names) if names else list(known)
    table = new_table("id", "family", "towers", "checkpoints", "sets")
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
    print_table(table)
    OUT.print(f"{len(specs)} models")


@models.command()
@_REGISTRY
@click.option(
    "--sets", "names", multiple=True, help="Only models of this set; may be given several times."
)
def check(registry: Sequence[Path], names: Sequence[str]) -> None:
    """Check all entries against the installed model libraries.

    Checkpoint files are opened, nothing is downloaded. Default: models.yaml, or the published
    models that come with the package (`builtin`).
    """
    from pipeline.config.builtin import default_registry
    from pipeline.config.registry import load_registry
    from pipeline.extraction.describe import check_fit, describe

    known = load_registry(registry or default_registry())
    specs = known.select(sets=names) if names else list(known)
    table = new_table("id", "tower", "layers", "widths", "parameters", "GFLOP", "pool")
    faults = []
    for spec in specs:
        try:
            described = describe(spec)
            if spec.training is None:  # else its files may have yet to be written
                for checkpoint in spec.checkpoint_map().values():
                    if checkpoint.file is not None:
                        check_fit(spec, checkpoint)
        except ConsilienceError as error:
            faults.append(f"{known.entries[spec.id].where}: {' '.join(str(error).split())}")
            continue
        for tower, info in described.items():
            widths = dict.fromkeys(info.widths)
            table.add_row(
                spec.id,
                tower,
                str(len(info.layers)),
                ", ".join(map(str, widths)),
                count_text(info.n_parameters),
                f"{info.flops / 1e9:.3g}",
                info.pooling,
            )
    print_table(table)
    if faults:
        for fault in faults:
            click.echo(fault, err=True)
        raise ConsilienceError(f"{len(faults)} of {len(specs)} entries are wrong, listed above.")
    OUT.print(f"{len(specs)} models, all known to the installed libraries")


@main.group()
def store() -> None:
    """Inspect a store."""


_STORE = click.argument("path")


@store.command()
@_STORE
def info(path: str) -> None:
    """Summarise what a store holds."""
    from pipeline.store import open_store

    opened = open_store(path)
    OUT.print(f"{path}: format {opened.format_version}")
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
@click.option("--set", "set_key", help="Stimulus set, if the store has several.")
def ls(path: str, set_key: str | None) -> None:
    """List the encoders in a store."""
    from pipeline.store import open_store

    table = new_table("encoder", "layers", "parameters", "step")
    for encoder in open_store(path).encoders(set_key):
        table.add_row(
            encoder.id,
            str(len(encoder.layers)),
            count_text(encoder.attributes["n_parameters"]),
            str(encoder.step) if encoder.step >= 0 else "",
        )
    print_table(table)


@store.command("log")
@_STORE
@click.argument("name", metavar="[RUN]", required=False)
def show_log(path: Path, name: str | None) -> None:
    """List the runs that wrote to a store, or the tasks of one.

    RUN is a run's name or the beginning of it. The logs are JSON Lines files in the store's folder
    runs/log.
    """
    from pipeline.store import open_store
    from pipeline.workflow.log import read_run, read_runs

    open_store(path)  # raises if there is none
    if name is not None:
        print_run(read_run(path, name))
        return
    print_runs(read_runs(path))


@store.command()
@_STORE
@click.option(
    "--repair", is_flag=True, help="Drop damaged data, so that the next run computes them again."
)
def verify(path: str, repair: bool) -> None:
    """Read all data and list what is damaged or lost.

    The exit code is 1 if anything is.
    """
    from pipeline.store.verify import verify as verify_store

    found = verify_store(path, repair=repair)
    for line in found.lines(path):
        OUT.print(line, soft_wrap=True)
    sys.exit(0 if found.is_whole else 1)


@main.command()
@_STORE
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write to.  [default: beside the store]",
)
@click.option("--subset", help="Subset to report, if the store has several.")
def report(path: str, out: Path | None, subset: str | None) -> None:
    """Write an HTML report with figures from a store's results."""
    from pipeline.report import write_report
    from pipeline.store import open_store

    written = write_report(open_store(path), out, subset=subset)
    for figure in written.figures:
        OUT.print(str(figure), soft_wrap=True)
    OUT.print(str(written.html), soft_wrap=True)
