"""The `lowrank` command: what the workflow's rules call, and what people type."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

# Before torch is imported: threads that wait must not burn the core that another job needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from lowrank import console
from lowrank import plan as planning
from lowrank.errors import ConfigError, LowrankError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Low-rank training: five documents regenerated, a verdict beside each published number.",
)

Threads = Annotated[int, typer.Option(min=1, help="CPU threads, of all processes together")]
Study = Annotated[str, typer.Argument(help="name of a study")]
Counted = Annotated[bool, typer.Option("--counted", help="only the tables that no run enters")]
Scale = Annotated[str, typer.Option(help="smoke, laptop or paper")]


@app.callback()
def _options(
    log: Annotated[Path | None, typer.Option(help="write all output here; failures and milestones still show")] = None,
) -> None:
    if log is not None:
        console.log_to(log)


@app.command()
def plan(
    studies: Annotated[list[str] | None, typer.Argument(help="studies; all that exist when none is named")] = None,
    scale: Scale = "laptop",
    out: Annotated[Path | None, typer.Option(help="write the plan as JSON here")] = None,
    runs: Annotated[bool, typer.Option("--runs", help="on GPUs: what each run takes, in place of each study")] = False,
    model: Annotated[str | None, typer.Option(help="a model card: say what --method on it needs instead")] = None,
    method: Annotated[str, typer.Option(help="a chain: nf4+lora, or YAML: [nf4, {part: lora, rank: 64}]")] = "full",
    task: Annotated[str | None, typer.Option(help="classification, causal_lm or masked_lm")] = None,
    dtype: Annotated[str | None, typer.Option(help="type of the base weights")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="examples of a step")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="tokens of an example")] = None,
) -> None:
    """Validate the studies and list their runs and packs, or size a method on a model, before anything is run."""
    if model is not None:
        from lowrank.sizing import sizes

        print(sizes(model, method, task=task, dtype=dtype, batch_size=batch_size, tokens=tokens))
        return
    gc.disable()  # nothing is let go before the process ends
    from lowrank.planning import make_plan
    from lowrank.study import studies as known

    made = make_plan(scale, studies or known())
    if out is not None:
        planning.write_plan(out, made)
    else:
        from lowrank.costs import told

        print(told(made, runs))


@app.command()
def fetch(card: Annotated[str, typer.Argument(help="name of a model or data card")]) -> None:
    """Fetch what a card names, and check it. The only command that uses the network."""
    from lowrank import jobs

    jobs.fetch(card)


@app.command()
def prepare(data: Annotated[str, typer.Argument(help="id of prepared data, as the plan names it")]) -> None:
    """Split and tokenise the data of the plan's runs, once."""
    from lowrank import jobs

    jobs.prepare(planning.load_plan(), _checked("data", data))


@app.command()
def train(
    pack: Annotated[str, typer.Argument(help="id of a pack, as the plan names it")],
    threads: Threads = 1,
    processes: Annotated[int, typer.Option(min=1, help="processes that share every batch, started by torchrun")] = 1,
) -> None:
    """Train the members of a pack that are not finished."""
    from lowrank import jobs

    jobs.train(planning.load_plan(), _checked("packs", pack), threads, processes)


@app.command()
def evaluate(
    pack: Annotated[str, typer.Argument(help="id of a pack, as the plan names it")],
    evaluation: Annotated[str, typer.Argument(help="id of an evaluation, as the plan names it")],
    threads: Threads = 1,
) -> None:
    """Score the members of a pack that are not scored."""
    from lowrank import jobs

    jobs.evaluate(planning.load_plan(), _checked("packs", pack), _checked("evaluations", evaluation), threads)


@app.command()
def tables(study: Study, counted: Counted = False) -> None:
    """Write a study's runs.csv, tables, figures and claims from the runs that exist."""
    from lowrank import jobs

    jobs.tables(planning.load_plan(), _checked("studies", study), counted)


@app.command()
def page(study: Study) -> None:
    """Execute a study's notebook and render it as a page."""
    from lowrank import jobs

    jobs.page(planning.load_plan(), _checked("studies", study))


@app.command()
def index() -> None:
    """Render the front page over all studies of the plan."""
    from lowrank import jobs

    jobs.index(planning.load_plan())


@app.command()
def partial() -> None:
    """Build tables and pages from the runs that exist; what is missing is shown as missing."""
    from lowrank import jobs

    jobs.partial(planning.load_plan())


@app.command()
def doctor() -> None:
    """Look for what stands in the way: versions, locks, disk, damaged results, credentials; say what to type."""
    from lowrank.doctor import report

    raise typer.Exit(report())


@app.command()
def verify() -> None:
    """Re-hash every output here against what was written when it was made; name what differs and who made it."""
    from lowrank.verify import report

    raise typer.Exit(report())


@app.command()
def rerun(runs: Annotated[list[str], typer.Argument(help="run ids, as under results/runs")]) -> None:
    """Forget runs, so that the workflow trains them again."""
    from lowrank.run_folder import RUNS, WORK, forget
    from lowrank.strict import suggest

    known = [path.name for folder in (RUNS, WORK) for path in folder.glob("[!.]*")]
    for run in runs:
        if run not in known:
            raise ConfigError(f"no run {run!r} under {RUNS} or {WORK}{suggest(run, known)}")
    for run in runs:
        forget(run)
        print(f"{run}: forgotten; the next `snakemake --cores all all` trains it again")


@app.command()
def methods() -> None:
    """List the parts that methods are made of, with their options."""
    from lowrank import catalogue

    print(catalogue.text())


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run id, as under results/runs")],
    to: Annotated[Literal["peft", "merged"], typer.Option(help="a PEFT adapter, or a plain model")],
    out: Annotated[Path | None, typer.Option(help="the folder; results/exports/<run>/<form> when not given")] = None,
) -> None:
    """Write a run as others load it, and prove in a fresh process that it computes the same."""
    from lowrank.export import export_run

    export_run(run, to, out)


@app.command()
def sweep(
    lrs: Annotated[list[float] | None, typer.Option(help="learning rates; several may follow one --lrs")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 128,
    alpha: Annotated[float, typer.Option()] = 256,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", min=1)] = 32,
    seed: Annotated[int, typer.Option(min=0)] = 42,
    full_finetune: Annotated[bool, typer.Option("--full-finetune", help="train everything instead of LoRA")] = False,
    scale: Scale = "laptop",
    out: Annotated[Path, typer.Option(help="the file that is written")] = Path("results.json"),
    threads: Threads = 1,
) -> None:
    """The LR-ratio document's own command line, with its defaults, writing its results.json."""
    from lowrank.strict import parse
    from lowrank.sweep import Sweep, run_sweep

    told = {
        "lrs": tuple(lrs or (1e-4, 5e-4, 1e-3)),
        "epochs": epochs,
        "rank": rank,
        "alpha": alpha,
        "batch_size": batch_size,
        "seed": seed,
        "full_finetune": full_finetune,
    }
    asked = parse(Sweep, told, "lowrank sweep")
    run_sweep(asked, scale, out, threads)


def _checked(kind: str, name: str) -> str:
    from lowrank.strict import suggest

    known = planning.load_plan()[kind]
    if name not in known:
        raise ConfigError(f"{name!r} is not among the plan's {kind}{suggest(name, known)}")
    return name


def main() -> None:
    """Entry point; a known failure is one sentence and its own exit code."""
    try:
        app(console.repeat_flag(sys.argv[1:], "--lrs"))
    except LowrankError as error:
        console.announce(f"lowrank: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        traceback.print_exc()  # to the log, where there is one
        console.announce(f"lowrank: {type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
