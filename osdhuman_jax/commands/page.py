"""The page in the browser: what it shows, what it does with a picture, and how it is served.

Needs the extra `app` (Gradio), which is imported where it is used: the rest can be tested without.
Goes in: a pipeline, Markdown about its model, bounds. Comes out: Gradio's page, served until
interrupted.
"""

import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from osdhuman_jax.config import COLOR_FIXES
from osdhuman_jax.images.codec import ImageError, Picture, decode, encode, read_size, to_pillow
from osdhuman_jax.images.formats import SUFFIXES
from osdhuman_jax.images.listing import SUFFIXES as LISTED
from osdhuman_jax.images.sizes import enlarge, scaled_size
from osdhuman_jax.inference.finishing import RestoreError
from osdhuman_jax.inference.folder_plan import one_line
from osdhuman_jax.inference.notes import Request
from osdhuman_jax.inference.pipeline import Pipeline
from osdhuman_jax.inference.plans import Progress
from osdhuman_jax.inference.settings import GUIDANCE, Sampling
from osdhuman_jax.weights.abilities import Abilities

Given = tuple[str, str | None] | None  # a file's place and the name that it was uploaded by
Gradio = Any  # a type of Gradio's, which need not be installed where this file is read
Message = Mapping[str, Any]  # of ASGI, as are the three below
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Both pictures, and the button of the download.
Shown = tuple[tuple[Image.Image, Image.Image], Gradio]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

WAITING = 8  # pictures in the queue; the next is asked to come back
LONGEST = 255  # bytes of a name, as file systems have it
KEPT = 3600  # seconds that pictures stay on the disk
SHOWN = 1600  # longest side of the comparison, in pixels; the download is whole
# The page's own scripts and styles, and pictures that it makes; nothing from anywhere else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'self'"
)
# Tables of the card, on a narrow screen.
STYLE = """
.prose table { display: block; overflow-x: auto; }
.prose td, .prose th { word-break: normal; overflow-wrap: normal; }
"""


