"""A local page that samples a run by hand: ``ucgm ui RUN``, with gradio.

What is drawn comes from :mod:`ucgm.generation.trial`.  The page answers this machine
alone unless another address is asked for, and its policy keeps the browser from asking any other
server for anything.
"""

import base64
import html
import importlib
import io
import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, get_args

from torch import Tensor

from ucgm.data.pixels import to_pil
from ucgm.generation.command import open_run
from ucgm.generation.samples import SamplingConfig
from ucgm.generation.trial import Choice, Drawn, Trial
from ucgm.runtime.processes import best_device
from ucgm.runtime.values import Count, Range
from ucgm.sampler.sampler import READS, SolverName

Port = Annotated[int, Range(1, 65_535)]
MOST_IMAGES = 64
MOST_LISTED = 2000  # classes in the menu; the number of another can be typed
# Settings that not every solver reads: label, lowest, highest, step.
_SLIDERS = {
    "order": ("Order", 1, 4, 1),
    "stochasticity": ("Stochasticity (0: none)", 0.0, 1.0, 0.01),
    "extrapolation": ("Extrapolation (0: none)", -2.0, 2.0, 0.05),
}
# For the browser: nothing from another server, whatever the libraries of the page would like.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "frame-ancestors 'none'; form-action 'self'"
)
_CSS = """
.strip {display: flex; gap: 6px; overflow-x: auto; padding-bottom: 6px}
.sheet {display: flex; flex-wrap: wrap; gap: 6px}
.strip figure, .sheet figure {margin: 0; flex: none; text-align: center; font-size: 12px}
.strip img, .sheet img {display: block; margin: 0 auto 2px}
.drawn code {overflow-wrap: anywhere; white-space: normal}
.drawn h4 {margin: 14px 0 6px}
"""


def show(
    trial: Trial, seed: int, classes: list[Any], count: float, filmed: float, values: list[Any]
) -> str:
    """HTML of the images under the settings ``values``, or of what is wrong with them."""
    try:
        steps, guidance, solver, order, *rest = values
        noise, kappa = map(float, rest)
        choice = Choice(int(steps), float(guidance), solver, int(order), noise, kappa)
        drawn = trial.draw(choice, seed, tuple(map(int, classes)), int(count), int(filmed))
        return _html(drawn, int(filmed), trial.data.class_names)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        return f'<p role="alert"><b>Not drawn:</b> {html.escape(str(error))}</p>'


def _html(drawn: Drawn, filmed: int, names: tuple[str, ...]) -> str:
    """The images, the filmstrip, and how they were made."""
    classes = [f"class {names[k] if names else k}" for k in drawn.labels]
    captions = [f"{i}: {name}" for i, name in enumerate(classes)]
    captions = captions or [str(i) for i in range(len(drawn.images))]
    times = [f"t = {t:.3g}" for t in drawn.times]
    calls = len(times)
    return (
        f'<div class="drawn"><div class="sheet">{_figures(drawn.images, captions)}</div>'
        f"<h4>Image {filmed}: x&#770;, the predicted data, after each of {calls} calls</h4>"
        f'<div class="strip" tabindex="0">{_figures(drawn.frames, times)}</div>'
        f"<p>{calls} calls of the network, {drawn.passes:g} passes per image, "
        f"{drawn.seconds:.2f} seconds for {len(drawn.images)} images. The same images as files:"
        f"<br><code>{html.escape(drawn.command)}</code></p></div>"
    )


def _figures(images: Tensor, captions: list[str]) -> str:
    """Images (n, channels, h, w) uint8 with a caption each; small ones grow to 64 pixels."""
    side = max(images.shape[-1], min(64, 8 * images.shape[-1]))
    small = "image-rendering: pixelated" if side > images.shape[-1] else ""
    figures = []
    for image, caption in zip(images, map(html.escape, captions), strict=True):
        to_pil(image).save(file := io.BytesIO(), format="PNG")
        data = base64.b64encode(file.getvalue()).decode()
        figures.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}" width="{side}" '
            f'style="{small}"><figcaption>{caption}</figcaption></figure>'
        )
    return "".join(figures)


def page(trial: Trial) -> Any:
    """The page, as blocks of gradio."""
    gradio, data, settings = _gradio(), trial.data, trial.settings
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    known = [(f"{k}: {name}" if data.class_names else name, k) for k, name in enumerate(names)]
    name = html.escape(trial.run.run_dir.resolve().name)
    with gradio.Blocks(title=f"ucgm: {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"# {name}\nStep {trial.run.step:,} of the training, weights {trial.run.weights}. "
            "All values start as the run has them; one seed gives both settings the same noise."
        )
        with gradio.Row():
            seed = gradio.Number(settings.seed, label="Seed (whole number)", precision=0)
            classes = gradio.Dropdown(
                known[:MOST_LISTED],
                value=list(settings.classes or ()),
                label="Classes, in turn (none: all)",
                multiselect=True,
                allow_custom_value=len(known) > MOST_LISTED,
                visible=bool(known),
            )
            count = gradio.Slider(1, MOST_IMAGES, 8, step=1, label="Images (number)")
            filmed = gradio.Slider(
                0, MOST_IMAGES - 1, 0, step=1, label="Filmstrip of image (number)"
            )
        both = gradio.Checkbox(label="Compare with a second setting, from the same noise")
        button = gradio.Button("Sample", variant="primary")
        with gradio.Row():
            first, _, shown = _side(gradio, trial, "A", True)
            second, column, other = _side(gradio, trial, "B", False)
        both.change(lambda on: gradio.update(visible=on), both, column, api_name=False)
        size = len(Choice._fields)

        def draw(
            both: bool, seed: int, classes: list[Any], count: float, filmed: float, *values: Any
        ) -> tuple[str, str]:
            a, b = list(values[:size]), list(values[size:])
            shown = show(trial, seed, classes, count, filmed, a)
            return shown, show(trial, seed, classes, count, filmed, b) if both else ""

        inputs = [both, seed, classes, count, filmed, *first, *second]
        button.click(draw, inputs, [shown, other], api_name="draw")
    return blocks


