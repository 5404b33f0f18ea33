"""The commands that bring an adapted model to its users: merge, export, verify, serve."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lorahub_edge.commands import JsonOption, RunArgument, one_line_errors
from lorahub_edge.json_text import to_json
from lorahub_edge.measure import parse_bytes
from lorahub_edge.terminal import (
    answers,
    messages,
    place,
    print_export,
    print_gguf_adapter,
    print_merge,
    print_verification,
)


def add_commands(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (merge, export, verify, serve):
        app.command()(command)


@one_line_errors
def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder for the merged transformers checkpoint.")],
    precision: Annotated[str, typer.Option(help="int8 (bitsandbytes' layout), bf16 or fp32.")] = "int8",
    in_place_int8: Annotated[
        bool, typer.Option("--in-place-int8", help="Start from the int8 codes: the float checkpoint is not at hand.")
    ] = False,
    rounding: Annotated[str, typer.Option(help="nearest; in place also stochastic.")] = "nearest",
    seed: Annotated[int, typer.Option(help="Of stochastic rounding.")] = 0,
    min_survival: Annotated[
        float, typer.Option(help="Fail if a smaller share of the delta survives the rounding (0 to 1).")
    ] = 0.9,
    as_json: JsonOption = False,
) -> None:
    """Fold a run's composed module into its base and write a transformers checkpoint.

    Example: lorahub-edge merge runs/navigate --out merged
    """
    import lorahub_edge

    merged = lorahub_edge.merge(
        run,
        out,
        precision=precision,
        in_place_int8=in_place_int8,
        rounding=rounding,
        seed=seed,
        min_survival=min_survival,
    )
    if as_json:
        record = {**merged.record, "survival": merged.survival.as_record(), "folder": str(merged.folder)}
        typer.echo(to_json(record))
    else:
        print_merge(merged)


@one_line_errors
def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Run folder (merged first), merged folder, or a base.")],
    out: Annotated[Path | None, typer.Option(help="New folder for the ONNX export.")] = None,
    gguf_adapter: Annotated[
        Path | None, typer.Option(help="New file for the run's module as a LoRA of llama.cpp; alone or beside --out.")
    ] = None,
    precision: Annotated[str, typer.Option(help="int8 (the merged codes), fp16 or fp32.")] = "int8",
    with_adapter: Annotated[
        bool,
        typer.Option(
            "--with-adapter",
            help="Do not merge: the run's module becomes a small file beside the base. Several runs may share --out.",
        ),
    ] = False,
    triton: Annotated[
        bool, typer.Option("--triton", help="Lay the folder out as a Triton Inference Server model repository.")
    ] = False,
    in_place_int8: Annotated[bool, typer.Option("--in-place-int8", help="Of the merge; see merge.")] = False,
    min_survival: Annotated[float, typer.Option(help="Of the merge; see merge.")] = 0.9,
    test: Annotated[
        str | None, typer.Option(help="Rows that the run and its export both answer, to see how far they agree.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an ONNX folder for onnxruntime, Optimum and transformers.js, and verify that it answers as torch does.

    With --gguf-adapter also, or only, the run's module for llama.cpp and Ollama.

    Example: lorahub-edge export runs/navigate --out navigate-onnx
    """
    import lorahub_edge

    _check_outputs(context)
    record: dict[str, Any] = {}
    if gguf_adapter is not None:  # first, since it takes a moment: what it refuses is said before the folder is made
        adapter = lorahub_edge.export_gguf_adapter(source, gguf_adapter)
        record["gguf_adapter"] = adapter.as_record()
        if not as_json:
            print_gguf_adapter(adapter)
    if out is not None:
        exported = lorahub_edge.export(
            source,
            out,
            precision=precision,
            with_adapter=with_adapter,
            triton=triton,
            in_place_int8=in_place_int8,
            min_survival=min_survival,
            test=test,
        )
        record |= {
            "folder": str(exported.folder),
            "bytes": exported.n_bytes,
            "verification": exported.report,
            "test": None if exported.drift is None else exported.drift.as_record(),
        }
        if not as_json:
            print_export(exported)
    if as_json:
        typer.echo(to_json(record))


def _check_outputs(context: typer.Context) -> None:
    """Without --out there must be --gguf-adapter, and no option that is about the folder."""
    out, file = context.params["out"], context.params["gguf_adapter"]
    if out is not None:
        if file is not None and out.absolute() in file.absolute().parents:
            raise typer.BadParameter(f"--gguf-adapter {file} is in the new folder --out; name another place")
        return
    if file is None:
        raise typer.BadParameter("name --out, --gguf-adapter or both")
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and parameter.name not in ("source", "gguf_adapter", "as_json"):
            raise typer.BadParameter(f"{parameter.opts[0]} is about the ONNX folder; name --out too")


@one_line_errors
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Check an exported folder against the torch answers kept in it; exit code 1 if it differs.

    Example: lorahub-edge verify navigate-onnx
    """
    import lorahub_edge

    report = lorahub_edge.verify(folder)
    if as_json:
        typer.echo(to_json(report))
    else:
        print_verification(report)
        answers.print(f"report: {place(folder / 'verification.json')}", soft_wrap=True)


@partial(one_line_errors, is_quiet=False)
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE, a file, a name in the folder, a folder of such files, or none. Repeatable; the first "
            "answers requests without a model's name. Default: all in the folder."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Texts answered together.")] = 32,
    cache_memory: Annotated[str, typer.Option(help="Most memory of caches, for instance 1.5GB.")] = "1GB",
    max_waiting: Annotated[int, typer.Option(help="Texts that may wait; beyond it requests get 429.")] = 256,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="No answer is longer. Default: the export's limit.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Give up an answer after so many seconds (504).")] = 60.0,
    shutdown_s: Annotated[float, typer.Option(help="Finish answers under way for so long after a signal.")] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Threads of onnxruntime. Default: its own choice.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer only those who send it as a bearer token. Repeatable. Default: LORAHUB_EDGE_API_KEY, which "
            "other users of the machine do not see."
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File of such keys, one a line.")] = None,
    allow_loading: Annotated[
        bool, typer.Option("--allow-loading", help="Requests may load and unload adapters from files of this machine.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which clients may ask, beside localhost and --host; * for any. Repeatable."),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Other web site whose pages may ask, such as https://example.org. Repeatable."),
    ] = None,
) -> None:
    """Serve an exported folder and its adapters over HTTP, as OpenAI's API. Imports no torch.

    Example: lorahub-edge serve navigate-onnx --port 8000
    """
    from lorahub_edge.serve.server import run
    from lorahub_edge.serve.server_settings import ServerSettings, read_api_keys

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("lorahub_edge.serve").setLevel(logging.INFO)
    settings = ServerSettings(
        max_batch=max_batch,
        cache_bytes=parse_bytes(cache_memory),
        max_waiting=max_waiting,
        max_new_tokens=max_new_tokens,
        timeout_s=timeout_s,
        shutdown_s=shutdown_s,
        api_keys=read_api_keys(api_key or (), api_key_file),
        allow_loading=allow_loading,
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=tuple(allowed_origin or ()),
    )
    run(
        folder,
        adapters=tuple(adapter or ()),
        host=host,
        port=port,
        settings=settings,
        n_threads=threads,
        announce=lambda url: messages.print(f"serving {folder} at {url}", soft_wrap=True),
    )
