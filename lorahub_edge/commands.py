"""What the commands share: errors as one line, quiet libraries, options that several commands take."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lorahub_edge.cpu_floor import need_cpu
from lorahub_edge.errors import LorahubEdgeError, LorahubEdgeWarning, needed_by
from lorahub_edge.terminal import messages

app = typer.Typer(
    help="Adapt a language model to a new task by composing LoRA modules, without gradients.",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Command = TypeVar("Command", bound=Callable[..., None])


def one_line_errors(command: Command, *, is_quiet: bool = True) -> Command:
    """Library errors become one line on stderr and exit code 1; warnings become lines too.

    Args:
        command: what typer calls.
        is_quiet: false for a command whose libraries may warn and log as they do.
    """

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            need_cpu()
            with quiet_libraries() if is_quiet else contextlib.nullcontext(), needed_by(command.__name__):
                command(*args, **kwargs)
        except LorahubEdgeError as error:
            messages.print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            messages.print("interrupted; nothing was written", style="red")
            raise typer.Exit(130) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            messages.print(f"error: {where}{error.strerror or error}", style="red", soft_wrap=True)
            raise typer.Exit(1) from error

    return guarded  # type: ignore[return-value]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep other libraries' logs and warnings off the terminal; ours are shown as one line each."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            messages.print(f"warning: {message}", style="yellow", soft_wrap=True)

        warnings.showwarning = show
        warnings.simplefilter("always", LorahubEdgeWarning)
        yield


BaseOption = Annotated[
    str,
    typer.Option(help='"pocket" (embedded), a folder, a .gguf file, or a Hub id; :Q8_0 picks a GGUF, @ a revision.'),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option(help="Of the base: int8, bf16 or fp32.")]
PromptOption = Annotated[str, typer.Option(help="auto, plain, chat, or a text with {input} in it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
RunArgument = Annotated[Path, typer.Argument(help="Run folder that adapt wrote.")]
AdaptedArgument = Annotated[Path, typer.Argument(help="Run folder, merged folder or exported folder.")]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        help="For a folder exported --with-adapter: a file, the name of one in it, or none. Default: its own."
    ),
]
ModulesOption = Annotated[
    list[str],
    typer.Option(
        help="Embedded name, PEFT folder, folder of such folders, list file, Hub id, hub:QUERY for modules of the "
        "catalogue (hub:all, 'hub:sentiment rank:16'), or a run's manifest.json for those of the run. Repeatable."
    ),
]
ExamplesOption = Annotated[
    str | None, typer.Option(help="A file of rows (JSONL, JSON, CSV, TSV), or pocket/TASK. Default: an embedded task.")
]
NExamplesOption = Annotated[int, typer.Option(help="Examples that the search sees.")]
ExampleSeedOption = Annotated[int, typer.Option(help="Seed of their draw.")]
NTestOption = Annotated[int | None, typer.Option(help="At most so many test rows.")]
OptimizerOption = Annotated[str | None, typer.Option(help="guided-cma, cma-es or any nevergrad name.")]
MaxInputTokensOption = Annotated[int | None, typer.Option(help="Cut inputs here.")]
MaxNewTokensOption = Annotated[int | None, typer.Option(help="Cut answers here.")]
EvaluateByOption = Annotated[
    str, typer.Option(help="side: deltas beside the base. inject: rounded into it, as merge --in-place-int8 does.")
]
CompositionOption = Annotated[
    str | None,
    typer.Option(help="factors: LoRAHub's sums. deltas: the sum of the modules' deltas. Default: the preset's."),
]
MaxModulesOption = Annotated[
    int | None, typer.Option(help="Search among at most so many of the modules; see --choose-modules. Default: all.")
]
ChooseModulesOption = Annotated[
    str,
    typer.Option(
        help="With --max-modules. loss: those whose loss on the examples is lowest alone; reads every module and costs "
        "one evaluation of each. random: LoRAHub's draw. similar: those whose README.md and training rows are most "
        "like the examples."
    ),
]
StackDtypeOption = Annotated[
    str | None, typer.Option(help="Of the modules in memory: fp32, bf16 or int8. Default: fp32, or what fits.")
]
CacheOption = Annotated[bool, typer.Option(help="Keep the int8 base and the modules' stack for the next start.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="Processes that compute. Default: this one alone or, on Ray, what the cluster has room for.", min=1
    ),
]
RayOption = Annotated[
    str | None, typer.Option(help="Compute on a Ray cluster: local (starts one here), auto, or HOST:PORT.")
]
