"""The subcommands: comparison and baselines of results, weights, and checks of telemetry."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import cloup
from click.core import ParameterSource
from cloup import option

from acestep_otel.errors import SetupError
from acestep_otel.profiler.dotenv import ENVIRONMENT_FILE, VARIABLES, read_defaults
from acestep_otel.profiler.numbers import Number
from acestep_otel.profiler.options import DEFAULTS
from acestep_otel.sdk.variables import require_variables

# Modes are imported when a command runs: --help needs none of them.

_FILE: Final = click.Path(path_type=Path)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
_BASELINES: Final = Path("benchmarks/baselines")
CHECKPOINT_DIR = option(
    "--checkpoint-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULTS.checkpoint_dir,
    envvar=VARIABLES["checkpoint_dir"],
    help="Folder of the models.",
)


@cloup.command("compare", short_help="Compare two result files; a regression gate.")
@cloup.argument("files", type=_FILE, nargs=-1, required=True, metavar="A.json B.json", help="Baseline and candidate.")
@option(
    "--threshold",
    type=Number(min=0, max=1_000, min_open=True),
    default=1.10,
    show_default="1.10",
    help="Maximum ratio B/A.",
)
@option(
    "--noise-floor",
    type=Number(min=0, max=604_800_000),
    default=5.0,
    show_default="5",
    metavar="MILLISECONDS",
    help="Ignore differences below this, whatever the ratio.",
)
@option("--output", type=_FILE, show_default="none", help="Write the ratios to this JSON file.")
@option("--report", type=_FILE, show_default="none", help="Write an HTML page with the ratios.")
@option(
    "--baseline",
    is_flag=True,
    help="Check the runs of all files, each of a separate process, against the baseline of their card, by an exact "
    "rank-sum test instead of the ratio.",
)
@option("--baselines", type=_FOLDER, default=_BASELINES, help="Folder of the baselines.")
@option("--junit", type=_FILE, show_default="none", help="With --baseline: write a JUnit file.")
@option("--markdown", type=_FILE, show_default="none", help="With --baseline: write a summary as Markdown.")
def compare(
    files: tuple[Path, ...],
    threshold: float,
    noise_floor: float,
    output: Path | None,
    report: Path | None,
    baseline: bool,
    baselines: Path,
    junit: Path | None,
    markdown: Path | None,
) -> None:
    """Compare two result files cell by cell. Exit code 1: B is slower than threshold and noise floor allow.

    With --baseline every file is a candidate: a figure fails if it is slower in each of them. The files are benchmarks
    with seven or more runs, each of a separate process; acestep-otel baseline stores one as the baseline.
    """
    if baseline:
        from acestep_otel.profiler.benchmark import judge as gate

        if output is not None or report is not None:
            raise SetupError(
                "--output and --report are of the comparison of two files: use --junit or --markdown with --baseline"
            )
        gate.judge_files(files, baselines, noise_floor=noise_floor, junit=junit, markdown=markdown)
        return
    from acestep_otel.profiler.benchmark import compare as mode

    if junit is not None or markdown is not None:
        raise SetupError("--junit and --markdown need --baseline")
    if len(files) < 2:
        raise click.UsageError("Missing argument 'B.json': name the candidate, or check A.json with --baseline.")
    if len(files) > 2:
        raise click.UsageError(f"Got unexpected extra argument ({files[2]}): several candidates need --baseline.")
    mode.compare(files[0], files[1], threshold=threshold, noise_floor=noise_floor, output=output, report=report)


@cloup.command("baseline", short_help="Store a benchmark as the baseline of its card.")
@cloup.argument(
    "results",
    type=_FILE,
    nargs=-1,
    required=True,
    metavar="RESULT.json ...",
    help="Result files of benchmarks with seven or more runs, each of a separate process; "
    "four show how much processes differ.",
)
@option(
    "--tolerance",
    multiple=True,
    metavar="COLUMN=SHARE",
    show_default="0.03 for each column",
    help="Minimum tolerance of a column, as a share of its median: wall_time=0.05. May be repeated.",
)
@option("--baselines", type=_FOLDER, default=_BASELINES, help="Folder of the baselines.")
def baseline(results: tuple[Path, ...], tolerance: tuple[str, ...], baselines: Path) -> None:
    """Store the runs of benchmarks as the baseline of their card, for compare --baseline."""
    from acestep_otel.profiler.benchmark import judge as gate

    gate.keep(results, baselines, tolerance)


@cloup.command("download", short_help="Download released models.")
@cloup.argument("names", nargs=-1, required=True, metavar="NAME...", help="Model, for example acestep-v15-turbo.")
@CHECKPOINT_DIR
def download(names: tuple[str, ...], checkpoint_dir: Path) -> None:
    """Download released models with everything they need: a diffusion model includes the VAE and the text encoder.

    Weights, configurations and tokenizers are downloaded at fixed commits, without any code. The size is printed first.
    An interrupted download is resumed. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected.
    """
    from acestep_otel.profiler.run.weights import download_models

    download_models(names, _model_folder(checkpoint_dir))


@cloup.command("convert", short_help="Convert an official model to a diffusers repository.")
@cloup.argument("name", metavar="NAME", help="Name or path of a diffusion model in the official layout.")
@cloup.argument("target", type=_FILE, metavar="FOLDER", help="Folder to create.")
@CHECKPOINT_DIR
def convert(name: str, target: Path, checkpoint_dir: Path) -> None:
    """Convert a diffusion model in the official layout to a repository that diffusers' AceStepPipeline loads.

    Values and dtypes are unchanged. Both layouts can be profiled without conversion; this is for other tools.
    """
    from acestep_otel.profiler.run.weights import convert_model

    convert_model(name, _model_folder(checkpoint_dir), target)


def _model_folder(given: Path) -> Path:
    """The folder that a run would load from, as set by the option, the environment or ``.env``."""
    source = click.get_current_context().get_parameter_source("checkpoint_dir")
    stored = read_defaults(ENVIRONMENT_FILE).values.get("checkpoint_dir")
    return Path(stored) if stored and source is ParameterSource.DEFAULT else given


@cloup.command("doctor", short_help="Send a span and a metric, and report where they arrived; or measure the device.")
@option(
    "--otlp-endpoint",
    show_default="OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4317",
    help="OTLP endpoint.",
)
@option(
    "--otlp-protocol",
    type=click.Choice(["grpc", "http/protobuf"]),
    show_default="grpc, or OTEL_EXPORTER_OTLP_PROTOCOL",
    help="OTLP protocol.",
)
@option(
    "--jaeger-url",
    show_default="http://localhost:16686, if it answers",
    help="Jaeger that must have the span.",
)
@option(
    "--prometheus-url",
    show_default="http://localhost:9090, if it answers",
    help="Prometheus that must have the metric.",
)
@option(
    "--wait",
    type=Number(min=0, max=600),
    default=20.0,
    show_default="20",
    help="Seconds to wait for Jaeger and Prometheus.",
)
@option(
    "--measure-device",
    is_flag=True,
    help="Measure and store the peak rate and bandwidth of a device for the roofline instead; takes about a minute.",
)
@option("--device", default=DEFAULTS.device, help="Device to measure: auto, cuda, cuda:N, mps or cpu.")
def doctor(
    otlp_endpoint: str | None,
    otlp_protocol: str | None,
    jaeger_url: str | None,
    prometheus_url: str | None,
    wait: float,
    measure_device: bool,
    device: str,
) -> None:
    """Send a span and a metric, report where they arrived and what to fix. Exit code 1: something did not arrive.

    With --measure-device nothing is sent. The peaks of the device are measured, and the roofline of later runs uses
    them. Without a measurement it uses the data sheet of the device, if known.
    """
    if measure_device:
        from acestep_otel.profiler.doctor.measure_device import measure_device as measure

        measure(device)
        return
    require_variables()
    from acestep_otel.profiler.doctor import checks as mode

    mode.doctor(
        endpoint=otlp_endpoint,
        protocol=otlp_protocol,
        jaeger_url=jaeger_url,
        prometheus_url=prometheus_url,
        wait=wait,
    )


SUBCOMMANDS: Final = (baseline, compare, convert, doctor, download)