def _side(gradio: Any, trial: Trial, name: str, visible: bool) -> tuple[list[Any], Any, Any]:
    """Components of a :class:`Choice`, their column, and the place of the images."""
    start, guidance = trial.start(), trial.run.config.guidance
    two = getattr(trial.run.network, "second_time", False)  # which jump passes to the network
    names = [name for name in get_args(SolverName) if two or name != "jump"]
    with gradio.Column(visible=visible, min_width=340) as column:
        gradio.Markdown(f"### Setting {name}")
        with gradio.Row():
            steps = gradio.Slider(
                1, max(64, 2 * start.steps), start.steps, step=1, label="Steps (number)"
            )
            scale = gradio.Slider(
                min(0.0, start.guidance),
                max(8.0, 2 * start.guidance),
                start.guidance,
                step=0.05,
                label="Guidance (scale; 1 is off)",
                visible=bool(trial.run.num_classes) or guidance.kind != "classifier_free",
            )
        with gradio.Row():
            solver = gradio.Dropdown(names, value=start.solver, label="Solver")
            made = {
                key: gradio.Slider(
                    *ends, step=step, label=label, **_fitted(start, start.solver, key), render=False
                )
                for key, (label, *ends, step) in _SLIDERS.items()
            }
            made["order"].render()
        with gradio.Row():
            made["stochasticity"].render()
            made["extrapolation"].render()
        place = gradio.HTML()

        def fit(chosen: SolverName) -> list[Any]:
            return [gradio.update(**_fitted(start, chosen, key)) for key in _SLIDERS]

        solver.input(fit, solver, [*made.values()], api_name=False)
    return [steps, scale, solver, *made.values()], column, place


def _fitted(start: Choice, solver: SolverName, key: str) -> dict[str, Any]:
    """A slider of a solver: the run's own value, or one that changes nothing; off if not read."""
    highest, reads = READS[solver]
    usual = (2 if highest > 2 else 1) if key == "order" else 0.0
    value = getattr(start, key) if solver == start.solver else usual
    return {"value": value, "interactive": highest > 1 if key == "order" else key in reads}


def ui(
    run_dir: str,
    settings: SamplingConfig | None = None,
    steps: Count | None = None,
    host: str = "127.0.0.1",
    port: Port | None = None,
    weights: str = "ema",
    checkpoint: int | None = None,
    device: str | None = None,
    changes: list[str] | None = None,
) -> None:
    """A local page that samples a run by hand; Ctrl-C ends it.

    Args:
        run_dir: folder of the run.
        settings: how it is sampled, to begin with.
        steps: steps of the sampler, to begin with; the run's own when left out.
        host: address to answer at; the default is this machine alone.
        port: to answer at; the first free one from 7860 when left out.
        weights: ema or network.
        checkpoint: training step of the checkpoint; the latest when left out.
        device: cpu, cuda, ...; the fastest there is when left out.
        changes: words such as --sampler.order 2 or --config FILE, over the run's settings.
    """
    _gradio()
    given = {"--weights": weights != "ema" and weights, "--checkpoint": checkpoint}
    given |= {"--device": device}
    words = [word for key, value in given.items() if value for word in (key, str(value))]
    first = (changes or []) + (["--sampler.steps", str(steps)] if steps else [])
    device = device or best_device()
    run = open_run(run_dir, checkpoint, weights, device, first)
    blocks = page(Trial(run, settings or SamplingConfig(), device, words + (changes or [])))
    if not _loopback(host):
        print(f"warning: whoever reaches {host} can use this page and this machine's {device}")
    try:
        address = launch(blocks, host, port)
    except OSError as error:
        where = f"port {port}" if port else "a port from 7860"
        raise ValueError(f"{where} of {host} cannot be had: choose another --port") from error
    print(f"page: {address}  (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def launch(blocks: Any, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serve a page from threads of this process; returns its address."""
    gradio, middleware = _gradio(), importlib.import_module("starlette.middleware").Middleware
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        max_file_size="1kb",  # nothing is uploaded
        theme=gradio.themes.Base(**fonts),
        css=_CSS,
        app_kwargs={"middleware": [middleware(_sealed)]},
    )[1]


def _sealed(app: Callable[..., Any]) -> Callable[..., Any]:
    """An ASGI application whose every answer carries the policy."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await app(scope, receive, with_policy)

    return answer


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _gradio() -> Any:
    """The library, where it is installed."""
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise ValueError('this page needs gradio: pip install "ucgm[ui]"') from error
