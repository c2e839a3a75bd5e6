"""`modint-guard serve`: the command's options, and the choice between starting an engine and attaching."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from modint_guard.errors import ConfigError


def serve(
    vllm_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- VLLM_OPTION",
            help="Options of `vllm serve`, passed on as they are: `-- --max-model-len 4096`.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model folder, a hub id, or picturebook-base, which is fetched. Default: tinyworld-base.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=PATH]", help="A LoRA adapter, by name or folder; may be repeated."),
    ] = None,
    adapter_dir: Annotated[
        Path,
        typer.Option(
            help="Where adapters are looked up by name, before the bundled ones. With --upstream: folders of "
            "adapters that the engine serves, for the metrics."
        ),
    ] = Path("adapters"),
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="MODINT_UPSTREAM_URL", help="Attach to a running vLLM instead."),
    ] = None,
    upstream_api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="MODINT_UPSTREAM_API_KEY_FILE", help="A file with the key of the --upstream engine."
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Thresholds written by `modint-guard calibrate`, one file a model; may be repeated.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        typer.Option(help="What the engine computes in. auto: bf16 if the processor has it natively."),
    ] = "auto",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8080,
) -> None:
    """Serve a vision-language model behind the guard: starts vLLM, or attaches to a running one."""
    from modint_server import serving  # here, as FastAPI and uvicorn make every other command slow

    if upstream is None:
        if upstream_api_key_file is not None:
            raise ConfigError(
                "--upstream-api-key-file is the key of a running engine: give --upstream URL too"
            )
        serving.start(
            *(model, adapter or [], adapter_dir, host, port),
            calibrations=calibration or [],
            dtype=dtype,
            vllm_options=vllm_options or [],
        )
        return
    if vllm_options:
        raise ConfigError(
            f"--upstream attaches to an engine that runs already: start that engine with {vllm_options[0]}, "
            "and drop what stands behind `--`"
        )
    if dtype != "auto":
        raise ConfigError(
            f"--upstream attaches to an engine that runs already: start that engine with --dtype {dtype}, "
            "and drop it here"
        )
    if model is not None or adapter:
        raise ConfigError(
            "--upstream attaches to an engine that has its model and adapters: drop --model and --adapter"
        )
    serving.attach(
        upstream, upstream_api_key_file, host, port, adapter_dir=adapter_dir, calibrations=calibration or []
    )