class ContentPolicy:
    """ASGI middleware that adds POLICY to every answer."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, guarded)


def restore_file(
    pipeline: Pipeline,
    path: Path,
    upscale: float,
    color_fix: str,
    guidance: float | None,
    max_pixels: int,
    progress: Progress | None,
    sampling: Sampling | None = None,
    name: str = "",
) -> tuple[Picture, Picture]:
    """The enlarged input and its restoration, as infer.py makes it.

    Raises ImageError on a file that is no picture or a larger one than `max_pixels` (after
    `upscale`), which its header tells before it is decoded, and RestoreError. A model of many steps
    takes `sampling`, and the picture's `name` with its suffix.
    """
    # By the header: a page is open to whoever reaches it, and a bomb is small before it is decoded.
    height, width = scaled_size(read_size(path, max_pixels), upscale)
    if height * width > max_pixels:
        limit = f"{max_pixels / 1e6:g} million"
        raise ImageError(f"{width} x {height} after upscaling is more than {limit} pixels")
    picture = decode(path.read_bytes(), max_pixels, deep=True)
    (restored,) = pipeline.restore(
        [picture],
        upscale,
        color_fix,
        progress=progress,
        guidance=guidance,
        sampling=sampling,
        requests=[Request(Path(name).with_suffix("").as_posix() if name else "")],
    )
    return enlarge(picture, upscale), restored


def preview(picture: Picture) -> Image.Image:
    """The picture with at most SHOWN pixels a side, without what the file carries along."""
    # Profile and EXIF, where a photograph was taken for one, stay out of the page.
    image = to_pillow(Picture(picture.rgb))
    image.thumbnail((SHOWN, SHOWN))
    return image


def download_name(path: Path, uploaded: str | None) -> str:
    """What infer.py would call the restoration of a file that was uploaded by that name.

    Gradio keeps uploads under names without `#`, `%` and the like. The browser states the true one,
    which counts if it can be a file's name in a folder; else it is that of `path`.
    """
    names = [uploaded or "", path.name]
    return next(_restored(name) for name in names if _is_name(name))


def _is_name(text: str) -> bool:
    """Whether a file in a folder can have this name, and its restoration too."""
    try:
        # A browser may state anything, a path out of the folder too.
        odd = text != Path(text).name or text in ("", "..") or "\0" in text
        return not odd and len(os.fsencode(_restored(text))) <= LONGEST
    except UnicodeEncodeError:  # half a character of UTF-16, as JSON may have it
        return False


def _restored(name: str) -> str:
    return Path(name).with_suffix(SUFFIXES["png"]).name


def write_download(picture: Picture, folder: Path, name: str) -> Path:
    """Write a restored picture as PNG below `folder`; returns its path, which ends with `name`.

    Raises ImageError or OSError.
    """
    # A folder for each: two visitors may have pictures of one name.
    path = Path(tempfile.mkdtemp(dir=folder)) / name
    path.write_bytes(encode(picture))
    return path


def build(pipeline: Pipeline, card: str, max_pixels: int, folder: Path) -> Gradio:
    """The page as Gradio's Blocks; `card` is Markdown about the model."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    restore = _handler(pipeline, max_pixels, folder)
    # What is seen: on the left what is asked for, on the right before and after.
    with gr.Blocks(
        title="OSDHuman", analytics_enabled=False, delete_cache=(KEPT // 4, KEPT)
    ) as page:
        gr.Markdown("# OSDHuman\nHuman body restoration in one diffusion step.")
        with gr.Row():
            with gr.Column(scale=1):
                file: Gradio = gr.File(label="Picture (PNG, JPEG, WebP)", file_types=list(LISTED))
                # Gradio's own drops the name that the browser gave.
                path_of = file.preprocess
                file.preprocess = lambda given: given and (path_of(given), given.orig_name)
                upscale = gr.Slider(1, 4, 1, step=0.5, label="Upscale")
                color_fix = gr.Radio(
                    list(COLOR_FIXES),
                    value=pipeline.model.use.color_fix,
                    label="Colour fix",
                    info="Take the colours of the input: all statistics, or the low frequencies.",
                )
                # For a model of two prompts; others have nothing to guide.
                own = pipeline.model.restorer.guidance
                more = [] if own is None else [_guidance(own)]
                if pipeline.abilities is not None:
                    more = _sampling(pipeline.abilities)
                button = gr.Button("Restore", variant="primary")
                download = gr.DownloadButton("Download PNG", interactive=False)
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="Before | after", type="pil", interactive=False, buttons=["fullscreen"]
                )
        # Below: what the model is, for whoever wants to know.
        with gr.Accordion(f"The model: {pipeline.model.name}", open=False):
            gr.Markdown(card)
        # One picture at a time: two would need twice the memory that was planned.
        inputs, outputs = [file, upscale, color_fix, *more], [slider, download]
        button.click(restore, inputs, outputs, api_visibility="private", concurrency_limit=1)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def _handler(pipeline: Pipeline, max_pixels: int, folder: Path) -> Callable[..., Any]:
    """What the page's button does: a file and its settings -> both pictures and the download."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    def run(
        file: Given,
        upscale: int | float,  # Gradio's sliders give 1 for 1.0
        color_fix: str,
        guidance: int | float | None,
        sampling: Sampling | None,
        progress: Gradio,
    ) -> Shown:
        if file is None:
            raise gr.Error("Choose a picture first.", print_exception=False)
        path, uploaded = Path(file[0]), file[1]
        name, unit = download_name(path, uploaded), "steps" if sampling else "tiles"
        try:
            progress(0.0, desc="restoring")
            before, after = restore_file(
                pipeline,
                path,
                float(upscale),
                color_fix,
                None if guidance is None else float(guidance),
                max_pixels,
                lambda done, total: progress((done, total), unit=unit),
                sampling,
                name,
            )
            result = write_download(after, folder, name)
        except (ImageError, RestoreError, ValueError, OSError, MemoryError) as error:
            raise gr.Error(f"{path.name}: {one_line(error)}", print_exception=False) from None
        download = gr.DownloadButton(value=str(result), interactive=True)
        return (preview(before), preview(after)), download

    # Fields are a function's arguments, so that each kind of model has its own. Gradio finds the
    # progress by its default.
    def restore(
        file: Given,
        upscale: int | float,
        color_fix: str,
        guidance: int | float | None = None,
        progress: Gradio = gr.Progress(),  # noqa: B008
    ) -> Shown:
        return run(file, upscale, color_fix, guidance, None, progress)

    def sample(
        file: Given,
        upscale: int | float,
        color_fix: str,
        steps: int | float,
        seed: int | float | None,
        prompt: str | None = None,
        progress: Gradio = gr.Progress(),  # noqa: B008
    ) -> Shown:
        # An emptied field is seed 0, and an empty text is none: the picture's tags may follow.
        sampling = Sampling(steps=int(steps), seed=int(seed or 0), prompt=prompt or None)
        return run(file, upscale, color_fix, None, sampling, progress)

    return restore if pipeline.abilities is None else sample


def _sampling(can: Abilities) -> list[Gradio]:
    """Fields of a model of many steps: how many, the seed, and the text where it takes one."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    made: list[Gradio] = [
        gr.Slider(1, 100, can.sample.steps, step=1, label="Steps", info="More take longer."),
        gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
    ]
    text = "What the picture shows, in words, such as: young woman, red hair, green coat"
    return made + ([gr.Textbox(label="Prompt", info=text)] if can.text else [])


def _guidance(own: float) -> Gradio:
    """A slider of guidance, at the model's own to begin with."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    return gr.Slider(
        *GUIDANCE,
        own,
        step=0.5,
        label="Guidance",
        info="How far from what is wrong with the picture; the model's own is best.",
    )


def serve(page: Gradio, host: str, port: int, max_file_size: int) -> None:
    """Serve the page until interrupted. Raises OSError where the address cannot be had."""
    from gradio import themes  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

    try:
        # Gradio would tell of a taken port at length.
        socket.create_server((host, port)).close()
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error}; name another address") from error
    # The default theme's own fonts come from a font server
    theme = themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    # Gradio asks its own server whether it is up. A proxy of the network's knows nothing of it.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    # Nothing of Gradio's that asks another machine: no tunnel, no links, no server of Node. Nor the
    # look at its first page, which must not take a busy machine three seconds (`_frontend`).
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        _frontend=False,
        footer_links=[],
        max_file_size=max_file_size,
        theme=theme,
        css=STYLE,
        app_kwargs={"middleware": [Middleware(ContentPolicy)]},
        prevent_thread_lock=True,
        quiet=True,
    )
    print(f"app: {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()
