"""The program `mreason`: its verbs, and how errors reach the user.

Verbs import what they need when they are called, so that `--help` answers at once. Not here: what
any verb does.
"""

import sys
import warnings

import typer

from megatron_reason import __version__
from megatron_reason.cli import (
    analyse,
    compare,
    convert,
    evaluate,
    inspect,
    logprobs,
    run,
    serve,
    sweep,
    watch,
)
from megatron_reason.errors import ReasonError

app = typer.Typer(
    name="mreason",
    help="SFT and RL methods for reasoning LLMs on Megatron-Core: one YAML file to one report.\n\n"
    "Begin with: mreason plan examples/quickstart_cpu/oxa.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    del version


app.command("plan")(run.plan)
app.command("run")(run.run)
app.command("sweep")(sweep.sweep)
app.command("train")(run.train)
app.command("resume-check")(run.resume_check)
app.command("stage")(run.stage)
app.command("eval")(evaluate.evaluate)
app.command("regrade")(evaluate.regrade)
app.command("compare")(compare.compare)
app.command("analyse")(analyse.analyse)
app.command("logprobs")(logprobs.logprobs)
app.command("watch")(watch.watch)
app.command("report")(evaluate.report)
app.command("serve")(serve.serve)
app.add_typer(convert.app, name="convert")
app.command("list")(inspect.list_)
app.command("show")(inspect.show)
app.command("doctor")(inspect.doctor)


def main() -> None:
    """Run `mreason`; errors the user can repair are shown without a traceback.

    The exit code is the error's own: 75 says that the same command goes on, 1 that it will not.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    try:
        app()
    except ReasonError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
