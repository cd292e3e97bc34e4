"""A page in the browser: osdhuman app   (extra `app`)

Drop pictures, move the slider between before and after, download what infer.py would have written.
The page is served on this machine alone unless --host says otherwise, asks nothing of any other
machine (its Content-Security-Policy forbids it), and sends no statistics. Pictures wait in a queue
and are kept by the browser alone; uploads on their way lie in a temporary folder.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from osdhuman_jax.cli import Parser, end, some_path
from osdhuman_jax.commands.flags import memory, speak
from osdhuman_jax.disk import workspace
from osdhuman_jax.inference.program_cache import keep_programs
from osdhuman_jax.inference.settings import PRECISIONS
from osdhuman_jax.models import BUNDLED


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags as a namespace; exits with status 2 on a bad one."""
    parser = Parser("app", "Restore in a browser.")
    add = parser.add_argument
    add("--model", type=some_path, default=BUNDLED, help="folder; default: the bundled one")
    add("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0: to every machine")
    add("--port", type=int, default=7860, help="of the address")
    add("--max_pixels", type=int, default=25_000_000, help="of a picture, after upscaling")
    add("--max_file_size", type=memory, default="50MiB", help="of an upload")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the networks")
    add("--max_memory", type=memory, help="bytes for the model; default: half the host's")
    args = parser.parse_args(argv)
    # What argparse cannot refuse.
    if not 0 <= args.port < 2**16:
        parser.error(f"--port {args.port} is not between 0 and {2**16 - 1}")
    if args.max_pixels < 1:
        parser.error(f"--max_pixels {args.max_pixels} is not at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse_args(argv)
    # JAX and the networks, which `--help` does without.
    from osdhuman_jax.inference.pipeline import Pipeline

    speak()
    try:
        from osdhuman_jax.commands.page import serve

        # Pictures that people gave do not outlive the page: what a killed one left goes here too.
        with workspace(Path(tempfile.gettempdir())) as folder:
            tempfile.tempdir = str(folder)
            # The model and its card, which the page shows, then the page until it is interrupted.
            pipeline = Pipeline.from_folder(args.model, args.precision, max_memory=args.max_memory)
            bounds = args.max_pixels, args.max_file_size
            serve(pipeline, _card(args.model), args.host, args.port, *bounds)
    # What serves the page is an extra: no other command needs it.
    except ImportError:
        print("app: the page needs the extra: pip install 'osdhuman-jax[app]'", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"app: {error}", file=sys.stderr)
        return 2
    finally:
        tempfile.tempdir = None
    return 0


def _card(model: Path) -> str:
    """What a model's folder says about it, in Markdown."""
    card = model / "README.md"
    return card.read_text(encoding="utf-8-sig") if card.is_file() else "This model has no card."


def command() -> NoReturn:
    """Run the command as the whole process."""
    keep_programs()
    end("app", main)


if __name__ == "__main__":
    command()
